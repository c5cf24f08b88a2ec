"""Which input takes the picture, and how."""

import pytest
from onnx import parser

from onnxcam.errors import ModelError, UsageError
from onnxcam.graph.signature import ImageInput, image_input


def picture(inputs: str, body: str = "y = Identity(x)", constants: str = "", layout: str | None = None) -> ImageInput:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => (float[N] y) {constants} {{ {body} }}'
    return image_input(parser.parse_model(text), "model.onnx", layout)


SIGNATURES = {
    "float[1,3,224,192] x": ("nchw", 3, 224, 192, 1),
    "float[N,3,224,192] x": ("nchw", 3, 224, 192, None),
    "float[N,3,H,W] x": ("nchw", 3, None, None, None),
    "float[8,224,192,3] x": ("nhwc", 3, 224, 192, 8),
    "float[N,H,W,3] x": ("nhwc", 3, None, None, None),
    "float[1,1,28,28] x": ("nchw", 1, 28, 28, 1),
    "float[1,28,28,1] x": ("nhwc", 1, 28, 28, 1),
    "float[N,3,H,3] x": ("nchw", 3, None, 3, None),  # channels first wins where both fit
    "float[N,C,H,W] x": ("nchw", 3, None, None, None),
    "float[1,4,8,8] x": ("nchw", 4, 8, 8, 1),
}


@pytest.mark.parametrize("text", SIGNATURES)
def test_layout_channels_size_and_batch_are_read_from_the_shape(text: str) -> None:
    got = picture(text)
    assert (got.layout, got.channels, got.height, got.width, got.batch) == SIGNATURES[text]
    assert (got.name, got.dtype, got.quantization) == ("x", "float32", None)


@pytest.mark.parametrize("kind", ["float16", "uint8", "int8"])
def test_the_type_is_numpys(kind: str) -> None:
    assert picture(f"{kind}[1,3,8,8] x").dtype == kind


def test_the_layout_can_be_given_where_the_shape_does_not_tell() -> None:
    assert picture("float[N,H,W,C] x", layout="nhwc").layout == "nhwc"
    with pytest.raises(UsageError, match="unknown input layout `chw`"):
        picture("float[N,H,W,C] x", layout="chw")


def test_bound_shapes_keep_the_batch_open_as_a_symbol() -> None:
    assert picture("float[N,3,H,W] x").bound((5, 7)) == ["N", 3, 5, 7]
    assert picture("float[2,H,W,3] x").bound((5, 7)) == [2, 5, 7, 3]


QUANTISED = {
    "direct": "y = DequantizeLinear(x, s, z)",
    "through a Transpose": "t = Transpose<perm=[0,3,1,2]>(x) y = DequantizeLinear(t, s, z)",
    "through Identity twice": "i = Identity(x) j = Identity(i) y = DequantizeLinear(j, s, z)",
}


@pytest.mark.parametrize("way", QUANTISED)
def test_an_integer_input_takes_scale_and_zero_point_of_its_dequantiser(way: str) -> None:
    constants = "<float s = {0.5}, uint8 z = {114}, float other = {9.0}>"
    assert picture("uint8[1,8,8,3] x", QUANTISED[way], constants).quantization == (0.5, 114)


def test_constant_nodes_hold_scale_and_zero_point_too_and_a_missing_zero_point_is_0() -> None:
    constants = "s = Constant<value = float {0.25}>() "
    assert picture("uint8[1,8,8,3] x", constants + "y = DequantizeLinear(x, s)").quantization == (0.25, 0)


def test_the_dequantiser_of_another_value_is_not_the_inputs() -> None:
    constants = "<float s = {0.5}, uint8[2] w = {1, 2}>"
    assert picture("float[1,8,8,3] x", "d = DequantizeLinear(w, s) y = Mul(x, d)", constants).quantization is None


def test_no_picture_input_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"model.onnx has no picture input: `ids` \['N', 128\]") as error:
        picture("int64[N,128] ids")
    assert "(N, C, H, W) or (N, H, W, C)" in error.value.hint


def test_a_model_without_inputs_says_so() -> None:
    with pytest.raises(ModelError, match="it has no inputs"):
        picture("", "y = Constant<value_floats=[1.0]>()")


def test_the_picture_is_found_among_other_inputs_and_may_be_named() -> None:
    assert picture("int64[N,128] ids, float[N,3,8,8] x, float[N,7,8] rows").name == "x"
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,8,8] a, float[N,3,8,8] b) => (float[N,3,8,8] y) { y = Add(a, b) }""")
    assert image_input(model, "model.onnx", wanted="b").name == "b"
    with pytest.raises(ModelError, match="several inputs that could be the picture"):
        image_input(model, "model.onnx")
    with pytest.raises(UsageError, match="no input `c`"):
        image_input(model, "model.onnx", wanted="c")


def test_an_input_with_an_initializer_does_not_have_to_be_fed() -> None:
    got = picture("float[N,3,8,8] x, float[1] k", "y = Mul(x, k)", "<float[1] k = {2.0}>")
    assert got.name == "x"
