"""Rules of element-wise operators. Masks are products with a cast boolean: `Where` costs three times as much.

Integers, which ReLU, Clip and Max meet between quantised operators, are taken for the numbers that are stored: a kink
lies where the operator has it (ReLU's at the stored 0), whatever real value that stands for. Slopes between the real
values are the same, since the scale is the same before and after.
"""

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from onnxcam.autodiff.engine import INTEGERS, Primal
from onnxcam.autodiff.registry import ALL, Cotangents, vjp
from onnxcam.graph.build import Builder

# dy/dx of f at x, given x and y = f(x); by the chain rule dx = dy * derivative.
Derivative = Callable[[Builder, Primal, str, str], str]


def _unary(*kinds: str) -> Callable[[Derivative], Derivative]:
    def register(derivative: Derivative) -> Derivative:
        @vjp(*kinds, wrt=(0,))
        def rule(op: Builder, node: Primal, dy: str) -> Cotangents:
            x, y = (number(op, node, v) for v in (node.inputs[0], node.outputs[0]))
            return (op.Mul(dy, derivative(op, node, x, y)),)

        rule.__doc__ = derivative.__doc__
        return derivative

    return register


def number(op: Builder, node: Primal, value: str) -> str:
    """A primal of the node in the builder's float type, integers included."""
    return str(op.Cast(value, to=op.dtype)) if node.graph.dtype(value) in INTEGERS - {TensorProto.BOOL} else value


def mask(op: Builder, condition: str) -> str:
    """A boolean as 0 and 1 in the builder's float type."""
    return str(op.Cast(condition, to=op.dtype))


