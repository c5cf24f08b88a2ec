"""Input attributions and FullGrad: by hand on the toy network, closed forms, and autograd's own input gradients."""

import json
from math import erf, exp, log1p, pi, sqrt, tanh
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser
from test_identities import maps, network, pictures
from toy import X, toy

from onnxcam import Explainer
from onnxcam.check import check
from onnxcam.errors import UnsupportedError, UsageError

GOLDENS = Path(__file__).parent.parent / "parity" / "goldens"
NETWORKS = json.loads((GOLDENS / "goldens.json").read_text())["networks"]

# z_0 = mean(a_0) + 2 mean(a_1) + 0.5; a_0 = x_0 + x_1 is open in all four cells, a_1 = -x_0 + 3 x_1 + 1 in the first.
BY_HAND = [
    ("saliency", 0, [[1.75, 0.25], [0.25, 0.25]]),
    ("inputxgradient", 0, [[1.5, 0.5], [0.75, 0.75]]),
    ("guidedbackprop", 0, [[1.75, 0.25], [0.25, 0.25]]),
    ("deconvnet", 0, [[1.75, 1.75], [1.75, 1.75]]),  # the closed cells of a_1 let the gradient through
    # z_1 = 4 mean(a_0) - 8 mean(a_1) - 0.5
    ("saliency", 1, [[5, 1], [1, 1]]),
    ("inputxgradient", 1, [[-2, 2], [3, 3]]),
    ("guidedbackprop", 1, [[1, 1], [1, 1]]),  # the gradient at a_1 is negative everywhere
    ("deconvnet", 1, [[1, 1], [1, 1]]),
    # S(|x_0 G_0|) + S(|x_1 G_1|) + S(|1 G(c_1)|); the bias of channel 0 is 0
    ("fullgrad", 0, [[2, 1 / 3], [2 / 3, 8 / 7]]),
]


@pytest.mark.parametrize(("method", "target", "expected"), BY_HAND)
def test_maps_of_the_toy_are_those_worked_out_by_hand(method: str, target: int, expected: list[list[float]]) -> None:
    (explanation,) = maps(toy(), X, target, method=method)
    np.testing.assert_allclose(explanation.raw, expected, rtol=1e-6, atol=1e-6)


def golden(name: str) -> tuple[Path, dict[str, np.ndarray], list[int]]:
    entry = NETWORKS[name]
    with np.load(GOLDENS / entry["arrays"]) as stored:
        return GOLDENS / entry["onnx"], dict(stored), entry["classes"]["explicit"]


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "branches", "smooth", "convnext", "vit"])
def test_saliency_and_input_times_gradient_are_made_of_autograds_input_gradient(name: str) -> None:
    path, stored, classes = golden(name)
    x, g = stored["x"], stored["G.input.explicit"]
    size = x.shape[2:]
    for method, expected in (("saliency", np.abs(g).max(axis=1)), ("inputxgradient", (x * g).sum(axis=1))):
        found = Explainer(path, method=method, size=size, threads=1).explain_tensor(x, classes)
        for explanation, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(explanation.raw, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["plain", "residual", "branches"])
def test_guided_backpropagation_equals_that_of_pytorch_grad_cam(name: str) -> None:
    path, stored, classes = golden(name)
    x = stored["x"]
    found = Explainer(path, method="guidedbackprop", size=x.shape[2:], threads=1).explain_tensor(x, classes)
    for explanation, rgb in zip(found, stored["guidedbackprop.explicit"], strict=True):
        expected = np.abs(rgb).max(axis=2)
        np.testing.assert_allclose(explanation.raw, expected, rtol=1e-4, atol=1e-5 * expected.max())


def phi(x: float) -> float:
    return exp(-x * x / 2) / sqrt(2 * pi)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))


def slope(f: object, x: float) -> float:
    assert callable(f)
    return (f(x + 1e-5) - f(x - 1e-5)) / 2e-5


CONSTANTS = """float r2 = {1.4142135}, float one = {1}, float half = {0.5}, float three = {3}, float six = {6},
    float zero = {0}, float k = {0.044715}, float c = {0.7978846}"""
