"""Ray Data against a local run: the same records with a worker killed midway; what a picture costs; one worker and two.

    python -m benchmarks.scaleout [--pictures N] [--only 1|2]    # needs `pip install onnxcam[ray]`, and Linux for /proc

1. The demo model over N pictures of 320 x 240, locally and by two workers, one of which gets SIGKILL when a third of
   the overlays are there. Records and files are compared by their bytes.
2. A network of ResNet-50's size with random weights over pictures of 500 x 375, one CPU per worker, records only: wall
   time and CPU seconds of the workers for the last two thirds of N / 2 pictures, when all workers are up. Other load
   disturbs the first more than the second; `RAY_worker_niceness=0 nice -n -10` asks for priority.
"""

import argparse
import json
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import ray
from PIL import Image

from benchmarks.graphs import resnet50
from onnxcam.audit.records import read_records
from onnxcam.audit.run import Output, audit
from onnxcam.audit.sources import Sources
from onnxcam.demo import FOLDER, PICTURES
from onnxcam.explainer import Explainer
from onnxcam.ray import collect, explained


def pictures(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """The demo's pictures, moved and tinted so that no two are alike."""
    folder.mkdir(parents=True)
    sources = [np.asarray(Image.open(p).convert("RGB").resize(size)) for p in sorted(PICTURES.glob("*.jpg"))]
    for i in range(count):
        rng = np.random.default_rng(i)
        shifted = np.roll(sources[i % len(sources)], rng.integers(0, 200, 2), (0, 1))
        noisy = shifted * rng.uniform(0.6, 1.0, 3) + rng.normal(0, rng.uniform(0, 25), shifted.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg", quality=88)
    return folder


PEAK = 0
"""Highest resident memory of a worker that was seen, in kB."""


def workers() -> dict[int, float]:
    """CPU seconds, user and system, of the cluster's workers that explain, by process."""
    global PEAK
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cmdline").read_bytes().startswith(b"ray::MapWorker(MapBatches(Worker))"):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                status = (path / "status").read_text()
                PEAK = max(PEAK, int(status.partition("VmHWM:")[2].split()[0]))
                found[int(path.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except OSError:
            continue
    return found


def kill_one_midway(overlays: Path, when: int, killed: list[int]) -> None:
    """Wait for this many overlays, then SIGKILL one worker."""
    while not killed:
        time.sleep(0.02)
        if overlays.is_dir() and sum(1 for _ in overlays.iterdir()) >= when and (alive := workers()):
            killed.append(min(alive))
            os.kill(killed[0], signal.SIGKILL)


def same_records(folder: Path, count: int) -> None:
    source = pictures(folder / "pictures", count, (320, 240))
    (source / "0007.jpg").write_bytes(b"\xff\xd8\xff no more")
    model, output = FOLDER / "demo.onnx", Output(values="png16")
    sources = Sources()
    sources.add_inputs([str(source)])
    audit(Explainer(model, threads=1), sources.items, folder / "local", output=output, workers=1, runners=1)

    killed: list[int] = []
    watch = threading.Thread(
        target=kill_one_midway, args=(folder / "ray" / "overlays", count // 3, killed), daemon=True
    )
    watch.start()
    paths = ray.data.from_items([{"path": i.path} for i in sources.items], override_num_blocks=count // 16)
    records = explained(paths, model, folder / "ray", root=str(source), output=output, concurrency=2, rows=16)
    records.write_parquet(str(folder / "ray" / "records"))
    done = collect(ray.data.read_parquet(str(folder / "ray" / "records")), folder / "ray")
    watch.join(1)

    local, spread = ({r["name"]: r for r in read_records(folder / name)} for name in ("local", "ray"))
    files = [f for r in local.values() for f in r.get("files", {}).values()]
    print(f"1. {count} pictures, 1 of them broken; worker {killed[0] if killed else 'none'} killed; {done} rows")
    print(f"   records equal: {sum(spread.get(name) == r for name, r in local.items())} of {len(local)}, "
          f"{len(spread) - len(local)} too many")  # fmt: skip
    same = sum((folder / "ray" / f).read_bytes() == (folder / "local" / f).read_bytes() for f in files)
    print(f"   overlays and values equal by their bytes: {same} of {len(files)}")
    json_bytes = sum(len(json.dumps(r)) for r in local.values()) / len(local)
    parquet = sum(p.stat().st_size for p in (folder / "ray" / "records").iterdir()) / len(local)
    print(f"   a record: {json_bytes:.0f} bytes as JSON, {parquet:.0f} in Parquet")
    for name, record in local.items():
        if spread.get(name) != record:
            other = spread.get(name, {})
            print("   ", name, {k: (v, other.get(k)) for k, v in record.items() if other.get(k) != v})


def rate(tables: Iterator[Any], warm: int) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and pictures after the first `warm` pictures, when all workers have started."""
    passed = 0
    while passed < warm:
        passed += len(next(tables))
    begun, before, seen = time.perf_counter(), workers(), 0
    last, after = begun, before
    for table in tables:
        seen += len(table)
        last, now = time.perf_counter(), workers()
        after = after | now  # a worker that has ended keeps what it was last seen with
    return last - begun, sum(after.values()) - sum(before.get(p, 0.0) for p in after), seen


def throughput(folder: Path, count: int) -> None:
    model = folder / "resnet50.onnx"
    onnx.save(resnet50(), model)
    source = pictures(folder / "large", count, (500, 375))
    rows = [{"path": str(p)} for p in sorted(source.iterdir())]
    scale = {"preprocess": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, "size": (224, 224)}
    walls = {}
    for number in (1, 2, 1, 2):
        dataset = ray.data.from_items(rows, override_num_blocks=count // 8)
        out = Path(tempfile.mkdtemp(dir=folder))
        stage = explained(dataset, model, out, root=str(source), concurrency=number, num_cpus=1, rows=8, **scale)
        load = os.getloadavg()[0]
        wall, cpu, seen = rate(iter(stage.iter_batches(batch_format="pyarrow", batch_size=None)), count // 3)
        walls.setdefault(number, []).append(wall / seen)
        print(f"2. {number} workers: {seen / wall:5.2f} pictures/s, {cpu / seen:.3f} CPU s per picture, "
              f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after")  # fmt: skip
    print(f"   two workers against one: {np.median(walls[1]) / np.median(walls[2]):.2f} x")
    print(f"   most memory of a worker: {PEAK / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--only", type=int, choices=(1, 2), help="one of the two")
    arguments = parser.parse_args()
    count = arguments.pictures
    ray.init(num_cpus=3, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        if arguments.only != 2:
            same_records(Path(name), count)
        if arguments.only != 1:
            throughput(Path(name), count // 2)
    ray.shutdown()


if __name__ == "__main__":
    main()
