"""Rules of normalisation layers."""

import numpy as np

from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


def normalized_cotangent(op: Builder, x: str, g: str, axes: list[int], epsilon: float, centred: bool = True) -> str:
    """Cotangent of x through (x - mean) / sqrt(var + epsilon) over `axes`, given that of the normalised value.

    dx = (g - mean(g) - n * mean(g * n)) / sqrt(var + epsilon), n the normalised value; not centred (RMS): without
    the means of x and g.
    """
    if centred:
        x = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    inverse = op.Reciprocal(op.Sqrt(op.Add(op.ReduceMean(op.Mul(x, x), axes, keepdims=1), epsilon)))
    n = op.Mul(x, inverse)
    along = op.Mul(n, op.ReduceMean(op.Mul(g, n), axes, keepdims=1))
    if centred:
        g = op.Sub(g, op.ReduceMean(g, axes, keepdims=1))
    return str(op.Mul(op.Sub(g, along), inverse))


def _normalized(op: Builder, x: str, axes: list[int], epsilon: float) -> str:
    x = op.Sub(x, op.ReduceMean(x, axes, keepdims=1))
    return str(op.Div(x, op.Sqrt(op.Add(op.ReduceMean(op.Mul(x, x), axes, keepdims=1), epsilon))))


def per_channel(op: Builder, value: str, rank: int) -> str:
    """A (C,) value as (C, 1, ...), to broadcast against (N, C, ...)."""
    return str(op.Unsqueeze(value, [*range(1, rank - 1)])) if rank > 2 else value


@vjp("BatchNormalization")
def batch_normalization(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * scale / sqrt(var + epsilon) at inference; dscale, dB, dmean, dvar by the same formula."""
    if node.attrs["training_mode"]:
        raise node.unsupported("it is in training mode", "export the model with `eval()`")
    rank, epsilon = node.rank(0), float(node.attrs["epsilon"])
    scale, variance = node.constant(1), node.constant(4)
    if scale is not None and variance is not None:
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        dx = op.Mul(dy, op.floats(factor.reshape(-1, *[1] * (rank - 2))))
    else:
        dx = op.Mul(dy, per_channel(op, op.Div(node.inputs[1], op.Sqrt(op.Add(node.inputs[4], epsilon))), rank))
    if not any(node.live(i) for i in (1, 2, 3, 4)):
        return (dx,)
    axes = [0, *range(2, rank)]
    mean, inverse = node.inputs[3], op.Reciprocal(op.Sqrt(op.Add(node.inputs[4], epsilon)))
    centred = op.Sub(node.inputs[0], per_channel(op, mean, rank))
    total = op.ReduceSum(dy, axes, keepdims=0)
    along = op.ReduceSum(op.Mul(dy, centred), axes, keepdims=0)
    dvar = op.Mul(op.Mul(op.Mul(along, node.inputs[1]), op.Mul(inverse, op.Mul(inverse, inverse))), -0.5)
    return (dx, op.Mul(along, inverse), total, op.Neg(op.Mul(total, op.Mul(node.inputs[1], inverse))), dvar)


@vjp("InstanceNormalization")
def instance_normalization(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The normalisation's vjp over the spatial axes with g = dy * scale; dscale = sum(dy * n), dB = sum(dy)."""
    rank = node.rank(0)
    axes, others = [*range(2, rank)], [0, *range(2, rank)]
    epsilon = float(node.attrs["epsilon"])
    g = op.Mul(dy, per_channel(op, node.inputs[1], rank))
    dscale = db = None
    if node.live(1):
        n = _normalized(op, node.inputs[0], axes, epsilon)
        dscale = op.ReduceSum(op.Mul(dy, n), others, keepdims=0)
    if node.live(2):
        db = op.ReduceSum(dy, others, keepdims=0)
    return (normalized_cotangent(op, node.inputs[0], g, axes, epsilon), dscale, db)


@vjp("LayerNormalization", outputs=None)
def layer_normalization(op: Builder, node: Primal, dy: str | None, *statistics: str | None) -> Cotangents:
    """The normalisation's vjp over the axes from `axis` on with g = dy * scale; dscale = sum(dy * n), dB = sum(dy)."""
    if dy is None or any(statistics):
        raise node.unsupported("its mean or deviation is read", "export the model without training outputs")
    rank = node.rank(0)
    axes = [*range(node.attrs["axis"] % rank, rank)]
    epsilon = float(node.attrs["epsilon"])
    g = op.Mul(dy, node.inputs[1])
    dscale = db = None
    if node.live(1):
        dscale = node.sum_to(op.Mul(dy, _normalized(op, node.inputs[0], axes, epsilon)), node.shape(0), 1)
    if node.live(2):
        db = node.sum_to(dy, node.shape(0), 2)
    return (normalized_cotangent(op, node.inputs[0], g, axes, epsilon), dscale, db)[: len(node.inputs)]


@vjp("LRN")
def lrn(op: Builder, node: Primal, dy: str) -> Cotangents:
    """y = x D^-beta, D = bias + alpha / size * (sum of x^2 over neighbouring channels).

    dx = dy D^-beta - 2 alpha beta / size * x * S'(dy x D^(-beta-1)), with S' the adjoint of the channel sum.
    """
    x, a = node.inputs[0], node.attrs
    (channels,) = node.static(0, [1])
    size, scale = int(a["size"]), float(a["alpha"]) / int(a["size"])
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    offsets = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    band = ((offsets >= -before) & (offsets <= after)).astype(np.float64)

    def summed(value: str, matrix: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> str:
        return node.reshaped(op.MatMul(op.floats(matrix), op.Reshape(value, [0, channels, -1])))

    d = op.Add(op.Mul(summed(op.Mul(x, x), band), scale), float(a["bias"]))
    shrunk = op.Pow(d, -float(a["beta"]))
    back = summed(op.Div(op.Mul(op.Mul(dy, x), shrunk), d), band.T)
    return (op.Sub(op.Mul(dy, shrunk), op.Mul(op.Mul(x, back), 2.0 * scale * float(a["beta"]))),)
