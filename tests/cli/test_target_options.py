"""Targets and inputs beside the picture on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from colours import LABELS, Result, described
from PIL import Image

Run = Callable[..., Result]

# What is red, green and blue, cell by cell: classes are the colours.
SEGMENTER = """
    <ir_version: 8, opset_import: ["" : 18]>
    segmenter (float[N,3,8,8] x) => (int64[N,8,8] y)
    <float[3,3,1,1] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}, float[4] twice = {1, 1, 2, 2}>
    {
        q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)
        a = Relu(q)
        c = Conv(a, w)
        l = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(c, , twice)
        y = ArgMax<axis=1, keepdims=0>(l)
    }"""

# The mean of a picture times an age, in years.
AGED = """
    <ir_version: 8, opset_import: ["" : 18]>
    aged (float[N,1] age, float[N,3,8,8] x) => (float[N,3] y)
    { a = Relu(x) p = GlobalAveragePool(a) f = Flatten(p) y = Mul(f, age) }"""


@pytest.fixture
def models(folder: Path) -> Path:
    onnx.save(described(SEGMENTER), "segmenter.onnx")
    onnx.save(described(AGED), "aged.onnx")
    return folder


def record(onnxcam: Run, *argv: str) -> dict:
    result = onnxcam("explain", *argv, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_class_against_another_is_the_difference_of_their_logits(onnxcam: Run) -> None:
    logits = [record(onnxcam, "colours.onnx", "dog.png", "--target", str(c))["score"] for c in range(3)]
    found = record(onnxcam, "colours.onnx", "dog.png", "--target", "crane, bird", "--against", "tabby")
    assert found["score"] == pytest.approx(logits[1] - logits[0])
    assert found["label"] == f"{LABELS[1]} against {LABELS[0]}"
    assert found["provenance"]["target"] == {"class": 1, "against": 0}


def test_an_element_is_said_with_its_value(onnxcam: Run) -> None:
    logit = record(onnxcam, "colours.onnx", "dog.png", "--target", "0")["score"]
    result = onnxcam("explain", "colours.onnx", "dog.png", "--element=-z[0]")
    assert result.out == f"-z[0] = {-logit:.4f}: gradcam at a -> dog.cam.png\n"


def test_likeness_to_a_picture_and_to_a_file_of_numbers(onnxcam: Run, folder: Path) -> None:
    assert record(onnxcam, "colours.onnx", "dog.png", "--similar-to", "dog.png")["score"] == pytest.approx(1)
    np.save("v.npy", np.array([0, 0, 1.0]))
    assert record(onnxcam, "colours.onnx", "dog.png", "--unlike", "v.npy")["label"] == "unlike v.npy"


def test_a_region_of_a_segmenter_is_a_box_or_a_mask_of_the_picture(onnxcam: Run, models: Path) -> None:
    """The red square covers a fifth of the columns and of the rows: 24 to 31 of 40, 6 to 11 of 30."""
    mask = np.zeros((30, 40), np.uint8)
    mask[6:12, 24:32] = 255
    Image.fromarray(mask).save("mask.png")
    boxed = record(onnxcam, "segmenter.onnx", "dog.png", "--target", "0", "--region", "24,6,32,12")
    masked = record(onnxcam, "segmenter.onnx", "dog.png", "--target", "0", "--mask", "mask.png")
    assert boxed["score"] == pytest.approx(masked["score"], rel=1e-5)
    whole = record(onnxcam, "segmenter.onnx", "dog.png", "--target", "0", "--region", "0,0,40,30")
    assert whole["score"] > 0 and boxed["score"] != whole["score"]
    assert boxed["provenance"]["target"] == {"class": 0, "region": {"box": [24.0, 6.0, 32.0, 12.0]}}


def test_classes_of_a_segmenter_are_printed_with_their_share_of_the_picture(onnxcam: Run, models: Path) -> None:
    result = onnxcam("explain", "segmenter.onnx", "dog.png")
    assert "share of picture" in result.out
    assert "`y` taken for a segmentation of 3 classes in 8x8" in result.err


def test_an_input_beside_the_picture_is_fed(onnxcam: Run, models: Path) -> None:
    young = record(onnxcam, "aged.onnx", "dog.png", "--feed", "age=2")
    np.save("age.npy", np.array([[6.0]]))
    old = record(onnxcam, "aged.onnx", "dog.png", "--feed", "age=age.npy", "--input", "x")
    assert old["score"] == pytest.approx(3 * young["score"])
    assert onnxcam("check", "aged.onnx", "--feed", "age=2").code == 0


def test_an_exported_file_keeps_it_and_takes_the_reference(onnxcam: Run, models: Path) -> None:
    result = onnxcam("export", "aged.onnx", "--feed", "age=2", "--similar-to", "input", "-o", "aged.cam.onnx")
    assert result.code == 0, result.err
    inputs = onnxruntime.InferenceSession("aged.cam.onnx").get_inputs()
    assert [i.name for i in inputs] == ["age", "x", "reference"]


REFUSED = {
    "a missing second input": (["aged.onnx"], "beside the picture `x`: `age` float (N, 1)", "--feed age=VALUE"),
    "a value of another shape": (["aged.onnx", "--feed", "age=1,2"], "`age` takes float (N, 1), not", "that shape"),
    "a feed without a value": (["aged.onnx", "--feed", "age"], "`--feed age` is not NAME=VALUE", "--feed age=42"),
    "an input that is none": (
        ["aged.onnx", "--input", "y", "--feed", "age=1"],
        "no input `y`",
        "its inputs: `age`, `x`",
    ),
    "an element that is none": (
        ["colours.onnx", "--element", "y[3]"],
        "no element 3 along axis 0: it is [3]",
        "0 to 2",
    ),
    "an output that is none": (["colours.onnx", "--element", "q"], "no output `q`", "`y` ['N', 3]"),
    "a reference of another length": (
        ["colours.onnx", "--similar-to", "4.npy"],
        "length 4, but the embedding `y` has length 3",
        "same model",
    ),
    "a region outside": (
        ["segmenter.onnx", "--region", "0,0,41,30"],
        "no part of a picture of 30x40",
        "x0, y0, x1, y1",
    ),
    "a region of three numbers": (["segmenter.onnx", "--region", "1,2,3"], "a region of 3 numbers", "x0,y0,x1,y1"),
    "a mask of another size": (
        ["segmenter.onnx", "--mask", "small.png"],
        "a mask of 8x9 for a picture of 30x40",
        "8x8",
    ),
    "a region of a classifier": (
        ["colours.onnx", "--region", "0,0,9,9"],
        "score per class and pixel: `y`",
        "(N, C, H, W)",
    ),
    "two targets": (["colours.onnx", "--element", "y", "--against", "1"], "--element and --against", "one of them"),
    "a class of an element": (
        ["colours.onnx", "--element", "y", "--target", "1"],
        "--element is no class",
        "leave one",
    ),
    "a background that is none": (["segmenter.onnx", "--background", "sky"], "background `sky`", "class index"),
    "a background beyond": (["segmenter.onnx", "--background", "3"], "background 3: the model has 3 classes", "0 to 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_said(name: str, refused: Run, models: Path) -> None:
    np.save("4.npy", np.ones(4))
    Image.new("L", (9, 8), 255).save("small.png")
    (model, *options), message, hint = REFUSED[name]
    code = 4 if name == "a region of a classifier" else 2
    refused(["explain", model, "dog.png", *options], code, message, hint)
