"""Two models on pictures: what moved, in whose coordinates, by which class; and the gate of the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from shades import BLUE, GREEN, RED, THREE, explanation, pair, shades, square

from onnxcam import Explainer, compare
from onnxcam.comparison import ORANGE, PURPLE, explained_pair
from onnxcam.errors import PictureError, UsageError
from onnxcam.metrics import rank_correlation
from onnxcam.targets import Element

Run = Callable[..., tuple[int, str, str]]


def test_a_model_and_its_copy_do_not_differ(folder: Path) -> None:
    found = compare("a.onnx", "same.onnx", "pictures", threads=1)
    assert [p.name for p in found.pictures] == ["blue.png", "green.png", "red.png", "white.png"]
    assert all(p.rank_correlation == 1 and p.numbers["mean_difference"] == 0 for p in found.pictures)
    assert not found.changed and found.statistics == dict.fromkeys(("mean", "least", "q25", "median", "q75"), 1.0)


def test_layout_order_of_labels_and_of_channels_make_no_difference(folder: Path) -> None:
    """The same function as an NHWC model of BGR pictures with its classes in another order."""
    turned = {"n00000001 Blue": BLUE[::-1], "n00000002 Red": RED[::-1], "n00000003 Green": GREEN[::-1]}
    onnx.save(shades(turned, layout="nhwc", channels="bgr"), "turned.onnx")
    found = compare("a.onnx", "turned.onnx", "pictures", threads=1)
    assert not found.changed and found.statistics["least"] > 0.999999
    for p in found.pictures[:3]:
        first, second = p.explained
        assert second is not None and (first.label, second.label) == (p.name[:-4], f"n0000000{second.index + 1} "
                                                                      + p.name[:-4].title())  # fmt: skip
        assert first.score == pytest.approx(second.score, abs=1e-6)
    explicit = compare("a.onnx", "turned.onnx", "pictures/red.png", "green", threads=1)
    assert [c and c.index for c in explicit.pictures[0].explained] == [1, 2]


def test_maps_of_other_grids_and_crops_meet_in_the_picture(folder: Path) -> None:
    """The second model sees the middle 16 of 32 columns, in twice as many cells."""
    onnx.save(shades(THREE, grid=16, fit="crop"), "cropped.onnx")
    picture = square((250, 40, 40), (32, 16), left=12)
    a, b = (Explainer(name, threads=1) for name in ("a.onnx", "cropped.onnx"))
    found = explained_pair(a, b, picture)
    assert (found.a.raw.shape, found.b.raw.shape) == ((8, 8), (16, 16))
    assert found.region == (8, 0, 24, 16)
    assert not found.difference[:, :8].any() and not found.difference[:, 24:].any()
    red = np.asarray(picture)[:, 8:24, 0].astype(np.float32)
    assert np.allclose(found.b.values[:, 8:24], (red - red.min()) / (red.max() - red.min()), atol=1e-5)
    x, y = found.a.peak
    assert 12 <= x < 18 and 4 <= y < 10
    assert found.numbers["rank_correlation"] == rank_correlation(found.a.values[:, 8:24], found.b.values[:, 8:24]) < 1


def test_the_class_that_a_predicts_is_explained_in_both_and_a_moved_prediction_is_said(folder: Path) -> None:
    found = compare("a.onnx", "b.onnx", "pictures", threads=1)
    by = {p.name: p for p in found.pictures}
    assert [p.name for p in found.changed] == ["green.png", "red.png", "white.png"]
    red = by["red.png"]
    assert [c.label for c in red.predicted] == ["red", "green"]
    assert [c and c.label for c in red.explained] == ["red", "red"]
    # b's `red` is what a calls `green`: the same map as a's of that class.
    swapped = explained_pair(*(Explainer(m, threads=1) for m in ("a.onnx", "b.onnx")), "pictures/red.png")
    assert np.array_equal(swapped.b.values, Explainer("a.onnx", threads=1)("pictures/red.png", "green").values)
    assert by["blue.png"].rank_correlation == 1


def test_a_class_that_b_lacks_is_a_problem_of_the_picture_and_an_error_where_it_was_asked_for(folder: Path) -> None:
    onnx.save(shades({"red": RED, "violet": BLUE}), "two.onnx")
    found = compare("a.onnx", "two.onnx", "pictures", threads=1)
    by = {p.name: p for p in found.pictures}
    assert by["green.png"].problem == "class `green` of a is no class of b"
    assert by["green.png"].explained[1] is None and by["red.png"].problem is None
    assert found.failures({"mean": -1})[-1].startswith("3 cannot be compared (`blue.png`: class `blue` of a")
    with pytest.raises(UsageError, match="class `green` of a is no class of b"):
        compare("a.onnx", "two.onnx", "pictures", "green", threads=1)
    onnx.save(shades({"red": RED, "violet": BLUE}, labelled=False), "bare.onnx")
    with pytest.raises(UsageError, match="a has 3 classes and b has 2"):
        compare("a.onnx", "bare.onnx", "pictures", 0, threads=1)


def test_a_target_that_is_no_class_is_asked_of_both_as_it_is(folder: Path) -> None:
    """a's output 0 is red, b's is green: a's maps of red and of green are what is compared."""
    explainers = [Explainer(name, target=Element("y[0]"), threads=1) for name in ("a.onnx", "b.onnx")]
    found = compare(*explainers, "pictures/red.png").pictures[0]
    both = [Explainer("a.onnx", target=Element(f"y[{i}]"), threads=1)("pictures/red.png").values for i in (0, 1)]
    assert found.rank_correlation == rank_correlation(*both) < 1
    assert [c and c.label for c in found.explained] == ["y[0]", "y[0]"] and not found.changed


