"""Quantised operators: masks by hand, every operator against its float twin, whole chains against Clip."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.quantized import TWINS, quantization
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from support.vjp import directional, run, session

PROVEN = (
    "QuantizeLinear", "DequantizeLinear", "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear",
    "DynamicQuantizeLinear", "com.microsoft::QLinearConcat", *TWINS,
)  # fmt: skip


def read(text: str, opset: int, **constants: np.ndarray) -> ModelProto:
    """A model in text, `constants` as its initializers, the last output of the last node as its output `y`."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]> g {text}')
    for name, array in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def gradients(model: ModelProto, wrt: list[str], y: str, feeds: dict[str, np.ndarray], u: np.ndarray, runtime: bool):
    graph = Graph(model)
    op = Builder(graph)
    names = [str(g) for g in differentiate(graph, op, y, wrt, cotangent="u").values()]
    seed = tensor_info("u", TensorProto.FLOAT, u.shape)
    rewritten = op.model([tensor_info(n, TensorProto.FLOAT, None) for n in names], [seed])
    given = feeds | {"u": u.astype(np.float32)}
    return session(rewritten).run(names, given) if runtime else run(rewritten, given, names)


ZERO_POINTS = [
    ("uint8", 21, 10, -10, 245), ("int8", 21, -5, -123, 132), ("uint16", 21, 9, -9, 65526),
    ("int16", 21, 7, -32775, 32760), ("uint4", 21, 3, -3, 12), ("int4", 21, 1, -9, 6),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "opset", "zero", "low", "high"), ZERO_POINTS)
def test_quantize_linear_lets_through_its_range_ends_included(dtype, opset, zero, low, high) -> None:
    scale = 0.5
    # round half to even: +-0.5 around the ends stays inside only on the even side
    x = np.array([low - 1, low - 0.75, low - 0.25, low, 0, high, high + 0.25, high + 0.75, high + 1]) * scale
    element = getattr(TensorProto, dtype.upper())
    model = read(f"(float[9] x) => ({dtype}[9] y) {{ y = QuantizeLinear(x, s, z) }}", opset, s=np.float32(scale))
    model.graph.initializer.append(helper.make_tensor("z", element, [], [zero]))
    (dx,) = gradients(model, ["x"], "y", {"x": x.astype(np.float32)}, np.full(9, 2.0), False)
    assert dx.tolist() == [0, 0, 2, 2, 2, 2, 2, 0, 0]


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_quantize_linear_per_axis_uses_each_slice_s_own_range(axis, domain) -> None:
    n = 2 if axis == 0 else 3
    scale, zero = np.linspace(0.1, 0.3, n).astype(np.float32), np.arange(n).astype(np.uint8) * 100
    x = np.linspace(-30, 60, 6).reshape(2, 3).astype(np.float32)
    model = read(f"(float[2,3] x) => (uint8[2,3] y) {{ y = {domain}QuantizeLinear<axis={axis}>(x, s, z) }}", 19,
                 s=scale, z=zero)  # fmt: skip
    (dx,) = gradients(model, ["x"], "y", {"x": x}, np.ones((2, 3)), bool(domain))
    column = (-1, 1) if axis == 0 else (1, -1)
    level = np.rint(x / scale.reshape(column)) + zero.reshape(column).astype(float)
    expected = ((level >= 0) & (level <= 255)).astype(float)
    assert 0 < expected.sum() < 6
    assert dx.tolist() == expected.tolist()


