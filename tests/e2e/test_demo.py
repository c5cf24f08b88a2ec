"""On the bundled pictures, whose objects have known boxes: maps show the explained object and depend on the weights."""

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from PIL import Image

from onnxcam import Explainer
from onnxcam.cli import main
from onnxcam.demo import FOLDER, PICTURES, demo_boxes
from onnxcam.explanation import Explanation

Box = tuple[int, int, int, int]
OBJECTS = [(name, label, box) for name, objects in demo_boxes().items() for label, box in objects]
METHODS = ["gradcam", "hirescam", "cam"]


def maps(model: ModelProto | None = None, method: str = "gradcam") -> list[Explanation]:
    """One explanation per (picture, object)."""
    explainer = Explainer(model or FOLDER / "demo.onnx", method=method, threads=1)
    return [explainer(PICTURES / name, label) for name, label, _ in OBJECTS]


def inside(point: tuple[int, int], box: Box) -> bool:
    x, y = point
    x0, y0, x1, y1 = box
    return x0 <= x < x1 and y0 <= y < y1


def share(values: np.ndarray, box: Box) -> float:
    """How much of the map's mass lies in a box."""
    x0, y0, x1, y1 = box
    return float(values[y0:y1, x0:x1].sum() / values.sum())


@pytest.mark.parametrize("method", METHODS)
def test_the_peak_lies_in_the_box_of_the_explained_object_for_nine_of_ten(method: str) -> None:
    explanations = maps(method=method)
    hits = [inside(e.peak, box) for e, (_, _, box) in zip(explanations, OBJECTS, strict=True)]
    chance = np.mean([(x1 - x0) * (y1 - y0) for _, _, (x0, y0, x1, y1) in OBJECTS]) / explanations[0].values.size
    assert len(hits) >= 12 and chance < 0.15
    assert np.mean(hits) >= 0.9, [(n, k) for (n, k, _), hit in zip(OBJECTS, hits, strict=True) if not hit]


def pairs() -> list[tuple[str, tuple[str, Box], tuple[str, Box]]]:
    return [(name, a, b) for name, objects in demo_boxes().items() for a, b in combinations(objects, 2)]


@pytest.mark.parametrize(("name", "first", "second"), pairs(), ids=lambda v: v[0] if isinstance(v, tuple) else v)
def test_two_classes_of_one_picture_light_their_own_boxes(
    name: str, first: tuple[str, Box], second: tuple[str, Box]
) -> None:
    explainer = Explainer(FOLDER / "demo.onnx", threads=1)
    for (label, own), (_, other) in ((first, second), (second, first)):
        values = explainer(PICTURES / name, label).values
        assert share(values, own) > 5 * share(values, other)


def shuffled(names: set[str], seed: int) -> ModelProto:
    """The demo model with the values of these weights in random order: the same numbers, nothing learnt."""
    model = onnx.load(FOLDER / "demo.onnx")
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(rng.permutation(array.ravel()).reshape(array.shape), tensor.name))
    return model


def weights(op_types: set[str]) -> list[str]:
    """The weights of the operators of these types, in the order of the graph."""
    model = onnx.load(FOLDER / "demo.onnx")
    return [n.input[1] for n in model.graph.node if n.op_type in op_types]


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean ranks, ties shared."""
    _, where, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[where]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def test_rank_correlation_is_one_for_any_rising_function_and_minus_one_for_a_falling_one() -> None:
    x = np.array([0.1, 3.0, -2.0, 0.4])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1) and rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(3 / np.sqrt(10))


@pytest.mark.parametrize("part", ["first convolution", "linear layer"])
def test_shuffled_weights_change_the_maps(part: str) -> None:
    """Sanity checks of Adebayo et al., 2018: a map that survives forgetting the weights explains nothing."""
    name = weights({"Conv"})[0] if part == "first convolution" else weights({"Gemm", "MatMul"})[-1]
    learnt, forgot = maps(), [maps(shuffled({name}, seed)) for seed in range(3)]
    correlations = [rank_correlation(a.raw, b.raw) for f in forgot for a, b in zip(learnt, f, strict=True)]
    hits = [inside(e.peak, box) for f in forgot for e, (_, _, box) in zip(f, OBJECTS, strict=True)]
    assert np.mean(correlations) < 0.4
    assert np.mean(hits) < 0.4


def test_the_same_weights_give_the_same_maps() -> None:
    for a, b in zip(maps(), maps(shuffled(set(), 0)), strict=True):
        assert rank_correlation(a.raw, b.raw) == pytest.approx(1, abs=1e-6)


def test_the_top_class_is_an_object_of_the_picture() -> None:
    explainer = Explainer(FOLDER / "demo.onnx", threads=1)
    boxes = demo_boxes()
    right = [explainer(PICTURES / name).label in {label for label, _ in objects} for name, objects in boxes.items()]
    assert np.mean(right) >= 0.95


def test_demo_writes_the_picture_and_one_overlay_per_object_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["demo.cam.png"]
    labels = [label for label, _ in demo_boxes()["demo.jpg"]]
    with Image.open("demo.cam.png") as sheet, Image.open(PICTURES / "demo.jpg") as picture:
        assert sheet.size == ((1 + len(labels)) * picture.width + len(labels) * 8, picture.height)
        shown = np.asarray(sheet.crop((0, 0, *picture.size)))
        assert np.array_equal(shown, np.asarray(picture.convert("RGB")))
        explainer = Explainer(FOLDER / "demo.onnx")
        for i, label in enumerate(labels, 1):
            left = i * (picture.width + 8)
            panel = np.asarray(sheet.crop((left, 0, left + picture.width, picture.height)))
            overlay = np.asarray(explainer(PICTURES / "demo.jpg", label).overlay())
            assert np.abs(panel.astype(int) - overlay).max() <= 1
    out = capsys.readouterr().out
    assert all(f"{label}: gradcam at " in out for label in labels)


def test_demo_takes_another_place_and_refuses_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "-o", str(tmp_path / "here.png")]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["here.png"]
    assert main(["demo", "-o", str(tmp_path / "no" / "here.png")]) == 6
    assert "there is no folder" in capsys.readouterr().err
