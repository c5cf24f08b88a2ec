"""A report of 5,000 pictures in a real browser: size, first pictures, scrolling, filters, nodes, memory.

    python -m benchmarks.report [--pictures N] [--keep FOLDER]

The pictures are 320 x 240, of 1/f noise, which compresses no better than photographs do; the maps are grids of 14 x 14
with a bump, kept as `--values png16`. Chromium is headless and draws without a GPU. Scrolling moves 400 pixels per
frame, 600 frames; a frame is late above 50 ms.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from onnxcam.audit.records import FORMAT, line
from onnxcam.report.page import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "web"))
CLASSES = 100
SIZE = (320, 240)


def noise(rng: np.random.Generator) -> Image.Image:
    """Colours of which every octave has the same contrast."""
    total = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.float32) / 6
    return Image.fromarray(np.clip((total - 128) * 1.8 + 128, 0, 255).astype(np.uint8))


def bump(rng: np.random.Generator) -> Image.Image:
    """A map of 14 x 14, enlarged: 16-bit grey."""
    y, x = np.mgrid[:14, :14]
    cx, cy, width = rng.uniform(1, 12), rng.uniform(1, 12), rng.uniform(1.5, 4)
    grid = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width**2) + 0.05 * rng.random((14, 14))
    grid = ((grid - grid.min()) / np.ptp(grid)).astype(np.float32)
    values = np.asarray(Image.fromarray(grid).resize(SIZE, Image.Resampling.BILINEAR)).clip(0, 1)
    return Image.fromarray(np.rint(values * 65535).astype(np.uint16))


def audit(folder: Path, pictures: int) -> None:
    """A folder as `onnxcam explain` leaves it."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "values").mkdir()
    labels = [f"class number {i}" for i in range(CLASSES)]
    header = {
        "format": FORMAT,
        "created": "2026-01-01T00:00:00+00:00",
        "settings": {"colormap": "jet", "opacity": 0.5, "values": "png16"},
        "classes": CLASSES,
        "labels": labels,
        "provenance": {"model": {"name": "made-up.onnx", "sha256": "0" * 64}, "method": "gradcam", "layer": "layer4"},
    }
    (folder / "run.json").write_text(json.dumps(header))
    with (folder / "records.jsonl").open("wb") as file:
        for i in range(pictures):
            rng = np.random.default_rng(i)
            name = f"batch-{i // 1000}/{i:05}.jpg"
            noise(rng).save(folder / "pictures" / f"{i:05}.jpg", quality=85)
            bump(rng).save(folder / "values" / f"{i:05}.png", compress_level=1)
            expected = int(rng.integers(CLASSES))
            found = expected if rng.random() < 0.8 else int(rng.integers(CLASSES))
            scores = np.sort(rng.dirichlet(np.ones(5) / 2))[::-1]
            top = [{"index": (found + k) % CLASSES, "label": None, "score": float(s)} for k, s in enumerate(scores)]
            record = {
                "name": name, "picture": f"pictures/{i:05}.jpg", "target": None, "expected": expected, "boxes": None,
                "status": "ok", "sha256": None, "class_index": found, "label": labels[found], "score": 9.0,
                "probability": float(scores[0]), "top": top, "expected_index": expected, "correct": found == expected,
                "layer": "layer4", "method": "gradcam", "normalize": "minmax", "clip": 100.0, "grids": [[14, 14]],
                "size": [SIZE[1], SIZE[0]], "region": [0, 0, *SIZE], "peak": [1, 1], "is_empty": False,
                "has_nan": False, "warnings": [], "found": {}, "map": {}, "localisation": None,
                "files": {"overlay": None, "values": f"values/{i:05}.png"},
            }  # fmt: skip
            file.write(line(record))


SCROLL = """new Promise(done => {
  const times = [];
  let last = null, step = 400;
  const frame = now => {
    if (last !== null) times.push(now - last);
    last = now;
    const end = document.documentElement.scrollHeight - innerHeight;
    if (scrollY >= end - 1) step = -400;
    if (times.length >= 600) return done(times);
    scrollBy(0, step);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})"""

TIMED = """(async () => {{
  const settled = () => new Promise(r => requestAnimationFrame(() => setTimeout(r)));
  const begun = performance.now();
  {};
  await settled();
  return performance.now() - begun;
}})()"""


def measure(path: Path) -> dict[str, object]:
    from browser import Browser

    with Browser(timeout=120) as browser:
        browser.send("Emulation.setDeviceMetricsOverride", width=1360, height=900, deviceScaleFactor=1, mobile=False)
        browser.open(path.resolve().as_uri())
        browser.wait("performance.getEntriesByName('complete').length")
        mark = "Math.round(performance.getEntriesByName('{}')[0].startTime)"
        found: dict[str, object] = {
            "first tiles made, ms": browser.evaluate(mark.format("first-render")),
            "first paint with content, ms": browser.evaluate(mark.format("first-contentful-paint")),
            "whole file read, ms": browser.evaluate(mark.format("complete")),
            "elements at rest": browser.evaluate("document.querySelectorAll('*').length"),
        }
        time.sleep(1)
        frames = np.array(browser.evaluate(SCROLL))
        late = f"{int((frames > 50).sum())} of {len(frames)}"
        found |= {
            "frame while scrolling, median ms": float(np.median(frames)),
            "95th percentile ms": float(np.percentile(frames, 95)),
            "longest ms": float(frames.max()),
            "late frames": late,
            "elements after scrolling": browser.evaluate("document.querySelectorAll('*').length"),
        }
        number = """document.getElementById('{0}').{1};
            document.getElementById('{0}').dispatchEvent(new Event('input', {{bubbles: true}}))"""
        for what, action in (
            ("search, ms", number.format("text", "value = '04999'")),
            ("mistakes only, ms", number.format("verdict", "selectedIndex = 2")),
            ("all again, sorted by score, ms", "document.getElementById('reset').click()"),
            ("opacity, ms", number.format("opacity", "value = 80")),
            ("large view, ms", "document.querySelector('#gallery button').click()"),
        ):
            found[what] = round(browser.evaluate(TIMED.format(action)), 1)
        found["memory of the page's scripts, MB"] = round(browser.send("Runtime.getHeapUsage")["usedSize"] / 1e6, 1)
        found["requests"] = sum(not r.startswith("data:") for r in browser.requests) - 1
        assert not browser.console, browser.console[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--keep", type=Path, help="make the audit here, or use the one that is here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary) / "audit"
        if not (folder / "run.json").exists():
            audit(folder, arguments.pictures)
        path = folder / "report.html"
        begun = time.perf_counter()
        written = write_report([folder], path)
        seconds = time.perf_counter() - begun
        print(f"{written.pictures} pictures, {written.bytes / 1e6:.1f} MB, made in {seconds:.1f} s")
        for what, value in measure(path).items():
            print(f"{what:40} {value if not isinstance(value, float) else round(value, 1)}")


if __name__ == "__main__":
    main()
