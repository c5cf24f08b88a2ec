"""One network as many exporters and hands write it: every file is explained like the formula says.

A = relu(W x) by a 1x1 convolution, z = V mean(A): the Grad-CAM map of class c is V_c A / cells.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, parser
from onnx.reference import ReferenceEvaluator

from onnxcam import Explainer, rewrite
from onnxcam.errors import ModelError

RNG = np.random.default_rng(12)
W = RNG.integers(-3, 4, (4, 3, 1, 1)) / 2  # exact in every float type
V = RNG.integers(1, 5, (2, 4)) / 4
X = RNG.integers(-6, 7, (3, 3, 8, 8)).astype(np.float32) / 2

HEAD = "c = Conv(x, w) a = Relu(c) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm<transB=1>(f, v)"
SHAPES = """s = Shape(p) zero = Constant<value_int=0>() n = Gather(s, zero) axes = Constant<value_ints=[0]>()
    n1 = Unsqueeze(n, axes) rest = Constant<value_ints=[-1]>() to = Concat<axis=0>(n1, rest) f = Reshape(p, to)"""
LITERAL = "v = Constant<value = float[2,4] {" + ", ".join(str(x) for x in V.ravel()) + "}>()"


@dataclass(frozen=True)
class File:
    """What one exporter writes; the type of weights, how the picture is fed, the element type of outputs."""

    body: str = HEAD
    inputs: str = "float[N,3,8,8] x"
    outputs: str = "float[N,2] y"
    opset: int = 18
    weights: int = TensorProto.FLOAT
    feed: type = np.float32
    nhwc: bool = False
    left_out: str = ""

    def model(self) -> ModelProto:
        header = f'<ir_version: 10, opset_import: ["" : {self.opset}]> g ({self.inputs}) => ({self.outputs})'
        model = parser.parse_model(f"{header} {{ {self.body} }}")
        for name, array in {"w": W, "v": V}.items():
            if name not in self.left_out:
                tensor = helper.make_tensor(name, self.weights, array.shape, array.ravel().tolist())
                model.graph.initializer.append(tensor)
        return model

    def pictures(self) -> np.ndarray:
        x = X if self.feed in (np.float32, np.float16) else 2 * X
        return (x.transpose(0, 2, 3, 1) if self.nhwc else x).astype(self.feed)


FILES = {
    "nodes without names": File(),
    "weights in Constant nodes": File(f"{LITERAL} {HEAD}", left_out="v"),
    "height and width open": File(inputs="float[N,3,H,W] x"),
    "nothing but the rank known": File(inputs="float[b,c,h,w] x", outputs="float[b,k] y"),
    "batch fixed to 1": File(inputs="float[1,3,8,8] x", outputs="float[1,2] y"),
    "batch fixed to 2": File(inputs="float[2,3,8,8] x", outputs="float[2,2] y"),
    "features and boxes beside the scores": File(
        HEAD + " e = Sigmoid(a) b = Identity(f)", outputs="float[N,4,8,8] e, float[N,2] y, float[N,4] b"
    ),
    "a flatten made of Shape, Gather, Concat and Reshape": File(HEAD.replace("f = Flatten(p)", SHAPES)),
    "channels last with transposes around the convolution": File(
        "i = Transpose<perm=[0,3,1,2]>(x) c = Conv(i, w) o = Transpose<perm=[0,2,3,1]>(c) r = Relu(o) "
        "t = Transpose<perm=[0,3,1,2]>(r) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, v)",
        inputs="float[N,8,8,3] x",
        nhwc=True,
    ),
    "half precision throughout": File(
        inputs="float16[N,3,8,8] x", outputs="float16[N,2] y", weights=TensorProto.FLOAT16, feed=np.float16
    ),
    "weights in bfloat16": File(
        "w1 = Cast<to=1>(w) v1 = Cast<to=1>(v) " + HEAD.replace("w)", "w1)").replace("v)", "v1)"),
        weights=TensorProto.BFLOAT16,
    ),
    "a picture of int64": File(
        "k = Constant<value_float=0.5>() g = Cast<to=1>(x) h = Mul(g, k) " + HEAD.replace("(x,", "(h,"),
        inputs="int64[N,3,8,8] x",
        feed=np.int64,
    ),
    "a picture of uint8 shifted to signed": File(
        "o = Constant<value_float=128.0>() k = Constant<value_float=0.5>() "
        "g = Cast<to=1>(x) s = Sub(g, o) h = Mul(s, k) " + HEAD.replace("(x,", "(h,"),
        inputs="uint8[N,3,8,8] x",
        feed=np.uint8,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_same_network_is_explained_the_same_however_its_file_is_written(name: str) -> None:
    file = FILES[name]
    x = file.pictures() if file.feed is not np.uint8 else (2 * X + 128).astype(np.uint8)
    explainer = Explainer(file.model(), size=None if "8,8" in file.inputs else (8, 8), threads=1)
    found = explainer.explain_tensor(x, [0, 1, 1])
    a = np.maximum(np.einsum("kc,nchw->nkhw", W[:, :, 0, 0], X), 0)
    for i, (explanation, c) in enumerate(zip(found, [0, 1, 1], strict=True)):
        tolerance = 2e-3 if file.feed is np.float16 else 1e-6
        np.testing.assert_allclose(explanation.raw, np.tensordot(V[c], a[i], 1) / 64, rtol=tolerance, atol=tolerance)
        assert explanation.score == pytest.approx(V[c] @ a[i].mean((1, 2)), rel=tolerance)


BFLOAT16 = File(
    "xb = Cast<to=16>(x) " + HEAD.replace("(x,", "(xb,").replace("y =", "yb =") + " y = Cast<to=1>(yb)",
    weights=TensorProto.BFLOAT16,
    opset=22,
)


def test_a_model_that_computes_in_bfloat16_has_its_gradient_in_float32() -> None:
    """ONNX Runtime has no such kernels on a CPU, so onnx.reference runs the rewritten model."""
    runner = ReferenceEvaluator(rewrite(BFLOAT16.model()))
    names = ["onnxcam_activations", "onnxcam_alpha"]
    a, alpha = runner.run(names, {"x": X[:1], "class_index": np.array([1])})
    assert a.dtype == alpha.dtype == np.float32
    np.testing.assert_array_equal(a, np.maximum(np.einsum("kc,nchw->nkhw", W[:, :, 0, 0], X[:1]), 0))
    np.testing.assert_allclose(alpha.ravel(), V[1] / 64, rtol=1e-6)


def test_a_runtime_without_kernels_for_bfloat16_is_a_model_error_that_says_so() -> None:
    with pytest.raises(ModelError, match=r"cannot load the model: .*NOT_IMPLEMENTED"):
        Explainer(BFLOAT16.model())
