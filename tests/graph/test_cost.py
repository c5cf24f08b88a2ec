"""Multiply-adds, by hand."""

import pytest
from onnx import parser

from onnxcam.graph.cost import multiply_adds
from onnxcam.graph.index import Graph

COUNTS = {
    "Conv": ("float[1,4,8,8] x", "float[6,4,3,3] w", "y = Conv<pads=[1,1,1,1]>(x, w)", 6 * 64 * 4 * 9),
    "grouped, strided Conv": (
        "float[1,4,8,8] x", "float[4,1,3,3] w", "y = Conv<group=4, strides=[2,2], pads=[1,1,1,1]>(x, w)", 4 * 16 * 9
    ),
    "ConvTranspose": (
        "float[1,4,8,8] x", "float[4,6,2,2] w", "y = ConvTranspose<strides=[2,2]>(x, w)", 4 * 64 * 6 * 4
    ),
    "MatMul": ("float[2,5,7] x", "float[7,3] w", "y = MatMul(x, w)", 2 * 5 * 3 * 7),
    "Gemm": ("float[7,5] x", "float[3,7] w", "y = Gemm<transA=1, transB=1>(x, w)", 5 * 3 * 7),
    "elementwise": ("float[1,4,8,8] x", "float[4,1,1] w", "y = Mul(x, w)", 256),
    "reduction": ("float[1,4,8,8] x", "int64[2] w", "y = ReduceMax<keepdims=1>(x, w)", 256),
    "pooling": ("float[1,4,8,8] x", "float[1] w", "y = GlobalAveragePool(x)", 256),
    "reshape": ("float[1,4,8,8] x", "int64[2] w", "y = Reshape(x, w)", 0),
    "of weights alone": ("float[2,3] x", "float[3,3] w", "v = MatMul(w, w) y = MatMul(x, v)", 2 * 3 * 3),
    "open batch": ("float[N,7] x", "float[7,3] w", "y = MatMul(x, w)", 21),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS)
def test_multiply_adds_are_those_counted_by_hand(case: str) -> None:
    given, weights, body, expected = COUNTS[case]
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net ({given}, {weights}) => (float[] y) {{ {body} }}""")
    weight = model.graph.input.pop()
    shape = [d.dim_value for d in weight.type.tensor_type.shape.dim]
    values = [2, 3] if "ReduceMax" in body else [-1, 4]
    tensor = model.graph.initializer.add(name="w", dims=shape, data_type=weight.type.tensor_type.elem_type)
    if tensor.data_type == 7:
        tensor.int64_data.extend(values)
    else:
        size = 1
        for d in shape:
            size *= d
        tensor.float_data.extend([0.0] * size)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert multiply_adds(Graph(model)) == expected
