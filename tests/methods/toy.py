"""A network small enough to differentiate by hand, in ONNX text.

x (1, 2, 2, 2) -> 1x1 Conv -> c -> ReLU -> a -> global average pooling -> Gemm -> z, with

    c_0 = x_0 + x_1          A_0 = [[2, 2], [3, 3]]       pooled 2.5
    c_1 = -x_0 + 3 x_1 + 1   A_1 = [[3, 0], [0, 0]]       pooled 0.75
    z_0 = 1 p_0 + 2 p_1 + 0.5 = 4.5
    z_1 = 4 p_0 - 8 p_1 - 0.5 = 3.5
"""

import numpy as np
import onnx
from onnx import parser

X = np.array([[[[1, 2], [3, 4]], [[1, 0], [0, -1]]]], np.float32)
C = np.array([[[2, 2], [3, 3]], [[3, -1], [-2, -6]]], np.float64)
A = np.maximum(C, 0)
V = np.array([[1, 2], [4, -8]], np.float64)
Z = np.array([4.5, 3.5])


def toy(
    tail: str = "y = Identity(z)", output: str = "float[N,2] y", batch: str = "N", weights: str = ""
) -> onnx.ModelProto:
    """The network, with `tail` between its logits `z` (N, 2) and its output."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        toy (float[{batch},2,2,2] x) => ({output})
        <float[2,2,1,1] w = {{1, 1, -1, 3}}, float[2] wb = {{0, 1}},
         {weights or "float[2,2] v = {1, 2, 4, -8}, float[2] b = {0.5, -0.5}"}>
        {{
            c = Conv(x, w, wb)
            a = Relu(c)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            z = Gemm<transB=1>(f, v, b)
            {tail}
        }}""")
    onnx.checker.check_model(model)
    return model
