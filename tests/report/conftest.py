"""One audit of ten pictures and two broken files, and a browser."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "web"))  # makes `browser` importable

from browser import CHROMIUM, Browser
from hostile_labels import HOSTILE

from onnxcam.audit.records import Item, read_records
from onnxcam.audit.run import Output, audit
from onnxcam.demo import FOLDER, PICTURES
from onnxcam.explainer import Explainer

MODEL = FOLDER / "demo.onnx"


@pytest.fixture(scope="session")
def explainer() -> Explainer:
    return Explainer(MODEL, labels=HOSTILE, threads=1)


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Ten pictures, two broken files; the expected classes of the last four are wrong; boxes of two."""
    folder = tmp_path_factory.mktemp("pictures")
    items = []
    first = {"arrow": 0, "crescent": 1, "cross": 2, "demo": 4, "flower": 3, "key": 4, "ladder": 5, "ring": 6}
    sources = sorted(PICTURES.glob("*.jpg"))
    for i, source in enumerate([*sources, *sources][:10]):
        path = folder / f"<i>{i} & more.png"
        pixels = np.asarray(Image.open(source).convert("RGB").resize((160 + 16 * i, 128)))
        Image.fromarray(np.roll(pixels, 11 * (i // 5), 1)).save(path, compress_level=1)
        expected = first[source.stem.split("-")[0]] if i < 6 else 7
        boxes = ((0.0, 0.0, 40.0, 40.0),) if i < 2 else None
        items.append(Item(f"<i>{i} & more.png", str(path), expected=expected, boxes=boxes))
    items += [Item(name, str(folder / name)) for name in ("<broken>.png", "gone.png")]
    (folder / "<broken>.png").write_bytes(b"\x89PNG broken")
    return items


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory, explainer: Explainer, items: list[Item]) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "</title><b>out"
    audit(explainer, items, folder, output=Output(overlays=False, values="npy"), workers=1)
    return folder


@pytest.fixture(scope="session")
def half_known(
    tmp_path_factory: pytest.TempPathFactory, explainer: Explainer, items: list[Item], audited: Path
) -> Path:
    """The same pictures: two expected rightly, one wrongly, one as an unknown class, of six nothing said."""
    known = {r["name"]: r["correct"] for r in read_records(audited) if r["status"] == "ok"}
    right, wrong = ([item for item in items if known.get(item.name) is judged] for judged in (True, False))
    kept = {item.name: item.expected for item in (*right[:2], *wrong[:1])} | {right[2].name: "unicorn"}
    folder = tmp_path_factory.mktemp("audit") / "half-known"
    some = [replace(item, expected=kept.get(item.name)) for item in items]
    audit(explainer, some, folder, output=Output(overlays=False, values="npy"), workers=1)
    return folder


@pytest.fixture(scope="session")
def by_layercam(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> Path:
    """The same pictures by another method, with overlays but no values."""
    folder = tmp_path_factory.mktemp("audit") / "layercam"
    layercam = Explainer(MODEL, labels=HOSTILE, threads=1, method="layercam")
    audit(layercam, items, folder, output=Output(overlay_format="jpg"), workers=1)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the page was not opened")
    with Browser("--window-size=1200,900") as opened:
        opened.send("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
        yield opened
