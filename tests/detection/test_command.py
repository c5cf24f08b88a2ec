"""`onnxcam explain` on a detector, in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from heads import HEADS, Net, squares, ssd
from PIL import Image

from onnxcam.cli import main
from onnxcam.detection import Detector

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `onnxcam explain squares.onnx pair.png` in a folder of its own; pair.png has two red cells."""
    monkeypatch.chdir(tmp_path)
    onnx.save(squares(), "squares.onnx")
    Path("labels.txt").write_text("square\nnothing\n")
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:16, 8:16, 0], pixels[40:48, 48:56, 0] = 255, 230
    Image.fromarray(pixels).save("pair.png")

    def call(*arguments: str, model: str = "squares.onnx") -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["explain", model, "pair.png", "--labels", "labels.txt", "--threads", "1", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_it_simply_works_and_lists_the_boxes(run: Run) -> None:
    code, out, err = run()
    assert code == 0
    assert [line.split() for line in out.splitlines()[:3]] == [
        ["box", "class", "label", "score", "x0", "y0", "x1", "y1"],
        ["0", "0", "square", "0.9820", "8", "8", "16", "16"],
        ["1", "0", "square", "0.8848", "48", "40", "56", "48"],
    ]
    assert out.splitlines()[3].startswith("2 boxes: layercam at ") and out.endswith("-> pair.cam.png\n")
    assert "note: detector `yolox`: (N, A, 5 + C)" in err
    image = np.asarray(Image.open("pair.cam.png"))
    assert tuple(image[12, 8]) == tuple(image[44, 48]) == (255, 255, 255)


def test_one_box_alone(run: Run) -> None:
    code, out, _ = run("--box", "1", "-o", "one.npy")
    values = np.load("one.npy")
    assert code == 0 and out.splitlines()[-1].startswith("square: ") and len(out.splitlines()) == 4
    assert values[40:48, 48:56].max() == pytest.approx(1) and values[8:16, 8:16].max() == 0


def test_a_file_for_each_box(run: Run) -> None:
    assert run("--per-box")[0] == 0
    assert {p.name for p in Path().glob("pair.*.png")} == {"pair.box0.cam.png", "pair.box1.cam.png"}
    assert run("--per-box", "-o", "out.npy")[0] == 0
    first, second = np.load("out.box0.npy"), np.load("out.box1.npy")
    assert first[12, 12] == second[44, 52] > 0.9 and first[44, 52] == second[12, 12] == 0


def test_inside_a_box(run: Run) -> None:
    run("--box", "0", "--inside", "-o", "in.npy")
    values = np.load("in.npy")
    assert np.count_nonzero(values[8:16, 8:16]) == np.count_nonzero(values) > 0 and values[8:16, 8:16].min() == 0


def test_a_class_a_threshold_and_the_best_anchors(run: Run) -> None:
    assert "1 boxes" not in run("--threshold", "0.9")[1] and len(run("--threshold", "0.9")[1].splitlines()) == 3
    assert run("--target", "square")[1].splitlines()[-1].startswith("2 boxes")
    assert run("--best-anchors", "1")[1].splitlines()[-1].startswith("2 anchors: ")


def test_json_holds_everything(run: Run) -> None:
    code, out, err = run("--json", "--per-box")
    records = json.loads(out)
    assert code == 0 and err == "" and [r["boxes"][0]["index"] for r in records] == [0, 1]
    assert [r["output"] for r in records] == ["pair.box0.cam.png", "pair.box1.cam.png"]
    assert [[b["peak"] for b in r["detected"]] for r in records] == [[[11, 11], None], [None, [51, 43]]]
    both = json.loads(run("--json")[1])
    assert both["detected"] == both["boxes"] == [r["boxes"][0] for r in records]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("--box", "2"), 2, "box 2 does not exist: 2 were found: 0 `square`, 1 `square`", "choose"),
        (("--target", "nothing"), 2, "no box is of class `nothing`: found square", "lower"),
        (("--target", "dog"), 2, "no class is called `dog`", "labels"),
        (("--target", "square", "--box", "0"), 2, "a box and a class", "--box"),
        (("--threshold", "0.999"), 2, "no box scores 0.999 or more: the best is `square` with 0.98", "lower"),
        (("--detector", "yolo"), 2, "unknown detector `yolo`", "yolov8"),
        (("--anchors", "no.npy"), 2, "anchors no.npy: no such file", ".npy"),
        (("--anchors", "pair.png"), 2, "anchors pair.png: not a .npy file", "numpy.save"),
        (("--best-anchors", "1", "--target", "square"), 2, "the best anchors are of all classes and no box", "class"),
        (("--best-anchors", "1", "--inside"), 2, "the best anchors are of all classes and no box", "inside"),
        (("--best-anchors", "1", "--box", "0"), 2, "the best anchors are explained in place of boxes", "--box"),
        (("--score", "probability"), 2, "--score probability is of classes", "--box-score"),
        (("--method", "nothing"), 2, "no method `nothing`", "layercam"),
    ],
)
def test_bad_input(run: Run, arguments: tuple[str, ...], code: int, message: str, hint: str) -> None:
    found, out, err = run(*arguments)
    error, _, advice = err.partition("\n\nhint: ")
    assert (found, out) == (code, "") and message in error and hint in advice
    assert not Path("pair.cam.png").exists()


