"""The `com.microsoft` operators: their definitions in NumPy, and what ONNX Runtime's optimiser really writes."""

from math import erf, pi, sqrt
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser
from onnx.reference.op_run import OpRun

from onnxcam.autodiff import differentiate
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from support.vjp import Case, session

CDF = np.vectorize(lambda v: 0.5 * (1 + erf(v / sqrt(2))), otypes=[float])


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


def defined(name: str, definition: object, domain: str = "com.microsoft") -> type[OpRun]:
    body = {"op_domain": domain, "op_schema": None, "_run": lambda self, *a, **k: definition(*a, **k)}
    return type(name, (OpRun,), body)


def activated(x: np.ndarray, kind: str, *p: float) -> np.ndarray:
    table = {
        "": lambda: x,
        "Relu": lambda: np.maximum(x, 0),
        "Tanh": lambda: np.tanh(x),
        "Sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "LeakyRelu": lambda: np.where(x > 0, x, p[0] * x),
        "Clip": lambda: np.clip(x, *p),
        "HardSigmoid": lambda: np.clip(p[0] * x + p[1], 0, 1),
    }
    return table[kind]()


def fused_conv(x, w, b=None, z=None, activation="", activation_params=(), pads=(0, 0, 0, 0), strides=(1, 1)):
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    y = np.einsum("nchwij,mcij->nmhw", windows, w)
    y = y + (0 if b is None else b[:, None, None]) + (0 if z is None else z)
    return (activated(y, activation, *activation_params),)


def fused_gemm(a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0, activation="", activation_alpha=0.0,
               activation_beta=0.0):  # fmt: skip
    y = alpha * (a.T if transA else a) @ (b.T if transB else b) + (0 if c is None else beta * c)
    return (activated(y, activation, activation_alpha, activation_beta),)


def fused_matmul(a, b, alpha=1.0, transA=0, transB=0, transBatchA=0, transBatchB=0):
    def turned(x, batch, last):
        x = np.moveaxis(x, 0, -2) if batch else x
        return x.swapaxes(-1, -2) if last else x

    return (alpha * (turned(a, transBatchA, transA) @ turned(b, transBatchB, transB)),)


def layer_norm(x, scale, bias=0.0, epsilon=1e-12):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * scale + bias


