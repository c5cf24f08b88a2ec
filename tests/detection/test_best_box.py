"""The best box of a class, found in the graph: against what the outputs decode to, and central differences."""

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from heads import HEADS, SIDE
from onnx import ModelProto

from onnxcam import Explainer, export
from onnxcam.cli import main
from onnxcam.detection import BestBox, Detector
from onnxcam.detection.recognise import recognised
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.explained import open_graph
from onnxcam.graph.read import read

# A Softmax that is left to the host, and boxes that the file has chosen.
REFUSED = {"ultraface", "detr", "yolov10", "boxes", "rtdetr, chosen"}
EXPORTED = [name for name in HEADS if name not in REFUSED]
X = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)


@cache
def model(name: str) -> ModelProto:
    return HEADS[name][1]()


@pytest.mark.parametrize("name", EXPORTED)
def test_the_score_is_the_highest_of_the_class_and_its_map_the_derivative(name: str) -> None:
    explainer = Explainer(model(name), target=BestBox(), method="hirescam", threads=1)
    graph, _, size = open_graph(read(model(name)))
    layout = recognised(graph, size).layout
    x = np.random.default_rng(1).random((1, 3, *size), np.float32)
    outputs = Detector(model(name), threads=1).explainer.outputs  # with what suppression reads

    def best(factor: float) -> np.ndarray:
        found, rows = layout.of(outputs(x * np.float32(factor)))
        return np.asarray(found.scores(rows).max(axis=0))

    expected = best(1.0)
    (predicted,) = explainer.explain_tensor(x)
    assert predicted.class_index == expected.argmax()
    slopes = (best(1.01) - best(0.99)) / 0.02  # the layer is homogeneous in the picture
    for label in range(layout.classes):
        (explanation,) = explainer.explain_tensor(x, label)
        np.testing.assert_allclose(explanation.score, expected[label], rtol=1e-5)
        np.testing.assert_allclose(explanation.raw.sum(), slopes[label], rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_head_whose_scores_are_not_in_its_outputs_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="no product of numbers"):
        Explainer(model(name), target=BestBox())


@pytest.mark.parametrize("name", ["yolov5", "yolov8"])
def test_an_exported_detector_explains_its_best_box(name: str, tmp_path: Path) -> None:
    path = tmp_path / "detector.cam.onnx"
    done = export(model(name), path, target=BestBox(), method="layercam", threads=1)
    assert done.check is not None and done.check.identical and done.check.heatmap < 1e-4
    session = ort.InferenceSession(path)
    x = X[: 1 if session.get_inputs()[0].shape[0] == 1 else 2]
    python = Explainer(model(name), target=BestBox(), method="layercam", threads=1)
    for asked in (-1, 1):
        (heatmap,) = session.run(["heatmap"], {"x": x, "class_index": np.array([asked])})
        for mine, theirs in zip(heatmap, python.explain_tensor(x, asked), strict=True):
            np.testing.assert_allclose(mine, theirs.values, atol=1e-5)


def test_the_map_is_that_of_the_first_box_that_a_detector_explains() -> None:
    """One factor, so that a logit's map and a probability's differ by a number, which the scaling takes away."""
    settings = {"scale": 1 / 255, "mean": [0.0], "std": [1.0], "fit": "squash"}
    picture = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    detector = Detector(model("yolov8"), threshold=0.0, preprocess=settings, threads=1)
    (first,) = detector.explain_boxes(picture, [0])
    best = Explainer(model("yolov8"), target=BestBox(), method="layercam", preprocess=settings, threads=1)(picture)
    assert best.class_index == detector.detect(picture)[0].class_index
    np.testing.assert_allclose(best.values, first.values, atol=2e-4)


def test_the_command_line_exports_a_detector_and_refuses_several_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "yolo.onnx"
    source.write_bytes(model("yolov8").SerializeToString())
    assert main(["export", str(source), "-o", str(tmp_path / "yolo.cam.onnx")]) == 0
    assert "layercam at Relu_1_0" in capsys.readouterr().out
    assert main(["export", str(source), "--top", "2", "-o", str(tmp_path / "two.onnx")]) == UsageError.exit_code
    assert not (tmp_path / "two.onnx").exists()