def test_anchors_of_a_wrong_shape(run: Run) -> None:
    onnx.save(ssd(False), "ssd.onnx")
    np.save("a.npy", np.ones((4, 5)))
    code, _, err = run("--anchors", "a.npy", model="ssd.onnx")
    assert code == 2 and "anchors a.npy: float64 of shape [4, 5]" in err


def test_box_options_on_a_classifier_are_refused(run: Run) -> None:
    net = Net(levels=1)
    net.output(net.Flatten(net.GlobalAveragePool(net.maps[0]), axis=1), "y", rank=2)
    onnx.save(net.model(), "classifier.onnx")
    code, _, err = run("--box", "0", model="classifier.onnx")
    assert code == 4 and "no detector's that onnxcam knows: `y` [1, 8]" in err


def test_check_and_layers_know_a_detector(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "squares.onnx"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["Relu_3_0", "(automatic)"]
    assert main(["check", "squares.onnx"]) == 0
    assert "detector yolox: (N, A, 5 + C), boxes not decoded" in capsys.readouterr().out


@pytest.mark.parametrize("name", HEADS)
def test_check_and_layers_take_for_a_detector_what_explain_does(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, make = HEADS[name]
    onnx.save(make(), tmp_path / "model.onnx")
    detector = Detector(make())
    assert detector.kind == kind
    assert main(["check", str(tmp_path / "model.onnx")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:-1] if line)
    assert lines["detector"].startswith(f"{kind}: ") and "score" not in lines
    assert main(["layers", str(tmp_path / "model.onnx"), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]["name"]
    assert (first,) == detector.explainer.layers


@pytest.mark.parametrize("name", HEADS)
def test_the_gradient_of_every_kind_is_verified_at_the_layer_that_check_shows(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what TopK or NonMaxSuppression choose from, where they do: the least move may change the choice."""
    onnx.save(HEADS[name][1](), tmp_path / "model.onnx")
    assert main(["check", str(tmp_path / "model.onnx"), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["verification"]
    assert found["layer"] == report["automatic"] is not None
    assert found["verified"] and found["oracle"] == "float64"
    assert found["error"] < 1e-5 and found["derivative"] > 1


def test_what_is_verified_is_what_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of SSD the class scores; its other output, the boxes, is not part of them."""
    onnx.save(ssd(), tmp_path / "model.onnx")
    assert main(["check", str(tmp_path / "model.onnx"), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "gradient verified at Relu_1_0: relative error" in said and "\n         of scores\n" in said


def test_boxes_and_another_target_are_refused(run: Run) -> None:
    code, _, err = run("--box", "0", "--element", "output[0,4]")
    assert code == 2 and "boxes and --element" in err


def test_another_target_of_a_detector_is_explained_as_asked(run: Run) -> None:
    code, out, _ = run("--element", "output[9,4]", "--fit", "letterbox", "--method", "hirescam")
    assert code == 0 and "layercam" not in out and "box" not in out