# An activation spelt as nodes from x to a, and its derivative.
ACTIVATIONS = {
    "Relu": ("a = Relu(x)", lambda x: float(x > 0)),
    "LeakyRelu": ("a = LeakyRelu<alpha=0.1>(x)", lambda x: 1.0 if x > 0 else 0.1),
    "Tanh": ("a = Tanh(x)", lambda x: 1 - tanh(x) ** 2),
    "Elu": ("a = Elu(x)", lambda x: 1.0 if x > 0 else exp(x)),
    "Softplus": ("a = Softplus(x)", lambda x: slope(lambda v: log1p(exp(v)), x)),
    "Clip, as ReLU6": ("a = Clip(x, zero, six)", lambda x: float(0 < x < 6)),
    "HardSwish": ("a = HardSwish(x)", lambda x: slope(lambda v: v * min(max(v / 6 + 0.5, 0), 1), x)),
    "SiLU": ("s = Sigmoid(x) a = Mul(x, s)", lambda x: slope(lambda v: v * sigmoid(v), x)),
    "SiLU, gate first": ("s = Sigmoid(x) a = Mul(s, x)", lambda x: slope(lambda v: v * sigmoid(v), x)),
    "GELU": (
        "d = Div(x, r2) e = Erf(d) p = Add(e, one) m = Mul(x, p) a = Mul(m, half)",
        lambda x: 0.5 * (1 + erf(x / sqrt(2))) + x * phi(x),
    ),
    "GELU by tanh": (
        "h = Mul(x, half) t = Pow(x, three) u = Mul(t, k) i = Add(x, u) w = Mul(i, c) y = Tanh(w) q = Add(y, one) "
        "a = Mul(h, q)",
        lambda x: slope(tanh_gelu, x),
    ),
    "Hardswish spelt out": (
        "p = Add(x, three) q = Clip(p, zero, six) m = Mul(x, q) a = Div(m, six)",
        lambda x: slope(lambda v: v * min(max(v + 3, 0), 6) / 6, x),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_guided_rules_apply_to_every_activation_however_it_is_spelt(name: str) -> None:
    """Guided: the activation's own slope times max(0, weight); Deconvnet: max(0, weight)."""
    nodes, derivative = ACTIVATIONS[name]
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        act (float[N,1,2,4] x) => (float[N,2] z) <{CONSTANTS}>
        {{ {nodes} f = Flatten(a) z = Gemm<transB=1>(f, v) }}""")
    v = np.array([[1.5, -2, 0.5, -1, 3, 2, -0.25, 1], [1] * 8], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(v, "v"))
    x = np.array([-2.5, -1.2, -0.3, 0.4, 0.9, 1.7, 2.2, -0.7], np.float32).reshape(1, 1, 2, 4)
    slopes = np.array([derivative(float(u)) for u in x.ravel()])
    # Deconvnet replaces the derivative at the activation's product; a constant factor behind it stays.
    factor = {"GELU": 0.5, "GELU by tanh": 0.5, "Hardswish spelt out": 1 / 6}.get(name, 1.0)
    for method, expected in (
        ("saliency", slopes * v[0]),
        ("guidedbackprop", slopes * np.maximum(v[0], 0)),
        ("deconvnet", factor * np.maximum(v[0], 0)),
    ):
        (got,) = maps(model, x, 0, method=method)
        np.testing.assert_allclose(got.raw.ravel(), np.abs(expected), rtol=1e-4, atol=1e-5)


def test_the_gate_of_squeeze_and_excitation_is_no_activation() -> None:
    """x times a gate of its pooled self: guided backpropagation is the plain gradient, whatever its sign."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        se (float[N,2,2,2] x) => (float[N,2] z) <float[2,2,1,1] w = {1, -2, 0.5, 1}, float[2,2] v = {-1, 2, 1, 1}>
        { p = GlobalAveragePool(x) q = Conv(p, w) s = Sigmoid(q) a = Mul(x, s) m = GlobalAveragePool(a) f = Flatten(m)
          z = Gemm<transB=1>(f, v) }""")
    (plain,), (guided,) = (maps(model, X, 0, method=m) for m in ("saliency", "guidedbackprop"))
    np.testing.assert_array_equal(plain.raw, guided.raw)


def squares() -> ModelProto:
    """z_0 = sum x^2, z_1 = -sum x^2."""
    return parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        squares (float[N,2,2,4] x) => (float[N,2] z) <int64[3] axes = {1, 2, 3}, float[1,2] v = {1, -1}>
        { q = Mul(x, x) s = ReduceSum<keepdims=0>(q, axes) to = Constant<value_ints=[-1,1]>() r = Reshape(s, to)
          z = MatMul(r, v) }""")


SQUARED = np.random.default_rng(0).normal(size=(3, 2, 2, 4)).astype(np.float32)


@pytest.mark.parametrize("baseline", [0.0, -0.5])
def test_integrated_gradients_of_a_square_are_the_difference_of_squares(baseline: float) -> None:
    options = {"steps": 1, "baseline": baseline}  # one Gauss-Legendre point is exact for a linear gradient
    found = maps(squares(), SQUARED, [0, 1, 0], method="integratedgradients", method_options=options)
    for explanation, x, sign in zip(found, SQUARED.astype(np.float64), (1, -1, 1), strict=True):
        np.testing.assert_allclose(explanation.raw, sign * (x**2 - baseline**2).sum(axis=0), rtol=1e-5, atol=1e-5)
        assert abs(explanation.provenance["found"]["completeness_delta"]) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 32])
