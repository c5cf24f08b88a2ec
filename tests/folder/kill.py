"""`python tests/folder/kill.py [KILLS] [PICTURES]`: kill -9 at random instants, resume, compare with one whole run.

Every kill falls at a random instant of a run over the demo model; the folder is gone on with until it is finished,
which takes several kills. Then it must be, byte for byte and but for `created`, what one uninterrupted run left.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from onnxcam.demo import FOLDER, PICTURES

MODEL = FOLDER / "demo.onnx"
COMMAND = [sys.executable, "-m", "onnxcam.cli", "explain", str(MODEL), "--values", "png16", "--threads", "1", "-r"]


def make_pictures(folder: Path, count: int, size: tuple[int, int] = (96, 72)) -> None:
    """Small pictures, no two alike: the demo's, shifted by seeded amounts; every fiftieth is cut short."""
    folder.mkdir()
    sources = [Image.open(p).convert("RGB").resize(size) for p in sorted(PICTURES.glob("*.jpg"))]
    rng = np.random.default_rng(0)
    for i in range(count):
        shift = int(rng.integers(size[1])), int(rng.integers(size[0]))
        path = folder / f"{i % 7}" / f"{i:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.roll(np.asarray(sources[i % len(sources)]), shift, (0, 1))).save(path)
        if i % 50 == 49:
            path.write_bytes(path.read_bytes()[:300])


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, by relative path, as a hash; of `run.json` without the time."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "run.json":
            data = json.dumps(json.loads(data) | {"created": None}).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def start(pictures: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [*COMMAND, str(pictures), "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def check_whole(out: Path) -> int:
    """How many records a killed run left; each is whole, and so are the files it names."""
    from onnxcam.audit.records import read_records

    if not (out / "run.json").exists():
        return 0
    count = 0
    for record in read_records(out):
        count += 1
        for name in filter(None, record.get("files", {}).values()):
            with Image.open(out / name) as image:
                image.load()
    return count


def main(kills: int = 50, count: int = 500, seed: int = 0) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder / "pictures", count)
        whole = folder / "whole"
        begun = time.monotonic()
        assert start(folder / "pictures", whole).wait() == 7
        seconds = time.monotonic() - begun
        expected = contents(whole)
        print(f"one whole run: {len(expected)} files, {seconds:.1f} s", flush=True)
        done = runs = 0
        kept: list[int] = []
        while done < kills:
            out, runs = folder / f"killed{runs}", runs + 1
            while done < kills:
                process = start(folder / "pictures", out)
                try:
                    code = process.wait(rng.uniform(0.3, max(0.6, 0.6 * seconds)))
                    assert code == 7, f"ended with {code}"
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    done += 1
                    kept.append(check_whole(out))
            else:
                assert start(folder / "pictures", out).wait() == 7
            found = contents(out)
            different = [n for n in expected | found if expected.get(n) != found.get(n)]
            assert not different, f"folder {runs} differs in {different[:5]}"
            print(f"folder {runs}: {done} kills so far, identical; records at the kills: {kept}", flush=True)
            kept.clear()
    print(f"{done} kills, {runs} folders, every one identical to the uninterrupted run's")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