def rms_norm(x, scale, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * scale


def skip_layer_norm(x, skip, scale, shift=0.0, bias=0.0, epsilon=1e-12):
    total = x + skip + (0 if bias is None else bias)
    return (layer_norm(total, scale, 0 if shift is None else shift, epsilon), *(np.zeros(()),) * 2, total)


def skip_rms_norm(x, skip, scale, bias=0.0, epsilon=1e-12):
    total = x + skip + bias
    return (rms_norm(total, scale, epsilon), *(np.zeros(()),) * 2, total)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def group_norm(x, scale, bias, groups=1, epsilon=1e-5, activation=0, channels_last=1):
    x = np.moveaxis(x, -1, 1) if channels_last else x
    n = x.reshape(len(x), groups, -1)
    n = ((n - n.mean(-1, keepdims=True)) / np.sqrt(n.var(-1, keepdims=True) + epsilon)).reshape(x.shape)
    y = n * scale[:, None, None] + bias[:, None, None]
    y = y / (1 + np.exp(-y)) if activation else y
    return (np.moveaxis(y, 1, -1) if channels_last else y,)


DEFINITIONS = {
    "Gelu": lambda x: (x * CDF(x),),
    "BiasGelu": lambda x, b: ((x + b) * CDF(x + b),),
    "FastGelu": lambda x, b=0.0: (tanh_gelu(x + b),),
    "QuickGelu": lambda x, alpha=1.702: (x / (1 + np.exp(-alpha * x)),),
    "BiasSoftmax": lambda x, b, axis=1, is_inner_broadcast=0: (softmax(x + b),),
    "BiasAdd": lambda x, b, skip: (x + b + skip,),
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "TransposeMatMul": fused_matmul,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_rms_norm,
    "GroupNorm": group_norm,
}


def microsoft(kind: str, inputs: str, body: str, output: str, **options: object) -> Case:
    return Case(f"com.microsoft::{kind}", inputs, body.replace(kind, f"com.microsoft.{kind}", 1), output=f"{output} y",
                new_ops=(defined(kind, DEFINITIONS[kind]),), until=18, **options)  # fmt: skip


X, TOKENS = "double[2,3,4] x", "double[2,3,4]"
IMAGES = "double[2,2,4,5] x, double[3,2,3,2] w"
ACTIVATIONS = [
    'activation="Relu"',
    'activation="Tanh"',
    'activation="Sigmoid"',
    'activation="LeakyRelu", activation_params=[0.1]',
    'activation="Clip", activation_params=[-1.0, 1.5]',
    'activation="HardSigmoid", activation_params=[0.2, 0.5]',
]

CASES = [
    microsoft("Gelu", X, "y = Gelu(x)", TOKENS),
    microsoft("QuickGelu", X, "y = QuickGelu(x)", TOKENS),
    microsoft("QuickGelu", X, "y = QuickGelu<alpha=1.5>(x)", TOKENS),
    microsoft("BiasGelu", f"{X}, double[4] b", "y = BiasGelu(x, b)", TOKENS),
    microsoft("FastGelu", X, "y = FastGelu(x)", TOKENS),
    microsoft("FastGelu", f"{X}, double[4] b", "y = FastGelu(x, b)", TOKENS),
    microsoft("BiasSoftmax", f"{X}, double[2,1,4] b", "y = BiasSoftmax<axis=2, is_inner_broadcast=1>(x, b)", TOKENS,
              runtime=False),
    microsoft("BiasSoftmax", f"{X}, double[1,3,4] b", "y = BiasSoftmax<axis=-1, is_inner_broadcast=0>(x, b)", TOKENS,
              runtime=False),
    microsoft("BiasAdd", f"{X}, double[4] b, double[2,3,4] s", "y = BiasAdd(x, b, s)", TOKENS, runtime=False,
              polynomial=True),
    *(
        microsoft("FusedConv", IMAGES + ", double[3] b", f"y = FusedConv<{a}, pads=[1,0,1,1], strides=[2,1]>(x, w, b)",
                  "double[2,3,2,5]")
        for a in ACTIVATIONS
    ),
    microsoft("FusedConv", IMAGES + ", double[3] b, double[2,3,2,4] z", f"y = FusedConv<{ACTIVATIONS[0]}>(x, w, b, z)",
              "double[2,3,2,4]"),
    microsoft("FusedConv", IMAGES, f"y = FusedConv<{ACTIVATIONS[0]}>(x, w)", "double[2,3,2,4]", fixed=("w",)),
    *(
        microsoft("FusedGemm", f"double[{a}] a, double[{b}] b, double[5] c",
                  f"y = FusedGemm<{attributes}, alpha=0.75, beta=1.5>(a, b, c)", "double[3,5]")
        for a, b, attributes in [
            ("3,4", "4,5", 'activation="Relu"'),
            ("3,4", "5,4", 'activation="LeakyRelu", activation_alpha=0.1, transB=1'),
            ("4,3", "4,5", 'activation="Tanh", transA=1'),
        ]
    ),
    *(
        microsoft(kind, f"double[{a}] a, double[{b}] b", f"y = {kind}<alpha=0.5{attributes}>(a, b)", f"double[{y}]",
                  polynomial=True, runtime=kind == "FusedMatMul")
        for kind, a, b, attributes, y in [
            ("FusedMatMul", "2,3,4", "2,4,5", "", "2,3,5"),
            ("FusedMatMul", "2,4,3", "2,4,5", ", transA=1", "2,3,5"),
            ("FusedMatMul", "2,2,3,4", "2,2,5,4", ", transB=1", "2,2,3,5"),
            ("FusedMatMul", "2,3,4", "5,4", ", transB=1", "2,3,5"),
            ("FusedMatMul", "3,2,4", "2,4,5", ", transBatchA=1", "2,3,5"),
            ("TransposeMatMul", "2,4,3", "2,4,5", ", transA=1", "2,3,5"),
        ]
    ),
    *(
        microsoft(kind, f"{X}, double[2,3,4] s, double[4] g{given}", f"y = {kind}<epsilon=0.25>(x, s, g{names})",
                  TOKENS)
        for kind, given, names in [
            ("SkipLayerNormalization", "", ""),
            ("SkipLayerNormalization", ", double[4] b", ", b"),
            ("SkipLayerNormalization", ", double[4] b, double[4] c", ", b, c"),
            ("SkipSimplifiedLayerNormalization", "", ""),
            ("SkipSimplifiedLayerNormalization", ", double[4] c", ", c"),
        ]
    ),
    *(
        microsoft("GroupNorm", f"double[2,{x}] x, double[4] s, double[4] b",
                  f"y = GroupNorm<groups=2, epsilon=0.25, activation={act}, channels_last={last}>(x, s, b)",
                  f"double[2,{x}]", runtime=False)
        for x, last in (("3,2,4", 1), ("4,3,2", 0))
        for act in (0, 1)
    ),
]  # fmt: skip


def optimised(text: str, weights: list[str], path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model of standard operators, and the file that ONNX Runtime's optimiser makes of it."""
    import onnxruntime as ort

    model = parser.parse_model(text)
    rng = np.random.default_rng(2)
    for declared in list(model.graph.input):
        if declared.name in weights:
            shape = [d.dim_value for d in declared.type.tensor_type.shape.dim]
            array = (rng.normal(size=shape) * 0.5).astype(np.float32)
            model.graph.input.remove(declared)
            model.graph.initializer.append(numpy_helper.from_array(array, declared.name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return model, onnx.load(str(path))


def gradient(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    graph = Graph(model)
    op = Builder(graph)
    (name,) = differentiate(graph, op, "y", ["x"]).values()
    rewritten = op.model([tensor_info(str(name), TensorProto.FLOAT, None)])
    (found,) = session(rewritten).run([name], {"x": x})
    return np.asarray(found)


GELU = """half = Constant<value_float=0.5>() one = Constant<value_float=1.0>() root = Constant<value_float=1.4142135>()
    d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) a = Mul(g, half)"""
NORM = """last = Constant<value_ints=[-1]>() two = Constant<value_float=2.0>() eps = Constant<value_float=1e-5>()
    m = ReduceMean(s, last) c = Sub(s, m) p = Pow(c, two) v = ReduceMean(p, last) w = Add(v, eps)
    r = Sqrt(w) n = Div(c, r) k = Mul(n, gamma) z = Add(k, beta)"""
RMS = """last = Constant<value_ints=[-1]>() two = Constant<value_float=2.0>() eps = Constant<value_float=1e-5>()
    p = Pow(s, two) v = ReduceMean(p, last) w = Add(v, eps) r = Sqrt(w) n = Div(s, r) z = Mul(n, gamma)"""

FUSED = [
    ("com.microsoft::FusedConv", "float[2,2,5,6] x, float[3,2,3,3] w, float[3] b",
     "c = Conv<pads=[1,1,1,1]>(x, w, b) z = Relu(c) q = Mul(z, z)"),
    ("com.microsoft::FusedConv", "float[2,2,5,6] x, float[3,2,3,3] w, float[3] b",
     "c = Conv<pads=[1,1,1,1]>(x, w, b) z = LeakyRelu<alpha=0.2>(c) q = Mul(z, z)"),
    ("com.microsoft::FusedGemm", "float[2,4] x, float[4,3] w, float[3] b",
     "c = Gemm(x, w, b) z = Relu(c) q = Mul(z, z)"),
    ("com.microsoft::FusedMatMul", "float[2,3,4] x, float[2,3,5] w",
     "t = Transpose<perm=[0,2,1]>(x) z = MatMul(t, w) q = Mul(z, z)"),
    ("com.microsoft::Gelu", "float[2,3,4] x", f"h = Identity(x) {GELU} q = Mul(a, a)"),
    ("com.microsoft::BiasGelu", "float[2,3,4] x, float[4] b", f"h = Add(x, b) {GELU} q = Mul(a, a)"),
    ("com.microsoft::QuickGelu", "float[2,3,4] x",
     "k = Constant<value_float=1.702>() t = Mul(x, k) s = Sigmoid(t) z = Mul(x, s) q = Mul(z, z)"),
    ("com.microsoft::SkipLayerNormalization", "float[2,3,4] x, float[2,3,4] skip, float[4] gamma, float[4] beta",
     f"s = Add(x, skip) {NORM} q = Mul(z, z)"),
    ("LayerNormalization", "float[2,3,4] x, float[4] gamma, float[4] beta",
     f"s = Mul(x, x) {NORM} o = Mul(z, z) q = Mul(o, x)"),
    ("SimplifiedLayerNormalization", "float[2,3,4] x, float[4] gamma",
     f"s = Mul(x, x) {RMS} o = Mul(z, z) q = Mul(o, x)"),
]  # fmt: skip
PROVEN = ("SimplifiedLayerNormalization",)  # it has no schema, so the checker refuses models that hold it


@pytest.mark.parametrize(("kind", "inputs", "body"), FUSED)
def test_gradient_of_the_optimised_file_is_that_of_the_original(kind, inputs, body, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    header = f'<ir_version: 8, opset_import: ["" : 18]> g ({inputs}) => (float y)'
    text = f"{header} {{ {body} y = ReduceSum<keepdims=0>(q) }}"
    names = [part.split()[-1] for part in inputs.split(",") if " " in part.strip()]
    weights = [n for n in names if n != "x"]
    original, saved = optimised(text, weights, tmp_path / "saved.onnx")
    assert kind in {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in saved.graph.node}
    shape = [d.dim_value for d in original.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    expected, found = gradient(original, x), gradient(saved, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
