"""Networks small enough for closed forms, for the tests of targets, in ONNX text."""

import numpy as np
import onnx
from onnx import parser

ENDS = {
    "logits": ("y = Identity(l)", "float[N,3,8,12] y"),
    "channels last": ("y = Transpose<perm=[0,2,3,1]>(l)", "float[N,8,12,3] y"),
    "argmax": ("y = ArgMax<axis=1, keepdims=0>(l)", "int64[N,8,12] y"),
    "argmax of channels last": ("t = Transpose<perm=[0,2,3,1]>(l) y = ArgMax<axis=3>(t)", "int64[N,8,12,1] y"),
    "softmax": ("y = Softmax<axis=1>(l)", "float[N,3,8,12] y"),
    "sigmoid": ("y = Sigmoid(l)", "float[N,3,8,12] y"),
}


def segmenter(end: str = "logits", batch: str = "N") -> onnx.ModelProto:
    """x (N, 3, 8, 12) -> a (N, 2, 4, 6), means of 2 x 2 pixels, mixed and rectified -> l (N, 3, 8, 12) -> y."""
    tail, output = ENDS[end]
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[{batch},3,8,12] x) => ({output.replace("[N", f"[{batch}")})
        <float[2,3,1,1] w = {{1, 0.5, -1, -2, 1, 0.25}}, float[3,2,1,1] v = {{0.5, 0.25, 1, -1, -1, 2}},
         float[4] twice = {{1, 1, 2, 2}}>
        {{
            p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)
            c = Conv(p, w)
            a = Relu(c)
            s = Conv(a, v)
            l = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">(s, , twice)
            {tail}
        }}""")
    onnx.checker.check_model(model)
    return model


def network(tail: str = "y = Identity(z)", output: str = "float[N,3] y", batch: str = "N") -> onnx.ModelProto:
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[{batch},1,4,4] x) => ({output.replace("[N", f"[{batch}")})
        <float[2,1,1,1] w = {{1, -2}}, float[2] b = {{0.5, 0.25}}, float[3,2] v = {{1, 2, 3, -4, 5, 6}}>
        {{
            c = Conv(x, w, b)
            a = Relu(c)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            z = Gemm<transB=1>(f, v)
            {tail}
        }}""")
    onnx.checker.check_model(model)
    return model


ROW = np.array([1.0, -2, 3])
SHIFT = np.array([0.5, 0, -1])


def two_inputs(
    inputs: str = "float[N,1,4,4] x, float[N,3] row, float[3] shift", batch: str = "N", built_in: str = ""
) -> onnx.ModelProto:
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        net ({inputs.replace("[N", f"[{batch}")}) => (float[{batch},3] y, float[{batch},1] extra)
        <float[1,1,1,1] w = {{2}}{built_in}>
        {{
            c = Conv(x, w)
            a = Relu(c)
            p = GlobalAveragePool(a)
            extra = Flatten(p)
            m = Mul(extra, row)
            y = Add(m, shift)
        }}""")
    onnx.checker.check_model(model)
    return model


def image_and_text() -> onnx.ModelProto:
    """As CLIP is exported: picture x and texts t (T, 2) -> 10 cosine (N, T), its transpose, and both embeddings."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        clip (float[images,1,4,4] x, float[texts,2] t)
            => (float[images,texts] per_image, float[texts,images] per_text, float[images,3] e, float[texts,3] u)
        <float[2,1,1,1] w = {1, -2}, float[2] b = {0.5, 0.25}, float[3,2] v = {1, 2, 3, -4, 5, 6},
         float[2,3] s = {1, 0, 2, -1, 1, 3}, float ten = {10}>
        {
            c = Conv(x, w, b)
            a = Relu(c)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            i = Gemm<transB=1>(f, v)
            m = MatMul(t, s)
            one = Constant<value_ints=[1]>()
            il = ReduceL2(i, one)
            ml = ReduceL2(m, one)
            e = Div(i, il)
            u = Div(m, ml)
            k = Transpose<perm=[1,0]>(u)
            d = MatMul(e, k)
            per_image = Mul(d, ten)
            per_text = Transpose<perm=[1,0]>(per_image)
        }""")
    onnx.checker.check_model(model)
    return model
