"""Rules of the `com.microsoft` operators that ONNX Runtime's optimiser writes at the levels BASIC and EXTENDED."""

from onnxcam.autodiff.compose import alias, apply_rule, composed
from onnxcam.autodiff.elementwise import gelu_slope
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _activated(op: Builder, node: Primal, dy: str, parameters: dict[str, float]) -> str:
    """dy before the fused activation, whose derivative is read from the output."""
    kind = node.attrs.get("activation") or ""
    if not kind:
        return dy
    y = node.node.outputs[0]
    if kind == "Clip":
        bounds = [op.floats(parameters["min"]), op.floats(parameters["max"])]
        inside = op.And(op.Greater(node.outputs[0], bounds[0]), op.Less(node.outputs[0], bounds[1]))
        return str(op.Mul(dy, op.Cast(inside, to=op.dtype)))
    if kind not in ("Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid"):
        raise node.unsupported(f"its activation is {kind}", "save the optimised model at level BASIC")
    (dx,) = apply_rule(op, alias(op, node, kind, [y], **parameters), dy)
    return str(dx)


@vjp("com.microsoft::FusedConv")
def fused_conv(op: Builder, node: Primal, dy: str) -> Cotangents:
    """Conv, plus Z, then an activation: its derivative from the output, then Conv's rule; dZ = dy before it."""
    given = [float(v) for v in node.attrs.get("activation_params") or []]
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Clip": ("min", "max")}
    parameters = dict(zip(names.get(node.attrs.get("activation") or "", ()), given, strict=False))
    g = _activated(op, node, dy, parameters)
    attrs = {k: node.attrs[k] for k in _CONV if k in node.attrs}
    inputs = [*node.node.inputs[:2], *(node.node.inputs[2:3] if node.has(2) else ())]
    dxs = apply_rule(op, alias(op, node, "Conv", inputs, **attrs), g)
    return (*dxs, *(None,) * (3 - len(dxs)), g)[: len(node.inputs)]


@vjp("com.microsoft::FusedGemm")
def fused_gemm(op: Builder, node: Primal, dy: str) -> Cotangents:
    """Gemm, then an activation: its derivative from the output, then Gemm's rule."""
    names = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(node.attrs.get("activation") or "", ())
    parameters = {n: float(node.attrs[f"activation_{n}"]) for n in names if f"activation_{n}" in node.attrs}
    g = _activated(op, node, dy, parameters)
    attrs = {k: node.attrs[k] for k in ("alpha", "beta", "transA", "transB") if k in node.attrs}
    return apply_rule(op, alias(op, node, "Gemm", node.node.inputs, **attrs), g)


