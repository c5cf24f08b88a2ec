"""Preprocessing as nodes against `Preprocess`, which looks every pixel up in a table made in float64."""

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxcam.finish import model_input
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from onnxcam.preprocess import Preprocess

SIZE = (6, 8)
NUMBERS: dict[str, dict[str, Any]] = {
    "unit": {},
    "pixels": {"scale": 1.0},
    "plus minus one": {"scale": 1 / 127.5, "mean": (1.0,)},
    "mean alone": {"scale": 1.0, "mean": (100.0,)},
    "deviation alone": {"std": (0.25,)},
    "of each channel": {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    "one mean, three deviations": {"mean": (0.5,), "std": (0.2, 0.3, 0.4)},
}
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "float16": {"dtype": "float16"},
    "float64": {"dtype": "float64"},
    "uint8": {"dtype": "uint8"},
    "int32": {"dtype": "int32"},
    "uint8 of 1/255": {"dtype": "uint8", "quantization": (1 / 255, 0)},
    "int8 of 0.02 at 3": {"dtype": "int8", "quantization": (0.02, 3)},
    "int16 of 0.001 at -5": {"dtype": "int16", "quantization": (0.001, -5)},
}
CASES = [
    pytest.param({"layout": layout, "channels": channels, **NUMBERS[numbers], **DTYPES[dtype]},
                 id=f"{layout}-{channels}-{numbers}-{dtype}")
    for layout, channels, numbers, dtype in itertools.product(("nchw", "nhwc"), ("rgb", "bgr", "gray"), NUMBERS, DTYPES)
    if channels != "gray" or all(len(v) == 1 for k, v in NUMBERS[numbers].items() if k != "scale")
]  # fmt: skip


def made(settings: Preprocess, pixels: Any) -> tuple[Any, list[str]]:
    """What the nodes make of pictures (N, H, W, 3), and the kinds of nodes."""
    shape = ["N", *SIZE, 3]
    graph = helper.make_graph([helper.make_node("Identity", ["picture"], ["same"])], "g",
                              [tensor_info("picture", TensorProto.UINT8, shape)],
                              [tensor_info("same", TensorProto.UINT8, shape)])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    op = Builder(Graph(model))
    name = model_input(op, "picture", settings)
    kinds = [node.op_type for node in op.nodes]
    number = helper.np_dtype_to_tensor_dtype(np.dtype(settings.dtype))
    whole = op.model([tensor_info(name, number, ["N", "A", "B", "C"])])
    onnx.checker.check_model(whole, full_check=True)
    return onnxruntime.InferenceSession(whole.SerializeToString()).run([name], {"picture": pixels})[0], kinds


@pytest.mark.parametrize("settings", CASES)
def test_nodes_make_the_tensor_that_python_makes(settings: dict[str, Any]) -> None:
    preprocess = Preprocess(size=SIZE, fit="squash", **settings)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3)).astype(np.uint8)
    pixels[0, 0] = [[0] * 3, [255] * 3] * 4
    expected = np.concatenate([preprocess(picture)[0] for picture in pixels])
    got, _ = made(preprocess, pixels)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if expected.dtype.kind == "f":
        last_place = 2.0**-10 if expected.dtype == np.float16 else 2.0**-22
        largest = 255 * preprocess.scale / min(preprocess.std)
        np.testing.assert_allclose(got, expected, rtol=last_place, atol=last_place * largest)
    else:  # the nearest level, and where a value lies between two either of them
        exact = Preprocess(size=SIZE, fit="squash", **{**settings, "dtype": "float64", "quantization": None})
        step, zero = preprocess.quantization or (1.0, 0)
        bounds = np.iinfo(expected.dtype)
        levels = np.concatenate([exact(picture)[0] for picture in pixels]) / step + zero
        assert np.abs(got - levels.clip(bounds.min, bounds.max)).max() <= 0.51
        assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("layout", "kinds"), [("nhwc", ["Identity"]), ("nchw", ["Transpose", "Identity"])])
def test_pixels_that_a_model_takes_as_they_are_are_not_computed_with(layout: str, kinds: list[str]) -> None:
    settings = Preprocess(size=SIZE, layout=layout, dtype="uint8", quantization=(1 / 255, 0))
    pixels = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3)).astype(np.uint8)
    got, found = made(settings, pixels)
    assert found == kinds
    np.testing.assert_array_equal(got, pixels if layout == "nhwc" else pixels.transpose(0, 3, 1, 2))


def test_only_a_quantised_model_gets_a_quantiser() -> None:
    """OpenVINO takes a model with a `QuantizeLinear` for a quantised one, and lowers its precision."""
    pixels = np.zeros((1, *SIZE, 3), np.uint8)
    plain, quantised = (
        made(Preprocess(size=SIZE, dtype="int8", mean=(0.5,), quantization=q), pixels)[1] for q in (None, (0.02, 3))
    )
    assert "QuantizeLinear" not in plain and "QuantizeLinear" in quantised
