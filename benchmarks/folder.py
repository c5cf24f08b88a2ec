"""A folder of pictures through `audit`, against the model alone and against what the cores could do at most."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.graphs import resnet50
from benchmarks.measure import Row, Rows, Settings, milliseconds, session
from benchmarks.memory import peak
from onnxcam.audit.folder import OutputFolder
from onnxcam.audit.records import Item, run_header
from onnxcam.audit.run import BATCH, Output, Stages, audit, fitting_threads
from onnxcam.audit.sources import Sources
from onnxcam.demo import FOLDER, PICTURES
from onnxcam.explainer import Explainer
from onnxcam.picture import MAX_PIXELS, load_picture

SIZE = 500, 375
"""Of the pictures: ImageNet's usual."""
ALONE = 8
"""Batch of the model alone, on all threads."""


def folder(settings: Settings) -> Rows:
    """Throughput with records only and with overlays; the peak of memory for few and for many pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        yield from _speed(home, settings)
        yield from _memory(home, settings)


def pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """The demo pictures, shifted by seeded amounts, as JPEG."""
    folder.mkdir()
    sources = [np.asarray(Image.open(p).convert("RGB").resize(size)) for p in sorted(PICTURES.glob("*.jpg"))]
    rng = np.random.default_rng(0)
    for i in range(count):
        shift = int(rng.integers(size[1])), int(rng.integers(size[0]))
        Image.fromarray(np.roll(sources[i % len(sources)], shift, (0, 1))).save(folder / f"{i:06}.jpg", quality=90)


def _speed(home: Path, settings: Settings) -> Rows:
    count, rounds = (8 * BATCH, 1) if settings.quick else (40 * BATCH, 9)
    pictures(home / "pictures", count, SIZE)
    model = resnet50()
    bare = session(model.SerializeToString(), settings)
    threads = fitting_threads(None) or 1
    explainer = Explainer(model, threads=threads)
    sources = Sources()
    sources.add_inputs([str(home / "pictures")])
    x = np.concatenate([explainer.preprocess(load_picture(i.path))[0] for i in sources.items[:ALONE]])

    def alone() -> float:
        return statistics.mean(milliseconds(lambda: bare.run(None, {"image": x})) for _ in range(5)) / ALONE

    def explained(output: Output) -> float:
        out = home / f"out{time.monotonic_ns()}"
        begun = time.perf_counter()
        done = audit(explainer, sources.items, out, output=output, runners=max(1, settings.threads // threads))
        assert done.explained == count
        return (time.perf_counter() - begun) * 1e3 / count

    alone()
    for what, output in (
        ("records only", Output(overlays=False)),
        ("PNG overlays", Output()),
        ("JPEG overlays", Output(overlay_format="jpg")),
    ):

        def limit(output: Output = output) -> float:
            if not output.overlays:
                return alone()
            return _stages_cpu(explainer, sources.items[: 4 * BATCH], output, home / "stages") / settings.threads

        def pair(output: Output = output, limit: Callable[[], float] = limit) -> tuple[float, float]:
            """The limit, measured before and after, and the folder's own time, milliseconds a picture."""
            before, ours = limit(), explained(output)
            return (before + limit()) / 2, ours

        limits, ours, others = zip(*(undisturbed(pair) for _ in range(rounds)), strict=True)
        ratios = [limit / mine for limit, mine in zip(limits, ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        against = "CPU time of the stages / cores" if output.overlays else f"the model alone, batch {ALONE}"
        note = f"{middle:.2f}, {1e3 / statistics.median(ours):.1f}/s; other processes took {max(others):.0%} at most"
        yield Row("folder", f"ResNet-50, {SIZE[0]}x{SIZE[1]}, {what}, a picture", statistics.median(ours), against,
                  statistics.median(limits), middle, low, high, 0.9, "higher", note=note)  # fmt: skip


def undisturbed(measure: Callable[[], tuple[float, float]], tries: int = 5) -> tuple[float, float, float]:
    """A measurement and the share of the machine that other processes took meanwhile: of some tries the least."""
    found = []
    for _ in range(tries):
        wall0, busy0, own0 = _clocks()
        first, second = measure()
        wall, busy, own = _clocks()
        found.append((((busy - busy0) - (own - own0)) / ((wall - wall0) * (os.cpu_count() or 1)), first, second))
        if found[-1][0] <= 0.05:
            break
        time.sleep(2.0)
    others, first, second = min(found)
    return first, second, others


def _clocks() -> tuple[float, float, float]:
    """Seconds: passed, busy on all processors, and of this process."""
    fields = [int(f) for f in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy, time.process_time()


def _stages_cpu(explainer: Explainer, items: list[Item], output: Output, out: Path) -> float:
    """CPU milliseconds of a picture from its file to its record on one thread, the model included."""
    with OutputFolder(out, run_header(explainer, {})) as folder:
        stages = Stages(explainer, output, folder, MAX_PIXELS)

        def batch(part: list[Item]) -> None:
            prepared = [stages.prepare(item) for item in part]
            for item, explanation in zip(part, stages.run(prepared), strict=True):  # type: ignore[arg-type]
                folder.add(stages.finish(item, explanation))

        batch(items[:BATCH])
        begun = time.thread_time()
        for start in range(0, len(items), BATCH):
            batch(items[start : start + BATCH])
        return (time.thread_time() - begun) * 1e3 / len(items)


_EXPLAIN_LIST = """
import contextlib, sys
from onnxcam.cli import main
model, listed, out = sys.argv[1:]
sys.stdin = open(listed)
with contextlib.redirect_stdout(sys.stderr):
    assert main(["explain", model, "-", "-o", out]) == 0
"""


def _memory(home: Path, settings: Settings) -> Rows:
    counts = (100, 500) if settings.quick else (100, 10_000)
    pictures(home / "small", counts[-1], (96, 72))
    peaks = []
    for count in counts:
        listed = home / f"list{count}.txt"
        listed.write_text("\n".join(os.fspath(p) for p in sorted((home / "small").iterdir())[:count]))
        peaks.append(peak(_EXPLAIN_LIST, FOLDER / "demo.onnx", listed, home / f"memory{count}") / 2**20)
    note = ", ".join(f"{count} pictures {peak:.0f} MiB" for count, peak in zip(counts, peaks, strict=True))
    yield Row("folder", "demo model, overlays: peak memory, many pictures / few", value=peaks[1] / peaks[0], target=1.1,
              note=note)  # fmt: skip