def test_quantize_linear_per_block_uses_each_block_s_own_range() -> None:
    x = np.array([[10.0, 20, 10, 20, 10, 20]], np.float32)
    scale = np.array([[0.1, 0.01, 1.0]], np.float32)
    model = read("(float[1,6] x) => (int8[1,6] y) { y = QuantizeLinear<axis=1, block_size=2>(x, s, z) }", 21,
                 s=scale, z=np.zeros((1, 3), np.int8))  # fmt: skip
    (dx,) = gradients(model, ["x"], "y", {"x": x}, np.ones((1, 6)), False)
    assert dx.tolist() == [[1, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_dequantize_linear_passes_the_cotangent_of_the_real_value(domain) -> None:
    model = read(f"(int8[3] x) => (float[3] y) {{ y = {domain}DequantizeLinear(x, s, z) }}", 19,
                 s=np.float32(0.1), z=np.int8(3))  # fmt: skip
    (dx,) = gradients(model, ["x"], "y", {"x": np.array([-128, 3, 127], np.int8)}, np.array([1.0, -2, 3]), True)
    assert dx.tolist() == [1, -2, 3]


def test_dequantised_accumulator_is_scaled() -> None:
    model = read("(int32[2] x) => (float[2] y) { y = DequantizeLinear(x, s) }", 19, s=np.float32(0.25))
    (dx,) = gradients(model, ["x"], "y", {"x": np.array([5, -7], np.int32)}, np.array([1.0, 2.0]), True)
    assert dx.tolist() == [0.25, 0.5]


@dataclass(frozen=True)
class Quantised:
    """A quantised operator on quantised inputs a, b (and c); the same on their real values; the output's type."""

    kind: str
    call: str
    twin: str
    shapes: tuple[tuple[int, ...], ...]
    output: str = "uint8"
    per_channel: int | None = None  # axis of b's scale
    opset: int = 18


A = "a, sa, za"
AB = f"{A}, b, sb, zb"
MS = "com.microsoft."
KINDS = [
    Quantised(
        "QLinearConv",
        f"QLinearConv<pads=[1,1,1,1]>({AB}, sy, zy)",
        "Conv<pads=[1,1,1,1]>(ra, rb)",
        ((2, 2, 5, 4), (3, 2, 3, 3)),
    ),
    Quantised(
        "QLinearConv",
        f"QLinearConv<strides=[2,1]>({AB}, sy, zy, i)",
        "Conv<strides=[2,1]>(ra, rb)",
        ((2, 2, 5, 4), (3, 2, 2, 3)),
        per_channel=0,
    ),
    Quantised(
        "QLinearConv",
        f"QLinearConv<group=2>({AB}, sy, zy)",
        "Conv<group=2>(ra, rb)",
        ((2, 2, 5, 4), (4, 1, 3, 2)),
        "int8",
    ),
    Quantised(
        "com.microsoft::QLinearConv", f"{MS}QLinearConv({AB}, sy, zy)", "Conv(ra, rb)", ((2, 2, 5, 4), (3, 2, 3, 3))
    ),
    Quantised("QLinearMatMul", f"QLinearMatMul({AB}, sy, zy)", "MatMul(ra, rb)", ((2, 3, 4), (4, 5))),
    Quantised(
        "QLinearMatMul", f"QLinearMatMul({AB}, sy, zy)", "MatMul(ra, rb)", ((3, 4), (4, 5)), "int8", per_channel=-1
    ),
    Quantised(
        "com.microsoft::QGemm",
        f"{MS}QGemm<transB=1, alpha=1.0>({AB}, , sy, zy)",
        "Gemm<transB=1>(ra, rb)",
        ((3, 4), (5, 4)),
    ),
    Quantised(
        "com.microsoft::QGemm", f"{MS}QGemm<alpha=0.5>({AB})", "Gemm<alpha=0.5>(ra, rb)", ((3, 4), (4, 5)), "float"
    ),
    Quantised("com.microsoft::QLinearAdd", f"{MS}QLinearAdd({AB}, sy, zy)", "Add(ra, rb)", ((2, 3, 4), (2, 3, 4))),
    Quantised("com.microsoft::QLinearAdd", f"{MS}QLinearAdd({AB}, sy, zy)", "Add(ra, rb)", ((2, 3, 4), (4,)), "int8"),
    Quantised("com.microsoft::QLinearMul", f"{MS}QLinearMul({AB}, sy, zy)", "Mul(ra, rb)", ((2, 3, 4), (2, 3, 1))),
    Quantised(
        "com.microsoft::QLinearWhere", f"{MS}QLinearWhere(k, {AB}, sy, zy)", "Where(k, ra, rb)", ((3, 4), (3, 4))
    ),
    Quantised(
        "com.microsoft::QLinearConcat",
        f"{MS}QLinearConcat<axis=1>(sy, zy, {AB})",
        "Concat<axis=1>(ra, rb)",
        ((2, 3, 4), (2, 2, 4)),
    ),
    Quantised(
        "com.microsoft::QLinearAveragePool",
        f"{MS}QLinearAveragePool<kernel_shape=[2,3], pads=[1,0,0,1]>({A}, sy, zy)",
        "AveragePool<kernel_shape=[2,3], pads=[1,0,0,1]>(ra)",
        ((2, 2, 5, 4),),
    ),
    Quantised(
        "com.microsoft::QLinearGlobalAveragePool",
        f"{MS}QLinearGlobalAveragePool({A}, sy, zy)",
        "GlobalAveragePool(ra)",
        ((2, 3, 2, 2),),
    ),
    Quantised("com.microsoft::QLinearSigmoid", f"{MS}QLinearSigmoid({A}, sy, zy)", "Sigmoid(ra)", ((2, 3, 4),)),
    Quantised(
        "com.microsoft::QLinearLeakyRelu",
        f"{MS}QLinearLeakyRelu<alpha=0.25>({A}, sy, zy)",
        "LeakyRelu<alpha=0.25>(ra)",
        ((2, 3, 4),),
    ),
    Quantised(
        "com.microsoft::QLinearSoftmax",
        f"{MS}QLinearSoftmax<axis=-1, opset=13>({A}, sy, zy)",
        "Softmax<axis=-1>(ra)",
        ((2, 3, 4),),
    ),
    Quantised(
        "com.microsoft::MatMulIntegerToFloat",
        f"{MS}MatMulIntegerToFloat(a, b, sa, sb, za, zb)",
        "MatMul(ra, rb)",
        ((3, 4), (4, 5)),
        "float",
    ),
    Quantised("MatMulInteger", "MatMulInteger(a, b, za, zb)", "MatMul(na, nb)", ((2, 3, 4), (4, 5)), "int32"),
    Quantised(
        "ConvInteger",
        "ConvInteger<pads=[0,1,1,0]>(a, b, za, zb)",
        "Conv<pads=[0,1,1,0]>(na, nb)",
        ((2, 2, 4, 4), (3, 2, 2, 3)),
        "int32",
    ),
]


def test_every_twin_is_compared() -> None:
    covered = {q.kind for q in KINDS} | {"com.microsoft::DynamicQuantizeMatMul"}  # the last has a test of its own
    assert covered == {*TWINS, "com.microsoft::QLinearConcat"}


@pytest.mark.parametrize("q", KINDS, ids=lambda q: f"{q.kind}-{q.output}")
def test_quantised_operator_has_its_float_twin_s_gradient_where_it_did_not_saturate(q: Quantised) -> None:
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(8)
    letters = "ab"[: len(q.shapes)]
    dtype = "int8" if q.output == "int8" else "uint8"
    limits = np.iinfo(dtype)
    integers = {
        k: rng.integers(limits.min, limits.max + 1, s).astype(dtype) for k, s in zip(letters, q.shapes, strict=True)
    }
    scales = dict.fromkeys(letters, np.float32(0.02))
    zeros = {k: np.asarray(0 if dtype == "int8" else 128 - 8 * i, dtype) for i, k in enumerate(letters)}
    column = [1] * len(q.shapes[-1])
    if q.per_channel is not None:
        column[q.per_channel] = -1
        n = q.shapes[1][q.per_channel]
        scales["b"], zeros["b"] = np.linspace(0.01, 0.04, n).astype(np.float32), np.full(n, zeros["b"])
    condition = {"k": rng.random(q.shapes[0]) > 0.5} if "Where" in q.kind else {}
    bools = [f"bool{list(v.shape)} {k}" for k, v in condition.items()]

    # The float twin in float64 at the real values, and an output range that saturates at both ends.
    point: dict[str, np.ndarray] = dict(condition)
    for k in letters:
        along = column if np.ndim(scales[k]) else ()
        number = integers[k] - zeros[k].astype(float).reshape(along)
        point |= {f"n{k}": number, f"r{k}": number * scales[k].astype(float).reshape(along)}
    doubles = [f"double{list(s)} {p}{k}" for p in "rn" for k, s in zip(letters, q.shapes, strict=True)]
    twin = read(f"({', '.join(doubles + bools)}) => (double[] y) {{ y = {q.twin} }}", q.opset)
    (y,) = run(twin, point, ["y"])
    low, high = np.quantile(y, [0.15, 0.85])
    sy = np.float32((high - low) / 255)
    zy = np.asarray(np.clip(np.rint(limits.min - low / sy), limits.min, limits.max), dtype)

    known = {"sy": sy, "zy": zy, "i": np.zeros(q.shapes[-1][0], np.int32)}
    known |= {f"s{k}": scales[k] for k in letters} | {f"z{k}": zeros[k] for k in letters}
    names = set(re.findall(r"\w+", q.call.partition("(")[2]))
    inputs = [f"{dtype}{list(s)} {k}" for k, s in zip(letters, q.shapes, strict=True)]
    # behind a Concat of one: scores at the very end would not be cut
    body = f"{{ t = {q.call} y = Concat<axis=0>(t) }}"
    model = read(f"({', '.join(inputs + bools)}) => ({q.output}{list(y.shape)} y) {body}", q.opset,
                 **{k: np.asarray(v) for k, v in known.items() if k in names})  # fmt: skip
    (quantised,) = session(model).run(["y"], integers | condition)
    u = rng.normal(size=y.shape).astype(np.float32).astype(np.float64)
    passed = u
    if q.output == dtype:
        kept = (quantised > limits.min) & (quantised < limits.max)
        assert 0 < kept.sum() < kept.size, "the case must saturate somewhere, and not everywhere"
        passed = u * kept
    seen = sy.astype(float) * (quantised.astype(float) - zy)  # what rules that read the output see
    for letter, dx in zip(letters, gradients(model, [*letters], "y", integers | condition, u, True), strict=True):
        assert dx.dtype == np.float32
        v = rng.uniform(-1, 1, size=dx.shape)
        if q.kind == "com.microsoft::QLinearSigmoid":
            expected = (passed * seen * (1 - seen) * v).sum()
        elif q.kind == "com.microsoft::QLinearSoftmax":
            expected = (seen * (passed - (passed * seen).sum(-1, keepdims=True)) * v).sum()
        else:
            at = f"{'n' if q.output == 'int32' else 'r'}{letter}"
            expected = (passed * directional(twin, point, {at: v}, "y", 1e-3)).sum()
        assert abs((dx * v).sum() - expected) <= 1e-5 * np.abs(dx * v).sum()


def test_dynamically_quantised_product_sees_the_float_operand() -> None:
    rng = np.random.default_rng(3)
    x, b, u = (
        rng.normal(size=(3, 4)).astype(np.float32),
        rng.integers(0, 256, (4, 5)).astype(np.uint8),
        rng.normal(size=(3, 5)),
    )
    scale, zero = np.linspace(0.01, 0.02, 5).astype(np.float32), np.full(5, 120, np.uint8)
    model = read(
        f"(float[3,4] x) => (float[3,5] y) {{ y = {MS}DynamicQuantizeMatMul(x, b, s, z) }}", 18, b=b, s=scale, z=zero
    )
    (dx,) = gradients(model, ["x"], "y", {"x": x}, u, True)
    np.testing.assert_allclose(dx, u @ ((b.astype(float) - 120) * scale).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("between", ["", "t = Transpose<perm=[1,0]>(q) q2 = Transpose<perm=[1,0]>(t)"])
def test_dynamic_quantisation_with_integer_product_has_the_real_product_s_gradient(between: str) -> None:
    """What ONNX Runtime's dynamic quantiser writes: the accumulator is scaled by hand after a cast."""
    rng = np.random.default_rng(5)
    x, b, u = (
        rng.normal(size=(3, 4)).astype(np.float32),
        rng.integers(0, 256, (4, 5)).astype(np.uint8),
        rng.normal(size=(3, 5)),
    )
    model = read(
        f"""(float[3,4] x) => (float[3,5] y) {{
            q, s, z = DynamicQuantizeLinear(x)
            {between}
            m = MatMulInteger({"q2" if between else "q"}, b, z, zb)
            f = Cast<to=1>(m) k = Mul(s, sb) y = Mul(f, k)
        }}""", 18, b=b, sb=np.float32(0.015), zb=np.uint8(120))  # fmt: skip
    (dx,) = gradients(model, ["x"], "y", {"x": x}, u, True)
    np.testing.assert_allclose(dx, u @ ((b.astype(float) - 120) * 0.015).T, rtol=1e-5, atol=1e-6)


SCORES = "t = Reshape(m, shape) p = com.microsoft.QLinearSoftmax<axis=1, opset=13>(t, s, z, s, z) "
SCORES += "y = DequantizeLinear(p, s, z)"


@pytest.mark.parametrize("end", ["y = DequantizeLinear(m, s, z)", SCORES, "e = Relu(m) y = DequantizeLinear(e, s, z)"])
def test_logits_of_a_quantised_operator_are_not_cut_at_the_ends_of_their_range(end: str) -> None:
    """a b^T = (140, -140, 70): the first two saturate. Behind a ReLU it is a feature, and is cut."""
    constants = {"b": [[2], [-2], [1]], "s": np.float32(1), "z": np.int8(0), "shape": [0, 3]}
    arrays = {k: np.asarray(v, getattr(v, "dtype", np.int8)) for k, v in constants.items()}
    arrays["b"], arrays["shape"] = arrays["b"].T, arrays["shape"].astype(np.int64)
    model = read(f"(int8[1,1] a) => (float[1,3] y) {{ m = QLinearMatMul(a, s, z, b, s, z, s, z) {end} }}", 18, **arrays)
    graph = Graph(model)
    op = Builder(graph)
    dx = []
    for u in np.eye(3, dtype=np.float32):
        grads = differentiate(graph, op, "m", ["a"], cotangent=op.floats(u[None]))
        rewritten = op.model([tensor_info(str(grads["a"]), TensorProto.FLOAT, None)])
        dx.append(session(rewritten).run([grads["a"]], {"a": np.array([[70]], np.int8)})[0].item())
    assert dx == ([0, 0, 1] if "Relu" in end else [2, -2, 1])


INTEGER_KINKS = {
    "Relu": ("r = Relu(q)", lambda q: np.maximum(q, 0), "int8"),
    "Clip": ("r = Clip(q, low, high)", lambda q: np.clip(q, -7, 20), "int8"),
    "Clip of uint8": ("r = Clip(q, ulow, uhigh)", lambda q: np.clip(q, 120, 150), "uint8"),
    "Max": ("r = Max(q, low)", lambda q: np.maximum(q, -7), "int8"),
    "Min": ("r = Min(q, uhigh)", lambda q: np.minimum(q, 150), "uint8"),
    "Max of two": ("t = Slice(q, one, four, one) k = Slice(q, zero, three, one) r = Max(t, k)",
                   lambda q: np.maximum(q[:, 1:], q[:, :-1]), "uint8"),
}  # fmt: skip


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("name", INTEGER_KINKS)
def test_integers_have_their_kinks_where_the_operator_has_them(name: str, opset: int) -> None:
    """The zero point is 5 (int8) or 130 (uint8), so that the stored 0 is not the real one.

    The oracle moves each real value by whole steps to both sides and dequantises what the operator makes of them.
    """
    body, forward, dtype = INTEGER_KINKS[name]
    scale, zero = 0.5, np.asarray(5 if dtype == "int8" else 130, dtype)
    stored = np.array([[-30.0, -3, 9, 60]]) + (0 if dtype == "int8" else 128)
    constants = {"s": np.float32(scale), "z": zero, "low": np.int8(-7), "high": np.int8(20), "ulow": np.uint8(120),
                 "uhigh": np.uint8(150), "zero": [0], "one": [1], "three": [3], "four": [4]}  # fmt: skip
    arrays = {k: np.asarray(v) for k, v in constants.items() if k in body + " s z"}
    width = forward(stored).shape[1]
    model = read(f"(float[1,4] x) => (float[1,{width}] y) {{ q = QuantizeLinear(x, s, z) {body} "
                 "y = DequantizeLinear(r, s, z) }", opset, **arrays)  # fmt: skip
    x = (stored - zero) * scale
    u = np.array([[1.0, -2, 3, 5]])[:, :width]
    (dx,) = gradients(model, ["x"], "y", {"x": x.astype(np.float32)}, u, True)
    expected = [(u * (forward(stored + e) - forward(stored - e)) / 2).sum() for e in np.eye(4)]
    assert dx.ravel().tolist() == expected
    assert len(set(expected)) > 1


def test_a_quantised_tensor_dequantised_by_hand_has_the_gradient_of_dequantize_linear() -> None:
    x = np.array([[-3.0, 0.2, 400, 7]], np.float32)
    constants = {"s": np.float32(0.25), "z": np.uint8(20), "k": np.float32(0.25), "o": np.float32(20)}
    by_hand = read("(float[1,4] x) => (float[1,4] y) { q = QuantizeLinear(x, s, z) f = Cast<to=1>(q) g = Sub(f, o) "
                   "y = Mul(g, k) }", 18, **{k: np.asarray(v) for k, v in constants.items()})  # fmt: skip
    (dx,) = gradients(by_hand, ["x"], "y", {"x": x}, np.array([[1.0, 2, 3, 4]]), True)
    assert dx.tolist() == [[1, 2, 0, 4]]


def test_a_cast_of_a_tensor_quantised_per_channel_divides_by_each_channel_s_scale() -> None:
    x = np.array([[-3.0, 0.2, 4]], np.float32)
    constants = {"s": np.array([0.25, 0.5, 2], np.float32), "z": np.full(3, 20, np.uint8)}
    text = "(float[1,3] x) => (float[1,3] y) { q = QuantizeLinear<axis=1>(x, s, z) y = Cast<to=1>(q) }"
    model = read(text, 18, **constants)
    (dx,) = gradients(model, ["x"], "y", {"x": x}, np.array([[1.0, 1, 1]]), True)
    assert dx.tolist() == [[4, 2, 0.5]]


CHAIN = """(float[1,2,6,6] x) => (float[1,4] y) {
    qx = QuantizeLinear(x, s0, z0) rx = DequantizeLinear(qx, s0, z0)
    w = DequantizeLinear<axis=0>(qw, sw, zw)
    c = Conv<pads=[1,1,1,1]>(rx, w) r = Relu(c)
    q1 = QuantizeLinear(r, s1, z1) p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(q1)
    shape = Constant<value_ints=[1,-1]>() f1 = Reshape(p1, shape) d1 = DequantizeLinear(f1, s1, z1)
    m = MatMul(d1, v) q2 = QuantizeLinear(m, s2, z2) y = DequantizeLinear(q2, s2, z2) }"""
CLIPPED = """(double[1,2,6,6] x, double[3,2,3,3] w, double[27,4] v) => (double[1,4] y) {
    lx = Constant<value_float=-10.1>() hx = Constant<value_float=53.85>()
    h1 = Constant<value_float=31.9>() l1 = Constant<value_float=0.0>()
    l2 = Constant<value_float=-100.1>() h2 = Constant<value_float=155.1>()
    l2d = Cast<to=11>(l2) h2d = Cast<to=11>(h2) l1d = Cast<to=11>(l1) h1d = Cast<to=11>(h1)
    lxd = Cast<to=11>(lx) hxd = Cast<to=11>(hx)
    rx = Clip(x, lxd, hxd) c = Conv<pads=[1,1,1,1]>(rx, w) r = Relu(c) q1 = Clip(r, l1d, h1d)
    p1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(q1)
    shape = Constant<value_ints=[1,-1]>() f1 = Reshape(p1, shape) m = MatMul(f1, v) y = Clip(m, l2d, h2d) }"""


def test_chain_of_quantised_layers_has_the_gradient_of_its_clipped_float_twin() -> None:
    """Scales are powers of two and values on the grid, so that nothing is rounded and both compute the same.

    The twin's bounds are a little wider than the range, whose ends are inside.
    """
    rng = np.random.default_rng(21)
    x = rng.integers(-60, 236, (1, 2, 6, 6)) / 4
    qw = rng.integers(-3, 4, (3, 2, 3, 3)).astype(np.int8)
    v = rng.integers(-1, 2, (27, 4)).astype(np.float32)
    sw = np.array([0.5, 0.5, 1.0], np.float32)
    constants = {
        "s0": np.float32(0.25),
        "z0": np.uint8(40),
        "qw": qw,
        "sw": sw,
        "zw": np.zeros(3, np.int8),
        "s1": np.float32(0.125),
        "z1": np.uint8(0),
        "s2": np.float32(1),
        "z2": np.uint8(100),
        "v": v,
    }
    model = read(CHAIN, 19, **{k: np.asarray(a) for k, a in constants.items()})
    u = rng.normal(size=(1, 4))
    (dx,) = gradients(model, ["x"], "y", {"x": x.astype(np.float32)}, u, True)
    twin = read(CLIPPED, 19)
    at = {"x": x, "w": qw * sw.astype(float).reshape(-1, 1, 1, 1), "v": v.astype(float)}
    assert 0 < (dx != 0).sum() < dx.size
    for _ in range(4):
        direction = rng.uniform(-1, 1, x.shape)
        expected = (u * directional(twin, at, {"x": direction}, "y", 1e-6)).sum()
        assert abs((dx * direction).sum() - expected) <= 1e-4 * np.abs(dx * direction).sum()


def test_quantisation_of_a_tensor_is_found_through_operators_that_move_values() -> None:
    constants = {"s0": np.float32(0.25), "z0": np.uint8(40), "qw": np.zeros((3, 2, 3, 3), np.int8)}
    graph = Graph(read(CHAIN, 19, **{k: np.asarray(a) for k, a in constants.items()}))
    for value, scale in [("qx", "s0"), ("q1", "s1"), ("p1", "s1"), ("f1", "s1")]:
        found = quantization(graph, value)
        assert found is not None
        assert found.scale == scale
    assert quantization(graph, "r") is None
