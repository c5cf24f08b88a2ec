"""Which output holds the class scores, and where its logits are."""

import pytest
from onnx import TensorProto, parser

from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.head import Head, classifier_head
from onnxcam.graph.load import load
from onnxcam.graph.read import read


def head(body: str, outputs: str = "float[N,4] y", output: str | None = None) -> Head:
    text = f"""
        <ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[N,3,8,8] x) => ({outputs})
        <float[4,3] v = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, float[1,3] one = {{1, 1, 1}}>
        {{ p = GlobalAveragePool(x) f = Flatten(p) z = Gemm<transB=1>(f, v) {body} }}"""
    return classifier_head(load(read(parser.parse_model(text)), {"x": ["N", 3, 8, 8]}), output)


PASSIVE = {
    "nothing": ("y = Identity(z)", "float[N,4] y", "y", None),
    "Softmax": ("y = Softmax(z)", "float[N,4] y", "z", "Softmax"),
    "LogSoftmax": ("y = LogSoftmax(z)", "float[N,4] y", "z", "LogSoftmax"),
    "Sigmoid": ("y = Sigmoid(z)", "float[N,4] y", "z", "Sigmoid"),
    "Sigmoid, Cast to float16": ("s = Sigmoid(z) y = Cast<to=10>(s)", "float16[N,4] y", "z", "Sigmoid"),
    "Reshape, Softmax, Reshape, as the converter writes it": (
        "two = Constant<value_ints=[0,-1]>() a = Reshape(z, two) s = Softmax<axis=-1>(a) y = Reshape(s, two)",
        "float[N,4] y",
        "a",
        "Softmax",
    ),
    "Softmax, QuantizeLinear": (
        "sc = Constant<value_float=0.00390625>() zp = Constant<value = uint8 {0}>() s = Softmax(z) "
        "y = QuantizeLinear(s, sc, zp)",
        "uint8[N,4] y",
        "z",
        "Softmax",
    ),
    "Softmax, quantised and back": (
        "sc = Constant<value_float=0.00390625>() zp = Constant<value = uint8 {0}>() s = Softmax(z) "
        "q = QuantizeLinear(s, sc, zp) y = DequantizeLinear(q, sc, zp)",
        "float[N,4] y",
        "z",
        "Softmax",
    ),
    "quantised logits are read before the quantiser": (
        "sc = Constant<value_float=0.1>() zp = Constant<value = uint8 {0}>() y = QuantizeLinear(z, sc, zp)",
        "uint8[N,4] y",
        "z",
        None,
    ),
    "quantised and back: read before the pair": (
        "sc = Constant<value_float=0.1>() zp = Constant<value = int8 {0}>() q = QuantizeLinear(z, sc, zp) "
        "y = DequantizeLinear(q, sc, zp)",
        "float[N,4] y",
        "z",
        None,
    ),
    "quantised, reshaped, back, Softmax, QuantizeLinear": (
        "sc = Constant<value_float=0.1>() zp = Constant<value = int8 {0}>() q = QuantizeLinear(z, sc, zp) "
        "two = Constant<value_ints=[0,-1]>() r = Reshape(q, two) d = DequantizeLinear(r, sc, zp) s = Softmax(d) "
        "y = QuantizeLinear(s, sc, zp)",
        "int8[N,4] y",
        "z",
        "Softmax",
    ),
    "QLinearSoftmax of a quantised product": (
        "sc = Constant<value_float=0.1>() zp = Constant<value = uint8 {0}>() q = QuantizeLinear(f, sc, zp) "
        "w = Constant<value = uint8[3,4] {1,2,3,4,5,6,7,8,9,10,11,12}>() "
        "m = QLinearMatMul(q, sc, zp, w, sc, zp, sc, zp) "
        "two = Constant<value_ints=[0,-1]>() r = Reshape(m, two) "
        "s = com.microsoft.QLinearSoftmax<axis=1, opset=13>(r, sc, zp, sc, zp) y = DequantizeLinear(s, sc, zp)",
        "float[N,4] y",
        "m",
        "Softmax",
    ),
    "a quantised product itself": (
        "sc = Constant<value_float=0.1>() zp = Constant<value = uint8 {0}>() q = QuantizeLinear(f, sc, zp) "
        "w = Constant<value = uint8[3,4] {1,2,3,4,5,6,7,8,9,10,11,12}>() "
        "y = QLinearMatMul(q, sc, zp, w, sc, zp, sc, zp)",
        "uint8[N,4] y",
        "y",
        None,
    ),
    "(N, C, 1, 1)": (
        "four = Constant<value_ints=[-1,4,1,1]>() y = Reshape(z, four)",
        "float[N,4,1,1] y",
        "y",
        None,
    ),
}


@pytest.mark.parametrize("name", PASSIVE)
def test_logits_lie_before_the_last_activation_and_what_surrounds_it(name: str) -> None:
    body, output, logits, activation = PASSIVE[name]
    assert head(body, output) == Head("y", logits, activation, 4)


def test_a_softmax_in_the_middle_is_not_stepped_over() -> None:
    assert head("s = Softmax(z) k = Constant<value_float=2.0>() y = Mul(s, k)").logits == "y"


def test_a_softmax_over_something_else_than_the_classes_is_not_taken_for_the_head() -> None:
    """Softmax over (N, 2, 2) pairs, flattened to (N, 4): not one distribution over 4 classes."""
    shapes = "pairs = Constant<value_ints=[-1,2,2]>() flat = Constant<value_ints=[-1,4]>() "
    assert head(shapes + "a = Reshape(z, pairs) b = Softmax<axis=2>(a) y = Reshape(b, flat)") == Head("y", "y", None, 4)


def test_the_first_output_with_one_score_per_class_is_taken() -> None:
    got = head("e = Identity(x) y = Softmax(z) w = Identity(z)", "float[N,3,8,8] e, float[N,4] y, float[N,4] w")
    assert got == Head("y", "z", "Softmax", 4)


def test_an_output_can_be_named_and_an_unknown_one_lists_what_there_is() -> None:
    outputs = "float[N,4] y, float[N,1] age"
    body = "y = Softmax(z) age = Gemm<transB=1>(f, one)"
    assert head(body, outputs, "age") == Head("age", "age", None, 1)
    with pytest.raises(UsageError, match="the model has no output `agee`") as error:
        head(body, outputs, "agee")
    assert error.value.hint == "its outputs: `y` ['N', 4], `age` ['N', 1]"


def test_a_model_without_class_scores_names_its_outputs() -> None:
    with pytest.raises(UnsupportedError, match=r"no output holds one score per class: `e` \['N', 3, 8, 8\]") as error:
        head("e = Relu(x)", "float[N,3,8,8] e")
    assert "classifiers" in error.value.hint


def test_integer_outputs_are_no_scores() -> None:
    with pytest.raises(UnsupportedError, match="no output holds one score per class"):
        head("y = ArgMax<axis=1, keepdims=1>(z)", "int64[N,1] y")


def test_float16_and_double_outputs_are_scores() -> None:
    for number, kind in ((TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "double")):
        assert head(f"y = Cast<to={number}>(z)", f"{kind}[N,4] y") == Head("y", "y", None, 4)