def test_integrated_gradients_sum_up_to_the_score_less_that_of_the_baseline(batch_size: int) -> None:
    path, stored, classes = golden("smooth")
    x = stored["x"]
    explainer = Explainer(path, method="integratedgradients", size=x.shape[2:], threads=1, batch_size=batch_size)
    for explanation, target in zip(explainer.explain_tensor(x, classes), classes, strict=True):
        start = float(explainer.scores(np.zeros_like(x[:1]), np.array([target]))[0])
        gap = explanation.raw.astype(np.float64).sum() - (explanation.score - start)
        assert abs(gap) < 1e-3 * abs(explanation.score - start)
        assert explanation.provenance["found"]["completeness_delta"] == pytest.approx(gap, abs=1e-4)


def test_few_steps_leave_a_completeness_delta_that_is_recorded() -> None:
    (few,) = maps(toy(), X, 0, method="integratedgradients", method_options={"steps": 1})
    # One point, t = 1/2: a_1 = max(0, 0.5 (-x_0 + 3 x_1) + 1) is open where a_0's whole way is open: by hand below.
    grad = [np.full((2, 2), 0.25), np.full((2, 2), 0.25)]
    opened = (0.5 * (-X[0, 0] + 3 * X[0, 1]) + 1) > 0
    grad[0] = grad[0] - 0.5 * opened
    grad[1] = grad[1] + 1.5 * opened
    expected = X[0, 0] * grad[0] + X[0, 1] * grad[1]
    np.testing.assert_allclose(few.raw, expected, rtol=1e-6)
    at_zero = 0.5 + 2 * 1.0  # a_0 = 0, a_1 = 1
    assert few.provenance["found"]["completeness_delta"] == pytest.approx(expected.sum() - (4.5 - at_zero), abs=1e-5)


def test_smoothgrad_without_noise_is_saliency_and_vargrad_is_zero() -> None:
    model, x = network(6), pictures(6, 2)
    still = {"samples": 3, "std": 0.0}
    plain = maps(model, x, 1, method="saliency")
    smooth = maps(model, x, 1, method="smoothgrad", method_options=still)
    variance = maps(model, x, 1, method="vargrad", method_options=still)
    for p, s, v in zip(plain, smooth, variance, strict=True):
        np.testing.assert_allclose(s.raw, p.raw, rtol=1e-5, atol=1e-7)
        assert v.raw.max() < 1e-10


def test_smoothgrad_and_vargrad_of_a_square_are_moments_of_the_seeded_noise() -> None:
    options = {"samples": 6, "std": 0.2}
    smooth, variance = (
        maps(squares(), SQUARED, 1, method=m, method_options=options, seed=9, batch_size=4)
        for m in ("smoothgrad", "vargrad")
    )
    for x, s, v in zip(SQUARED, smooth, variance, strict=True):
        rng = np.random.default_rng(9)
        noisy = np.stack([x + 0.2 * np.ptp(x) * rng.standard_normal(x.shape, np.float32) for _ in range(6)])
        g = -2 * noisy.astype(np.float64)
        np.testing.assert_allclose(s.raw, np.abs(g.mean(axis=0)).max(axis=0), rtol=1e-4)
        np.testing.assert_allclose(v.raw, g.var(axis=0).max(axis=0), rtol=1e-3)


def test_guided_gradcam_is_the_map_times_guided_backpropagation() -> None:
    model, x = network(6), pictures(6, 2)
    cam = maps(model, x, [1, 2], layer="i")
    guided = maps(model, x, [1, 2], method="guidedbackprop")
    both = maps(model, x, [1, 2], method="guidedgradcam", layer="i")
    for c, g, b in zip(cam, guided, both, strict=True):
        assert c.values.max() > 0.9
        np.testing.assert_allclose(b.raw, c.values * g.raw, rtol=0, atol=2e-6 * g.raw.max())


ALL = ("saliency", "inputxgradient", "integratedgradients", "smoothgrad", "vargrad", "guidedbackprop", "deconvnet",
       "guidedgradcam", "fullgrad")  # fmt: skip