@vjp("Identity", wrt=(0,))
def identity(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy."""
    return (dy,)


@vjp("Dropout", wrt=(0,))
def dropout(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy at inference."""
    training = node.constant(2)
    if node.has(2) and (training is None or training.any()):
        raise node.unsupported("it may be in training mode", "export the model with `eval()`")
    return (dy,)


@vjp("Neg")
def neg(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = -dy."""
    return (op.Neg(dy),)


@vjp("Add", broadcast=(ALL,))
def add(op: Builder, node: Primal, dy: str) -> Cotangents:
    """da = db = dy."""
    return (dy, dy)


@vjp("Sub", broadcast=(ALL,))
def sub(op: Builder, node: Primal, dy: str) -> Cotangents:
    """da = dy, db = -dy."""
    return (dy, op.Neg(dy) if node.live(1) else None)


@vjp("Mul", broadcast=(ALL,))
def mul(op: Builder, node: Primal, dy: str) -> Cotangents:
    """da = dy * b, db = dy * a. Of x * sigmoid(x), at once: dx = dy * (s + y * (1 - s))."""
    a, b = (number(op, node, x) for x in node.inputs)
    for x, gate, s in ((0, 1, b), (1, 0, a)):
        maker = node.graph.producer(node.node.inputs[gate])
        if maker is not None and maker.kind == "Sigmoid" and maker.inputs[0] == node.node.inputs[x] and node.live(x):
            dx = op.Mul(dy, op.Add(op.Mul(node.outputs[0], op.Sub(1.0, s)), s))
            return (None, dx) if x else (dx, None)
    return (op.Mul(dy, b) if node.live(0) else None, op.Mul(dy, a) if node.live(1) else None)


@vjp("Div", broadcast=(ALL,))
def div(op: Builder, node: Primal, dy: str) -> Cotangents:
    """da = dy / b, db = -dy * y / b."""
    da = op.Div(dy, number(op, node, node.inputs[1]))
    return (da, op.Neg(op.Mul(da, number(op, node, node.outputs[0]))) if node.live(1) else None)


@vjp("Sum", broadcast=(ALL,))
def sum_(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx_i = dy."""
    return (dy,) * len(node.inputs)


@vjp("Mean", broadcast=(ALL,))
def mean(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx_i = dy / n."""
    return (op.Mul(dy, 1.0 / len(node.inputs)),) * len(node.inputs)


@vjp("Max", "Min", broadcast=(ALL,))
def extremum(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The winner takes dy; ties share it equally, as PyTorch's `maximum`."""
    if len(node.inputs) == 1:
        return (dy,)
    y, xs = number(op, node, node.outputs[0]), [number(op, node, x) for x in node.inputs]
    wins = [mask(op, op.Equal(x, y)) for x in xs]
    share = op.Div(dy, op.Sum(*wins))
    return tuple(op.Mul(share, win) for win in wins)


@vjp("Where", wrt=(1, 2), broadcast=(1, 2))
def where(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy where the condition holds, dy' = dy elsewhere."""
    condition = node.inputs[0]
    return (
        None,
        op.Mul(dy, mask(op, condition)) if node.live(1) else None,
        op.Mul(dy, mask(op, op.Not(condition))) if node.live(2) else None,
    )


@vjp("Pow", broadcast=(ALL,))
def power(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * e * x^(e-1); de = dy * y * log(x), taken as 0 where x <= 0."""
    x, e = (number(op, node, v) for v in node.inputs)
    constant = node.constant(1)
    if constant is not None and constant.size == 1:
        exponent = float(constant.reshape(()))
        if exponent in (0.0, 1.0):
            return (dy if exponent else None,)
        slope = x if exponent == 2.0 else op.Pow(x, exponent - 1.0)
        return (op.Mul(dy, op.Mul(slope, exponent)),)
    dx = op.Mul(dy, op.Mul(e, op.Pow(x, op.Sub(e, 1.0)))) if node.live(0) else None
    if not node.live(1):
        return (dx, None)
    positive = op.Greater(x, 0.0)
    log = op.Log(op.Where(positive, x, 1.0))
    return (dx, op.Mul(dy, op.Mul(number(op, node, node.outputs[0]), log)))


@vjp("Mod", broadcast=(ALL,))
def mod(op: Builder, node: Primal, dy: str) -> Cotangents:
    """y = a - b * n with an integer n: da = dy, db = -dy * n, where n = round((a - y) / b)."""
    a, b, y = (number(op, node, v) for v in (*node.inputs, node.outputs[0]))
    return (dy, op.Neg(op.Mul(dy, op.Round(op.Div(op.Sub(a, y), b)))) if node.live(1) else None)


@vjp("Relu")
def relu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy where y > 0; 0 at the kink, as PyTorch. Read from the output, so that a fused convolution stays fused.

    What comes back through a pooling by maxima is masked before it does: where a maximum is, it is the same number.
    """
    (y,) = node.outputs
    pool = op.pooled.get(dy)
    if pool is not None and pool[0] == y:
        _, maxima, cotangent, back = pool
        return (back(op.Mul(cotangent, mask(op, op.Greater(number(op, node, maxima), 0.0)))),)
    return (op.Mul(dy, mask(op, op.Greater(number(op, node, y), 0.0))),)


@_unary("LeakyRelu")
def leaky_relu(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 where x > 0, alpha elsewhere and at the kink."""
    alpha = node.attrs["alpha"]
    return str(op.Add(op.Mul(mask(op, op.Greater(y if alpha > 0 else x, 0.0)), 1.0 - alpha), alpha))


@vjp("PRelu", broadcast=(ALL,))
def prelu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * (1 where x > 0, slope elsewhere and at the kink); dslope = dy * min(x, 0)."""
    x, slope = (number(op, node, v) for v in node.inputs)
    positive = mask(op, op.Greater(x, 0.0))
    factor = op.Add(positive, op.Mul(op.Sub(1.0, positive), slope))
    return (op.Mul(dy, factor), op.Mul(dy, op.Min(x, 0.0)) if node.live(1) else None)


@_unary("ThresholdedRelu")
def thresholded_relu(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 where x > alpha; 0 at the jump."""
    return mask(op, op.Greater(x, node.attrs["alpha"]))


@vjp("Clip", broadcast=(1, 2))
def clip(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy strictly between the bounds; at them the bound takes it, as PyTorch's ReLU6 (its `clamp` gives it to x).

    Read from the output, so that a fused convolution stays fused.
    """
    y, bounds = number(op, node, node.outputs[0]), {i: number(op, node, node.input(i)) for i in (1, 2) if node.has(i)}
    beyond = {1: op.Greater, 2: op.Less}
    inside = [beyond[i](y, bound) for i, bound in bounds.items()]
    if not inside:
        return (dy,)
    dx = op.Mul(dy, mask(op, inside[0] if len(inside) == 1 else op.And(*inside)))
    at = [op.Mul(dy, mask(op, op.Equal(y, bounds[i]))) if node.live(i) else None for i in (1, 2)]
    return (dx, *at)[: len(node.inputs)]


@_unary("Sigmoid")
def sigmoid(op: Builder, node: Primal, x: str, y: str) -> str:
    """y * (1 - y)."""
    return str(op.Mul(y, op.Sub(1.0, y)))


@_unary("Tanh")
def tanh(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 - y^2."""
    return str(op.Sub(1.0, op.Mul(y, y)))


def _hard_sigmoid_slope(op: Builder, h: str, alpha: float) -> str:
    return str(op.Mul(mask(op, op.And(op.Greater(h, 0.0), op.Less(h, 1.0))), alpha))


@_unary("HardSigmoid")
def hard_sigmoid(op: Builder, node: Primal, x: str, y: str) -> str:
    """alpha where 0 < y < 1; 0 at the kinks."""
    return _hard_sigmoid_slope(op, y, node.attrs["alpha"])


@_unary("HardSwish")
def hard_swish(op: Builder, node: Primal, x: str, y: str) -> str:
    """h + x * h' with h = clip(x / 6 + 1/2, 0, 1); h' = 0 at the kinks."""
    sixth = float(np.float32(1.0 / 6.0))  # what the schema's function body holds
    h = op.HardSigmoid(x, alpha=sixth, beta=0.5)
    return str(op.Add(h, op.Mul(x, _hard_sigmoid_slope(op, h, sixth))))


@_unary("Swish")
def swish(op: Builder, node: Primal, x: str, y: str) -> str:
    """s + alpha * y * (1 - s) with s = sigmoid(alpha * x)."""
    alpha = node.attrs["alpha"]
    s = op.Sigmoid(op.Mul(x, alpha))
    return str(op.Add(s, op.Mul(op.Mul(y, alpha), op.Sub(1.0, s))))


def _gaussian(op: Builder, x: str) -> str:
    return str(op.Mul(op.Exp(op.Mul(op.Mul(x, x), -0.5)), 1.0 / math.sqrt(2.0 * math.pi)))


def gelu_slope(op: Builder, x: str, approximate: str) -> str:
    """Derivative of GELU: Phi(x) + x * phi(x), or that of its tanh approximation (Hendrycks and Gimpel, 2016)."""
    if approximate == "none":
        cdf = op.Mul(op.Add(op.Erf(op.Mul(x, math.sqrt(0.5))), 1.0), 0.5)
        return str(op.Add(cdf, op.Mul(x, _gaussian(op, x))))
    c, square = math.sqrt(2.0 / math.pi), op.Mul(x, x)
    t = op.Tanh(op.Mul(op.Mul(x, op.Add(op.Mul(square, 0.044715), 1.0)), c))
    inner = op.Mul(op.Add(op.Mul(square, 3.0 * 0.044715), 1.0), c)
    slope = op.Mul(op.Mul(x, inner), op.Sub(1.0, op.Mul(t, t)))
    return str(op.Mul(op.Add(op.Add(t, 1.0), slope), 0.5))


@_unary("Gelu")
def gelu(op: Builder, node: Primal, x: str, y: str) -> str:
    """Phi(x) + x * phi(x), or the derivative of the tanh approximation."""
    return gelu_slope(op, x, node.attrs["approximate"])


@_unary("Erf")
def erf(op: Builder, node: Primal, x: str, y: str) -> str:
    """2 / sqrt(pi) * exp(-x^2)."""
    return str(op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2.0 / math.sqrt(math.pi)))


@_unary("Softplus")
def softplus(op: Builder, node: Primal, x: str, y: str) -> str:
    """sigmoid(x)."""
    return str(op.Sigmoid(x))


@_unary("Softsign")
def softsign(op: Builder, node: Primal, x: str, y: str) -> str:
    """(1 - |y|)^2."""
    rest = op.Sub(1.0, op.Abs(y))
    return str(op.Mul(rest, rest))


@_unary("Mish")
def mish(op: Builder, node: Primal, x: str, y: str) -> str:
    """t + x * (1 - t^2) * sigmoid(x) with t = tanh(softplus(x))."""
    t = op.Tanh(op.Softplus(x))
    return str(op.Add(t, op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), op.Sigmoid(x))))


def _exponential_unit(op: Builder, x: str, left: str, right: float) -> str:
    positive = mask(op, op.Greater(x, 0.0))
    return str(op.Add(op.Mul(positive, right), op.Mul(op.Sub(1.0, positive), left)))


@_unary("Elu")
def elu(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 where x > 0, alpha * exp(x) elsewhere and at the kink."""
    left = op.Mul(op.Exp(op.Min(x, 0.0)), node.attrs["alpha"])
    return _exponential_unit(op, x, left, 1.0)


@_unary("Selu")
def selu(op: Builder, node: Primal, x: str, y: str) -> str:
    """gamma where x > 0, gamma * alpha * exp(x) elsewhere and at the kink."""
    left = op.Mul(op.Exp(op.Min(x, 0.0)), node.attrs["alpha"] * node.attrs["gamma"])
    return _exponential_unit(op, x, left, node.attrs["gamma"])


@_unary("Celu")
def celu(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 where x > 0, exp(x / alpha) elsewhere."""
    left = op.Exp(op.Mul(op.Min(x, 0.0), 1.0 / node.attrs["alpha"]))
    return _exponential_unit(op, x, left, 1.0)


@_unary("Shrink")
def shrink(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 where |x| > lambda; 0 inside and at the jumps."""
    return mask(op, op.Greater(op.Abs(x), node.attrs["lambd"]))


@_unary("Abs")
def absolute(op: Builder, node: Primal, x: str, y: str) -> str:
    """sign(x); 0 at 0."""
    return str(op.Sign(x))


@_unary("Sqrt")
def sqrt(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / (2 y); infinite at 0, as the derivative is."""
    return str(op.Div(0.5, y))


@_unary("Reciprocal")
def reciprocal(op: Builder, node: Primal, x: str, y: str) -> str:
    """-y^2."""
    return str(op.Neg(op.Mul(y, y)))


@_unary("Exp")
def exp(op: Builder, node: Primal, x: str, y: str) -> str:
    """y."""
    return y


@_unary("Log")
def log(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / x."""
    return str(op.Reciprocal(x))


@_unary("Sin")
def sin(op: Builder, node: Primal, x: str, y: str) -> str:
    """cos(x)."""
    return str(op.Cos(x))


@_unary("Cos")
def cos(op: Builder, node: Primal, x: str, y: str) -> str:
    """-sin(x)."""
    return str(op.Neg(op.Sin(x)))


@_unary("Tan")
def tan(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 + y^2."""
    return str(op.Add(op.Mul(y, y), 1.0))


@_unary("Asin")
def asin(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / sqrt(1 - x^2)."""
    return str(op.Reciprocal(op.Sqrt(op.Sub(1.0, op.Mul(x, x)))))


@_unary("Acos")
def acos(op: Builder, node: Primal, x: str, y: str) -> str:
    """-1 / sqrt(1 - x^2)."""
    return str(op.Div(-1.0, op.Sqrt(op.Sub(1.0, op.Mul(x, x)))))


@_unary("Atan")
def atan(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / (1 + x^2)."""
    return str(op.Reciprocal(op.Add(op.Mul(x, x), 1.0)))


@_unary("Sinh")
def sinh(op: Builder, node: Primal, x: str, y: str) -> str:
    """cosh(x)."""
    return str(op.Cosh(x))


@_unary("Cosh")
def cosh(op: Builder, node: Primal, x: str, y: str) -> str:
    """sinh(x)."""
    return str(op.Sinh(x))


@_unary("Asinh")
def asinh(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / sqrt(x^2 + 1)."""
    return str(op.Reciprocal(op.Sqrt(op.Add(op.Mul(x, x), 1.0))))


@_unary("Acosh")
def acosh(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / sqrt(x^2 - 1)."""
    return str(op.Reciprocal(op.Sqrt(op.Sub(op.Mul(x, x), 1.0))))


@_unary("Atanh")
def atanh(op: Builder, node: Primal, x: str, y: str) -> str:
    """1 / (1 - x^2)."""
    return str(op.Reciprocal(op.Sub(1.0, op.Mul(x, x))))


@vjp("Softmax")
def softmax(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = y * (dy - sum(dy * y)) along the axis."""
    y, axis = node.outputs[0], [node.attrs["axis"]]
    weighted = op.Mul(dy, y)
    return (op.Sub(weighted, op.Mul(y, op.ReduceSum(weighted, axis, keepdims=1))),)


@vjp("LogSoftmax")
def log_softmax(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy - exp(y) * sum(dy) along the axis."""
    return (op.Sub(dy, op.Mul(op.Exp(node.outputs[0]), op.ReduceSum(dy, [node.attrs["axis"]], keepdims=1))),)