@composed("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def fused_matmul(b: Builder, node: Primal) -> str:
    """alpha A' B', with the last two axes of A or B exchanged, or their batch axes moved before the last."""
    operands = []
    for i, side in enumerate("AB"):
        rank = node.rank(i)
        order = list(range(rank))
        if node.attrs.get(f"transBatch{side}"):
            order = [*order[1:-1], 0, order[-1]]
        if node.attrs.get(f"trans{side}") and rank > 1:
            order[-2:] = order[:-3:-1]
        operands.append(b.Transpose(node.inputs[i], perm=order) if order != list(range(rank)) else node.inputs[i])
    return str(b.Mul(b.MatMul(*operands), float(node.attrs.get("alpha", 1.0))))


@vjp("com.microsoft::Gelu")
def gelu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * (Phi(x) + x * phi(x))."""
    return (op.Mul(dy, gelu_slope(op, node.inputs[0], "none")),)


@vjp("com.microsoft::BiasGelu", broadcast=(1,))
def bias_gelu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The derivative of GELU at x + b, for both."""
    dx = op.Mul(dy, gelu_slope(op, op.Add(*node.inputs), "none"))
    return (dx, dx)


@vjp("com.microsoft::FastGelu", broadcast=(1,))
def fast_gelu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The derivative of GELU's tanh approximation at x + b, for both."""
    dx = op.Mul(dy, gelu_slope(op, op.Add(*node.inputs) if node.has(1) else node.inputs[0], "tanh"))
    return (dx, dx)[: len(node.inputs)]


@vjp("com.microsoft::QuickGelu")
def quick_gelu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """x * sigmoid(alpha x): s + alpha * y * (1 - s)."""
    alpha = float(node.attrs.get("alpha", 1.702))
    s = op.Sigmoid(op.Mul(node.inputs[0], alpha))
    return (op.Mul(dy, op.Add(s, op.Mul(op.Mul(node.outputs[0], alpha), op.Sub(1.0, s)))),)


@vjp("com.microsoft::BiasSoftmax", broadcast=(1,))
def bias_softmax(op: Builder, node: Primal, dy: str) -> Cotangents:
    """Softmax's rule, for data and bias alike."""
    axis = int(node.attrs.get("axis", 1))
    if axis % node.rank(0) != node.rank(0) - 1:
        raise node.unsupported("its axis is not the last one", "save the optimised model at level BASIC")
    (dx,) = apply_rule(op, alias(op, node, "Softmax", node.node.inputs[:1], axis=axis), dy)
    return (dx, dx)


@vjp("com.microsoft::BiasAdd", broadcast=(1,))
def bias_add(op: Builder, node: Primal, dy: str) -> Cotangents:
    """x + bias + skip: dy for each."""
    return (dy, dy, dy)


def _root_mean_square(b: Builder, x: str, scale: str, axes: list[int], epsilon: float) -> str:
    spread = b.Sqrt(b.Add(b.ReduceMean(b.Mul(x, x), axes, keepdims=1), epsilon))
    return str(b.Mul(b.Div(x, spread), scale))


@composed("SimplifiedLayerNormalization")
def simplified_layer_normalization(b: Builder, node: Primal) -> str:
    """RMS normalisation under ONNX Runtime's name: x / sqrt(mean(x^2) + epsilon) * scale from `axis` on."""
    axes = list(range(int(node.attrs.get("axis", -1)) % node.rank(0), node.rank(0)))
    return _root_mean_square(b, node.inputs[0], node.inputs[1], axes, float(node.attrs.get("epsilon", 1e-5)))


@composed("com.microsoft::SkipLayerNormalization", outputs=(0, 3))
def skip_layer_normalization(b: Builder, node: Primal) -> tuple[str, ...]:
    """LayerNormalization of x + skip + bias; the sum itself is the fourth output."""
    total = b.Add(*node.inputs[:2])
    total = b.Add(total, node.inputs[4]) if node.has(4) else total
    beta = node.inputs[3] if node.has(3) else None
    epsilon = float(node.attrs.get("epsilon", 1e-12))
    return (b.LayerNormalization(total, node.inputs[2], beta, axis=-1, epsilon=epsilon), "", "", total)


@composed("com.microsoft::SkipSimplifiedLayerNormalization", outputs=(0, 3))
def skip_simplified_layer_normalization(b: Builder, node: Primal) -> tuple[str, ...]:
    """x + skip + bias over its root mean square, times scale; the sum itself is the fourth output."""
    total = b.Add(*node.inputs[:2])
    total = b.Add(total, node.inputs[3]) if node.has(3) else total
    epsilon = float(node.attrs.get("epsilon", 1e-12))
    return (_root_mean_square(b, total, node.inputs[2], [-1], epsilon), "", "", total)


@composed("com.microsoft::GroupNorm", wrt=(0, 1, 2))
def group_norm(b: Builder, node: Primal) -> str:
    """Group normalisation of an NHWC or NCHW input, then SiLU where `activation` is 1."""
    x, gamma, beta = node.inputs[:3]
    rank, groups = node.rank(0), node.attrs["groups"]
    nhwc = bool(node.attrs.get("channels_last", 1))
    x = b.Transpose(x, perm=[0, rank - 1, *range(1, rank - 1)]) if nhwc else x
    ones, zeros = b.floats([1.0] * groups), b.floats([0.0] * groups)
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    n = b.Reshape(b.InstanceNormalization(b.Reshape(x, [0, groups, -1]), ones, zeros, epsilon=epsilon), b.Shape(x))
    axes = list(range(1, rank - 1))
    y = b.Add(b.Mul(n, b.Unsqueeze(gamma, axes)), b.Unsqueeze(beta, axes))
    y = b.Mul(y, b.Sigmoid(y)) if node.attrs.get("activation") else y
    return str(b.Transpose(y, perm=[0, *range(2, rank), 1]) if nhwc else y)