def test_pictures_are_a_folder_one_or_any_number_and_bad_ones_are_listed(folder: Path) -> None:
    Path("pictures/zero.png").write_bytes(b"")
    explainers = [Explainer(m, threads=1) for m in ("a.onnx", "same.onnx")]
    several = ["pictures/red.png", np.asarray(square((1, 250, 3))), "pictures/zero.png", Path("pictures/blue.png")]
    found = compare(*explainers, several)
    assert [p.name for p in found.pictures] == ["red.png", "<array>", "blue.png"]
    assert [bad.source for bad in found.unreadable] == ["pictures/zero.png"]
    assert len(compare(*explainers, square((250, 0, 0))).pictures) == 1
    with pytest.raises(PictureError, match=r"none of the 1 pictures can be read: .*is empty"):
        compare(*explainers, "pictures/zero.png")


def test_the_json_holds_every_picture_and_the_summary(onnxcam: Run) -> None:
    code, out, _ = onnxcam("compare", "a.onnx", "b.onnx", "pictures", "--json", "--threads", "1")
    printed = json.loads(out)
    expected = compare("a.onnx", "b.onnx", "pictures", threads=1)
    assert code == 0
    assert printed["pictures"] == [p.to_json() for p in expected.pictures]
    summary = printed["summary"]
    assert summary["rank_correlation"] == expected.statistics
    assert summary["pearson"] == expected.statistics_of("pearson") != expected.statistics
    assert (summary["pictures"], summary["changed"]) == (4, 3)
    assert summary["changed_pictures"] == ["green.png", "red.png", "white.png"]
    ranked = sorted(printed["pictures"], key=lambda p: p["rank_correlation"])
    assert summary["worst"] == [p["picture"] for p in ranked] and ranked[-1]["picture"] == "blue.png"
    assert [printed[side]["model"]["name"] for side in "ab"] == ["a.onnx", "b.onnx"]


def test_the_gate_passes_or_leaves_with_code_1_and_says_which_limit(onnxcam: Run) -> None:
    files = ("compare", "a.onnx", "b.onnx", "pictures", "--threads", "1")
    least = compare("a.onnx", "b.onnx", "pictures", threads=1).statistics["least"]
    assert onnxcam(*files, "--fail-below", f"least={least - 0.001}")[0] == 0
    code, out, err = onnxcam(*files, "--fail-below", f"least={least + 0.001:.4f}", "--fail-below", "1")
    assert code == 1
    assert f"error: the explanations moved: least {least:.4f} is below {least + 0.001:.4f}; mean 0." in err
    assert onnxcam(*files, "--fail-below", "pearson.least=0.99")[2].count("pearson.least") == 1
    assert "hint: " in err and out.splitlines()[-1].endswith("the class moved on 3")
    code, out, _ = onnxcam(*files, "--fail-below", "1", "--json")
    gate = json.loads(out)["gate"]
    assert (code, gate["passed"], gate["limits"]) == (1, False, {"mean": 1.0}) and len(gate["failures"]) == 1


