"""One picture by methods, layers and classes: what stands where, and how a sheet is laid out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from shades import square

from onnxcam import Explainer
from onnxcam.comparison import grid
from onnxcam.errors import UsageError
from onnxcam.runtime import Session
from onnxcam.sheet import CELL, COLUMN, GAP, INK, MARGIN, Legend, Panel, Row, Scale, sheet, wrapped

Run = Callable[..., tuple[int, str, str]]


def test_rows_are_classes_by_layers_columns_are_methods_and_each_map_is_the_explainers(folder: Path) -> None:
    methods, layers, targets = ["hirescam", "layercam", "sobel"], ["a", "e"], ["blue", 0]
    found = grid("a.onnx", "pictures/white.png", methods=methods, layers=layers, targets=targets, threads=1)
    assert [[(e.label, e.layer, e.method) for e in row] for row in found.rows] == [
        [(label, layer, "hirescam"), (label, layer, "layercam"), (label, "x", "sobel")]
        for label in ("blue", "red")
        for layer in layers
    ]
    for row in found.rows:
        for e in row:
            alone = Explainer("a.onnx", method=e.method, layer=None if e.method == "sobel" else e.layer, threads=1)
            assert np.array_equal(e.values, alone("pictures/white.png", e.label).values)


def test_the_predicted_class_the_highest_and_those_named(folder: Path) -> None:
    def labels(**targets: object) -> list[str]:
        return [row[0].label or "" for row in grid("a.onnx", "pictures/white.png", threads=1, **targets).rows]  # type: ignore[arg-type]

    assert labels() == ["green"]
    assert labels(targets=3) == ["green", "blue", "red"]
    assert labels(targets=["red", None]) == ["red", "green"]
    with pytest.raises(UsageError, match="there is no class"):
        labels(targets=[])
    with pytest.raises(UsageError, match="there is no method"):
        labels(methods=[])


def test_all_classes_of_a_method_share_one_run_of_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    run = Session.run

    def counted(self, feeds, outputs=None):
        fed.extend(len(v) for name, v in feeds.items() if name == "x")
        return run(self, feeds, outputs)

    Explainer("a.onnx")
    monkeypatch.setattr(Session, "run", counted)
    explainers = 2
    once = len(fed)
    grid("a.onnx", "pictures/red.png", methods=["gradcam", "hirescam"], targets=1, threads=1)
    one_class = len(fed) - once
    grid("a.onnx", "pictures/red.png", methods=["gradcam", "hirescam"], targets=3, threads=1)
    assert len(fed) - once - one_class == one_class and one_class >= explainers


def test_a_sheet_shows_every_overlay_in_its_place(folder: Path) -> None:
    square((250, 40, 40), (CELL, CELL)).save("large.png")  # shown as it is, not scaled
    found = grid("a.onnx", "large.png", methods=["gradcam", "hirescam"], targets=["red", "blue"], threads=1)
    drawn = np.asarray(found.sheet())
    assert drawn.shape[1] == 2 * MARGIN + 3 * CELL + 2 * GAP
    tops = []
    for column, images in enumerate(
        zip(*([Image.open("large.png"), *(e.overlay() for e in row)] for row in found.rows), strict=True)
    ):
        x = MARGIN + column * (CELL + GAP)
        strip = drawn[:, x : x + CELL]
        places = [
            [y for y in range(len(strip) - CELL) if np.array_equal(strip[y : y + CELL], np.asarray(image))]
            for image in images
        ]
        tops.append(places)
    (first, second), *overlays = tops
    assert first == second and len(first) == 2 and first[1] > first[0] + CELL  # the picture, in both rows
    assert overlays == [[first[:1], first[1:]]] * 2


def test_two_panels_never_touch_and_an_empty_place_is_white() -> None:
    black = Panel(Image.new("RGB", (40, 20)), ("a caption that takes more than one line of text, as it is long",) * 2)
    drawn = np.asarray(sheet(("one", "two"), [Row("first", [black, None]), Row("", [None, black])]))
    left, right = drawn[:, MARGIN : MARGIN + CELL], drawn[:, MARGIN + CELL + GAP : -MARGIN]
    dark = [np.flatnonzero((side < 40).all(axis=(1, 2))) for side in (left, right)]  # whole rows of the panel
    assert [len(rows) for rows in dark] == [CELL // 2, CELL // 2] and dark[0][-1] < dark[1][0]
    assert (drawn[:, MARGIN + CELL : MARGIN + CELL + GAP] > 200).mean() > 0.9


def test_a_scale_runs_from_left_to_right_below_its_panel() -> None:
    colours = np.zeros((256, 3), np.uint8)
    colours[:, 0] = np.arange(256)
    panel = Panel(Image.new("RGB", (100, 100), (0, 0, 255)), (), Scale(colours, "low", "", "high"))
    drawn = np.asarray(sheet(("",), [Row("", [panel])], Legend(Scale(colours, "0", "", "1"), "what it is")))
    bars = [y for y in range(len(drawn)) if (np.diff(drawn[y, MARGIN : MARGIN + CELL, 0].astype(int)) >= 0).all()
            and drawn[y, MARGIN, 0] <= 2 and drawn[y, MARGIN + CELL - 1, 0] >= 253]  # fmt: skip
    assert len(bars) == 24  # two bars of 12 rows


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=60), st.integers(8, 300))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = wrapped(text, width, 14)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    font = ImageFont.load_default(14)
    assert all(font.getlength(line) <= width or len(line) == 1 for line in lines)


def test_text_is_drawn_with_the_font_that_is_asked_for(folder: Path, onnxcam: Run) -> None:
    """What is no font is refused before anything is written."""
    Path("own.ttf").write_bytes(ImageFont.load_default(14).font_bytes)  # type: ignore[union-attr]
    rows = [Row("", [Panel(Image.new("RGB", (9, 9)))])]
    drawn = sheet(("AVAVA Toto",), rows, font="own.ttf")
    expected = Image.new("RGB", drawn.size, "white")
    ImageDraw.Draw(expected).text((MARGIN, MARGIN), "AVAVA Toto", INK, ImageFont.truetype("own.ttf", COLUMN))
    heading = np.s_[: MARGIN + COLUMN + 4]
    assert np.array_equal(np.asarray(drawn)[heading], np.asarray(expected)[heading])
    assert (np.asarray(drawn)[heading] < 100).any()
    Path("bad.ttf").write_bytes(b"no font")
    with pytest.raises(UsageError, match=r"font bad\.ttf cannot be read"):
        sheet(("x",), rows, font="bad.ttf")
    code, _, err = onnxcam("compare", "a.onnx", "pictures/red.png", "--font", "bad.ttf", "--threads", "1")
    assert code == 2 and "font bad.ttf cannot be read" in err and not list(Path().glob("*.cam.png"))


def test_the_command_writes_the_sheet_and_says_the_classes(folder: Path, onnxcam: Run) -> None:
    files = ("compare", "a.onnx", "pictures/white.png", "--methods", "gradcam,hirescam", "--threads", "1")
    code, out, _ = onnxcam(*files, "--targets", "red, blue", "--layers", "a")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["class", "red", "blue", "gradcam,"]
    assert out.splitlines()[-1] == "gradcam, hirescam -> white.compare.cam.png"
    with Image.open("white.compare.cam.png") as drawn:
        expected = grid(
            "a.onnx", "pictures/white.png", methods=["gradcam", "hirescam"], targets=["red", "blue"], threads=1
        )
        assert np.array_equal(np.asarray(drawn), np.asarray(expected.sheet()))


def test_the_json_of_a_grid_is_a_record_per_map(folder: Path, onnxcam: Run) -> None:
    code, out, _ = onnxcam(
        "compare", "a.onnx", "pictures/white.png", "--top", "2", "-o", "g.png", "--json", "--threads", "1"
    )
    printed = json.loads(out)
    assert code == 0 and printed["output"] == "g.png"
    assert [(e["label"], e["method"]) for e in printed["explanations"]] == [("green", "gradcam"), ("blue", "gradcam")]


def test_a_class_without_a_map_is_said_in_the_sheet_and_on_stderr(folder: Path, onnxcam: Run) -> None:
    Image.new("RGB", (16, 16), (0, 250, 0)).save("green.png")
    code, _, err = onnxcam("compare", "a.onnx", "green.png", "--targets", "blue", "--threads", "1")
    assert code == 0 and "warning: blue, gradcam: the map is empty" in err