@pytest.mark.parametrize("method", ALL)
def test_channels_last_inputs_give_the_maps_of_channels_first(method: str) -> None:
    model, x = network(6), pictures(6, 2)
    last = ModelProto()
    last.CopyFrom(model)
    last.graph.node[0].input[0] = "first"
    last.graph.node.insert(0, parser.parse_node("first = Transpose<perm=[0,3,1,2]>(x)"))
    dims = last.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(dims[1:], (12, 12, 3), strict=True):
        dim.dim_value = size
    few = {"samples": 3, "std": 0.0} if method in ("smoothgrad", "vargrad") else {}
    options = {"method": method, "method_options": few}
    options |= {"layer": "i"} if method == "guidedgradcam" else {}
    expected = maps(model, x, [0, 1], **options)
    got = maps(last, np.ascontiguousarray(x.transpose(0, 2, 3, 1)), [0, 1], **options)
    for g, w in zip(got, expected, strict=True):
        assert method == "vargrad" or w.raw.max() > 1e-3
        np.testing.assert_allclose(g.raw, w.raw, rtol=1e-4, atol=1e-6)


def test_integer_inputs_are_refused_with_the_methods_that_would_work() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        quantized (uint8[N,1,4,4] x) => (float[N,2] z)
        <float scale = {0.5}, uint8 zero = {100}, float[2,1,1,1] w = {2, 1}>
        { m = DequantizeLinear(x, scale, zero) a = Conv(m, w) p = GlobalAveragePool(a) z = Flatten(p) }""")
    for method in (*ALL,):
        with pytest.raises(UnsupportedError, match="input `x` holds integers: there is no gradient") as error:
            Explainer(model, method=method)
        offered = error.value.hint.split("methods that work here: ")[1].split(", ")
        assert {"gradcam", "scorecam", "rise", "occlusion"} <= {*offered} and not {*ALL} & {*offered}
    report = check(model)
    assert report.automatic is not None and not {*ALL} & {*report.automatic.methods}
    assert {*ALL} <= {*_methods_of(toy())}


def _methods_of(model: ModelProto) -> tuple[str, ...]:
    report = check(model)
    assert report.automatic is not None
    return report.automatic.methods


def test_methods_of_the_input_refuse_a_layer() -> None:
    with pytest.raises(UsageError, match="method `saliency` explains the input `x` itself, not layer `a`"):
        Explainer(toy(), method="saliency", layer="a")
    (named,), (plain,) = (maps(toy(), X, 0, method="saliency", **o) for o in ({"layer": "x"}, {}))
    np.testing.assert_array_equal(named.raw, plain.raw)


@pytest.mark.parametrize(("bias", "share"), [(3, 1.0), (2, 0.0)])
def test_fullgrad_counts_the_shift_of_a_batch_norm_as_a_bias(bias: int, share: float) -> None:
    """b = bias - 2 * 0.5 / sqrt(0.25): 1, or 0, which adds nothing. How large b is does not show: S scales it away."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        bn (float[N,1,1,3] x) => (float[N,1] z)
        <float[1] scale = {{0.5}}, float[1] bias = {{{bias}}}, float[1] mean = {{2}}, float[1] var = {{0.25}},
         float[1,3] v = {{1, 2, 5}}>
        {{ a = BatchNormalization<epsilon=0.0>(x, scale, bias, mean, var) f = Flatten(a) z = Gemm<transB=1>(f, v) }}""")
    x = np.array([[[[1, 1, 2]]]], np.float32)
    (got,) = maps(model, x, 0, method="fullgrad")
    # |x G| = (1, 2, 10) -> (0, 1/9, 1); |b G| = (1, 2, 5) -> (0, 1/4, 1)
    np.testing.assert_allclose(got.raw, [[0, 1 / 9 + share / 4, 1 + share]], rtol=1e-5, atol=1e-6)


def test_fullgrad_refuses_eigen_smooth() -> None:
    with pytest.raises(UsageError, match="`fullgrad` has no weighted sum of channels"):
        Explainer(toy(), method="fullgrad", eigen_smooth=True)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8])
def test_saliency_of_a_linear_score_is_its_largest_weight_of_any_number_of_channels(channels: int) -> None:
    """The gradient of w_c . x is w_c."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[N,{channels},6,5] x) => (float[N,2] y) {{ f = Flatten(x)  y = MatMul(f, w) }}""")
    w = np.random.default_rng(channels).standard_normal((channels * 30, 2), dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    x = np.ones((2, channels, 6, 5), np.float32)
    for target, found in zip([1, 0], Explainer(model, method="saliency").explain_tensor(x, [1, 0]), strict=True):
        np.testing.assert_array_equal(found.raw, np.abs(w[:, target].reshape(channels, 6, 5)).max(axis=0))