def test_bad_pictures_leave_code_7_and_a_failed_gate_code_1(folder: Path, onnxcam: Run) -> None:
    Path("pictures/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    code, out, err = onnxcam("compare", "a.onnx", "same.onnx", "pictures", "--threads", "1", "--fail-below", "1")
    assert code == 7 and "warning: left out: pictures/broken.jpg" in err and out.splitlines()[-1].startswith("4 pict")
    assert onnxcam("compare", "a.onnx", "b.onnx", "pictures", "--threads", "1", "--fail-below", "1")[0] == 1


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["a.onnx", "b.onnx"], 2, "two models and no picture"),
        (["a.onnx", "pictures"], 2, "one model is compared on one picture"),
        (["a.onnx", "pictures/red.png", "--fail-below", "0.5"], 2, "--fail-below is for two models"),
        (["a.onnx", "b.onnx", "pictures", "--methods", "gradcam,hirescam"], 2, "one method"),
        (["a.onnx", "b.onnx", "pictures", "--top", "2"], 2, "one class"),
        (["a.onnx", "b.onnx", "pictures", "--fail-below", "worst=0.5"], 2, "is not R or WHAT=R"),
        (["a.onnx", "b.onnx", "pictures", "--fail-below", "1.5"], 2, "is not R or WHAT=R"),
        (["a.onnx", "b.onnx", "pictures", "--target", "violet"], 2, "violet"),
        (["a.onnx", "none.onnx", "pictures"], 3, "none.onnx"),
        (["a.onnx", "none.png"], 5, "none.png: no such file"),
        (["a.onnx", "pictures/red.png", "-o", "no/out.png"], 6, "there is no folder no"),
        (["a.onnx", "pictures/red.png", "--methods", "gradcm"], 2, "there is no method `gradcm`"),
    ],
)
def test_what_cannot_be_compared_is_refused(onnxcam: Run, argv: list[str], code: int, message: str) -> None:
    before = sorted(Path().rglob("*"))
    found, out, err = onnxcam("compare", *argv)
    assert (found, out) == (code, "") and message in err and "Traceback" not in err
    assert sorted(Path().rglob("*")) == before


def test_one_picture_is_drawn_beside_where_the_command_runs(folder: Path, onnxcam: Run) -> None:
    assert onnxcam("compare", "a.onnx", "b.onnx", "pictures/red.png", "--threads", "1")[0] == 0
    with Image.open("red.compare.cam.png") as drawn:
        assert drawn.format == "PNG"
    code, out, _ = onnxcam(
        "compare", "a.onnx", "b.onnx", "pictures", "--threads", "1", "-o", "worst.jpg", "--worst", "2"
    )
    assert code == 0 and out.rstrip().endswith("-> worst.jpg")
    with Image.open("worst.jpg") as drawn:
        assert drawn.format == "JPEG"


def test_a_difference_is_purple_where_a_shows_more_orange_where_b_does_and_grey_where_they_agree() -> None:
    a, b = np.zeros((1, 4)), np.zeros((1, 4))
    a[0, 0], b[0, 1], b[0, 2] = 0.5, 0.5, 0.25
    panel = pair(a, b).row().panels[3]
    assert panel is not None and panel.scale is not None
    shown = np.asarray(panel.image)[0].astype(int)
    grey = 100 // 2 + 127  # the picture is 100 everywhere
    half = [(grey + c) / 2 for c in ORANGE]
    assert shown[0].tolist() == list(PURPLE) and shown[1].tolist() == list(ORANGE)
    assert np.abs(shown[2] - half).max() <= 0.5 and shown[3].tolist() == [grey] * 3
    assert (panel.scale.left, panel.scale.right) == ("-0.5", "+0.5")
    ends = panel.scale.colors[[0, -1]].tolist()
    assert ends == [list(PURPLE), list(ORANGE)]


@pytest.mark.parametrize(("most", "span"), [(1e-7, "0.25"), (0.25, "0.25"), (0.26, "0.5"), (0.51, "1"), (1.0, "1")])
def test_the_scale_is_the_least_of_three_that_holds_the_difference(most: float, span: str) -> None:
    panel = pair([[0, 1]], [[most, 1]]).row().panels[3]
    assert panel is not None and panel.scale is not None
    assert (panel.scale.left, panel.scale.right) == (f"-{span}", f"+{span}")


def test_maps_of_other_classes_have_no_difference(folder: Path) -> None:
    found = explained_pair(
        Explainer("a.onnx", threads=1),
        Explainer(shades({"violet": RED, "pink": BLUE}), threads=1),
        "pictures/red.png",
    )
    assert found.row().panels[3] is None
    assert explanation(np.eye(2)).label == "red" and "class `red` of a is no class of b" in found.row().heading
