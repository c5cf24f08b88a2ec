"""Files that explain other targets than a class: the same maps as Python's, by ONNX Runtime alone."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from target_networks import ROW, SHIFT, network, segmenter, two_inputs

from onnxcam import Explainer, export
from onnxcam.errors import UsageError
from onnxcam.targets import Against, Element, Function, Linear, Segmentation, Similarity, TargetSpec


def run(path: Path, feeds: dict[str, np.ndarray], output: str = "heatmap") -> np.ndarray:
    return ort.InferenceSession(path).run([output], feeds)[0]


def inputs(path: Path) -> list[str]:
    return [i.name for i in ort.InferenceSession(path).get_inputs()]


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 1, 4, 4)).astype(np.float32)


@pytest.fixture
def wide() -> np.ndarray:
    return np.random.default_rng(8).standard_normal((2, 3, 8, 12)).astype(np.float32) * 2


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("end", ["logits", "channels last", "argmax", "sigmoid"])
def test_a_segmenter_takes_the_class_and_predicts_the_region(
    tmp_path: Path, wide: np.ndarray, end: str, batch: str
) -> None:
    path, spec = tmp_path / "s.onnx", Segmentation()
    done = export(segmenter(end, batch), path, target=spec, layer="a", method="hirescam")
    assert done.check is not None and done.inputs == ("x", "class_index")
    python = Explainer(segmenter(end, batch), target=spec, layer="a", method="hirescam")
    for c in (-1, 1, 2):
        (expected,) = python.explain_tensor(wide[:1], c)
        found = run(path, {"x": wide[:1], "class_index": np.array([c])})
        np.testing.assert_allclose(found[0], expected.values, atol=1e-5)


def test_a_region_and_a_class_that_are_named_are_built_in(tmp_path: Path, wide: np.ndarray) -> None:
    spec = Segmentation(2, box=(2, 1, 9, 6))
    done = export(segmenter(), tmp_path / "s.onnx", target=spec, layer="a")
    assert done.inputs == ("x",)
    expected = Explainer(segmenter(), target=spec, layer="a").explain_tensor(wide)
    found = run(tmp_path / "s.onnx", {"x": wide})
    np.testing.assert_allclose(found, [e.values for e in expected], atol=1e-5)


@pytest.mark.parametrize("unlike", [False, True])
def test_the_reference_of_a_likeness_is_an_input_unless_it_is_named(
    tmp_path: Path, x: np.ndarray, unlike: bool
) -> None:
    export(network(), tmp_path / "open.onnx", target=Similarity(unlike=unlike), layer="a")
    assert inputs(tmp_path / "open.onnx") == ["x", "reference"]
    python = Explainer(network(), target=Similarity(unlike=unlike), layer="a")
    rows = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    each = [Similarity(row, unlike=unlike) for row in rows]
    expected = [e.values for e in python.explain_tensor(x, each)]
    np.testing.assert_allclose(run(tmp_path / "open.onnx", {"x": x, "reference": rows}), expected, atol=1e-5)
    export(network(), tmp_path / "built.onnx", target=each[1], layer="a")
    assert inputs(tmp_path / "built.onnx") == ["x"]
    np.testing.assert_allclose(run(tmp_path / "built.onnx", {"x": x})[1], expected[1], atol=1e-5)


TARGETS: dict[str, TargetSpec] = {
    "element": Element("y[1]"),
    "against": Against(0, 2),
    "function": Function(lambda op, outputs: op.ReduceLogSumExp(outputs["y"], [1], keepdims=0)),
    "linear": Linear({"y": [1.0, 2, -3]}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_named_whole_needs_no_input(tmp_path: Path, x: np.ndarray, name: str) -> None:
    done = export(network(), tmp_path / "t.onnx", target=TARGETS[name], layer="a", method="hirescam")
    assert done.inputs == ("x",) and done.check is not None
    expected = Explainer(network(), target=TARGETS[name], layer="a", method="hirescam").explain_tensor(x)
    np.testing.assert_allclose(run(tmp_path / "t.onnx", {"x": x}), [e.values for e in expected], atol=1e-5)
    model = onnx.load(tmp_path / "t.onnx")
    record = json.loads(next(p.value for p in model.metadata_props if p.key == "onnxcam.export"))
    assert record["target"]["kind"] == name


def test_the_rival_that_is_not_named_is_found_in_the_graph_and_the_class_is_the_input(
    tmp_path: Path, x: np.ndarray
) -> None:
    export(network(), tmp_path / "a.onnx", target=Against(), layer="a")
    python = Explainer(network(), target=Against(), layer="a")
    for c in (-1, 0, 2):
        found = run(tmp_path / "a.onnx", {"x": x, "class_index": np.array([c])})
        np.testing.assert_allclose(found, [e.values for e in python.explain_tensor(x, c)], atol=1e-5)


def test_weights_that_are_not_given_are_inputs(tmp_path: Path, x: np.ndarray) -> None:
    export(network(), tmp_path / "l.onnx", target=Linear({}, outputs=("y",)), layer="a")
    assert inputs(tmp_path / "l.onnx") == ["x", "target_weights"]
    rows = np.eye(3, dtype=np.float32)[[2, 0]]
    expected = Explainer(network(), layer="a").explain_tensor(x, [2, 0])
    found = run(tmp_path / "l.onnx", {"x": x, "target_weights": rows})
    np.testing.assert_allclose(found, [e.values for e in expected], atol=1e-5)


def test_inputs_beside_the_picture_stay_inputs(tmp_path: Path, x: np.ndarray) -> None:
    feeds = {"row": ROW, "shift": SHIFT}
    done = export(two_inputs(), tmp_path / "two.onnx", layer="a", feeds=feeds)
    assert done.inputs == ("x", "row", "shift", "class_index")
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    fed = {"x": x, "row": rows, "shift": SHIFT.astype(np.float32), "class_index": np.array([1])}
    expected = Explainer(two_inputs(), layer="a", feeds=feeds).explain_tensor(x, 1, feeds={"row": rows})
    np.testing.assert_allclose(run(tmp_path / "two.onnx", fed), [e.values for e in expected], atol=1e-5)


def test_a_file_without_classes_has_no_highest_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the top 2 classes"):
        export(network(), tmp_path / "t.onnx", target=Element("y[1]"), layer="a", top=2)
