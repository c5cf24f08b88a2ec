"""Rules of pooling."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from onnxcam.autodiff.conv import Window, joined_phases, output_spatial, phase_cells, spatial, splits, window
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


@vjp("GlobalAveragePool")
def global_average_pool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy / (number of positions)."""
    return (node.expanded(op.Div(dy, position_count(op, node)), axes=range(2, node.rank())),)


def position_count(op: Builder, node: Primal) -> str:
    """Number of spatial positions of the (N, C, ...) input per output element, fixed or at run time."""
    dims = (node.shape(0) or ())[2:]
    if dims and all(isinstance(d, int) for d in dims):
        return op.floats(math.prod(int(d) for d in dims if isinstance(d, int)))
    return str(op.Cast(op.Div(op.Size(node.inputs[0]), op.Size(node.outputs[0])), to=op.dtype))


@vjp("GlobalMaxPool")
def global_max_pool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The first maximum takes dy."""
    flat = op.Reshape(node.inputs[0], [0, 0, -1])
    winner = op.ArgMax(flat, axis=2, keepdims=1)
    zeros = op.zeros_like(flat)
    return (node.reshaped(op.ScatterElements(zeros, winner, op.Reshape(dy, [0, 0, 1]), axis=2)),)


@vjp("MaxPool")
def max_pool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The first maximum of each window takes dy."""

    def back(cotangent: str, positive: bool) -> str:
        return _by_taps(op, node, cotangent, positive) or _by_indices(op, node, cotangent)

    dx = back(dy, False)
    op.pooled[dx] = (node.inputs[0], node.outputs[0], dy, partial(back, positive=True))
    return (dx,)


def _by_indices(op: Builder, node: Primal, dy: str) -> str:
    """dx by the operator's own Indices, to which dy is scattered back with addition."""
    names = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    attrs = {k: node.attrs[k] for k in names if k in node.attrs}
    _, indices = op.MaxPool(node.inputs[0], outputs=2, **attrs)
    zeros = op.Reshape(op.zeros_like(node.inputs[0]), [-1])
    flat = op.ScatterElements(zeros, op.Reshape(indices, [-1]), op.Reshape(dy, [-1]), axis=0, reduction="add")
    return node.reshaped(flat)


def _by_taps(op: Builder, node: Primal, dy: str, positive: bool) -> str | None:
    """dx of small windows, tap by tap: what is left of dy goes to the first tap that equals the maximum.

    Taps of one phase modulo the stride add up; the phases are put together. In blocks of channels alone this is faster
    than indices. A NaN takes nothing, where an index would point at it.

    positive: whether no input is negative and dy is 0 where a maximum is 0, so that zeros may stand around the input
    and convolutions move its cells; then neither does what lies beside a NaN or an infinity.
    """
    sizes = [*(node.shape(0) or [None])[1:], *(node.output_shape() or [None])[1:]]
    if not op.blocks or node.dtype(0) != op.dtype or not all(isinstance(d, int) for d in sizes):
        return None
    w = pooled(node)
    s, n, x = w.strides[0], w.small, node.inputs[0]
    if not splits(w, node.static(0, (1,))[0]) or math.prod(w.kernel) > 9 or min(w.kernel) < s:
        return None
    c, cells = node.static(0, (1,))[0], tuple(phase_cells(w))
    around = [0, 0, *w.begin, 0, 0, *(max(e, 0) for e in w.end)]
    if any(around) and not positive:
        x = op.Pad(x, around, op.floats(np.nan))
    phases: dict[tuple[int, ...], str] = {}
    left = dy
    for tap in np.ndindex(*w.kernel):
        shift, phase = zip(*(divmod(t - b, s) for t, b in zip(tap, w.begin, strict=True)), strict=True)
        if positive:
            values = _moved(op, _moved(op, x, c, w.large, cells, phase, s), c, cells, n, shift)
        else:
            last = [t + (m - 1) * s + 1 for t, m in zip(tap, n, strict=True)]
            values = op.Slice(x, [*tap], last, [2, 3], [s, s])
        equal = op.Equal(values, node.outputs[0])
        taken = op.Mul(left, op.Cast(equal, to=op.dtype))
        left = op.Sub(left, taken)
        moved = _moved(op, taken, c, n, cells, [-q for q in shift])
        phases[phase] = op.Add(moved, phases[phase]) if phase in phases else moved
    parts = [phases[phase] for phase in np.ndindex(s, s)]
    return joined_phases(op, w, op.Concat(*parts, axis=1) if s > 1 else parts[0])


def _moved(
    op: Builder, x: str, c: int, given: Sequence[int], asked: Sequence[int], offsets: Sequence[int], stride: int = 1
) -> str:
    """y[i] = x[stride i + offset] of (N, c, *given), zeros outside: a convolution, which has a form in blocks."""
    if [*given] == [*asked] and not any(offsets) and stride == 1:
        return x
    before = [max(-o, 0) for o in offsets]
    kernel = [abs(o) + 1 for o in offsets]
    ends = [(m - 1) * stride + k - b - size for m, k, b, size in zip(asked, kernel, before, given, strict=True)]
    weights = np.zeros((c, 1, *kernel))
    weights[:, :, max(offsets[0], 0), max(offsets[1], 0)] = 1
    pads = [*before, *(max(e, 0) for e in ends)]
    y = op.Conv(x, op.floats(weights), group=c, strides=[stride] * len(kernel), pads=pads)
    return str(op.Slice(y, [0, 0], [*asked], [2, 3]) if min(ends) <= -stride else y)


def pooled(node: Primal) -> Window:
    """The pooling window. Windows that start past the input do not exist, though older shape inference counts them."""
    w = window(node, node.attrs["kernel_shape"], spatial(node), output_spatial(node))
    starts = zip(w.small, w.large, w.begin, w.strides, strict=True)
    return replace(w, small=tuple(min(n, (size + b - 1) // s + 1) for n, size, b, s in starts))


@vjp("AveragePool")
def average_pool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx spreads dy / (elements in the window) over each window: a depthwise ConvTranspose of ones."""
    w = pooled(node)
    share = op.Div(dy, op.floats(_window_counts(w, node)))
    if set(w.small) == {1} and w.large == w.kernel:
        return (node.expanded(share),)
    rows = op.Reshape(share, [-1, 1, *w.small])
    spread = op.ConvTranspose(rows, op.floats(np.ones((1, 1, *w.kernel))), **w.transposed())
    return (node.reshaped(spread),)


def _window_counts(w: Window, node: Primal) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """How many elements each window averages, shape (1, 1, *small)."""
    declared_end = (node.attrs.get("pads") or [0] * 2 * len(w.kernel))[len(w.kernel) :]
    counts = np.ones([1] * len(w.small))
    for axis, (size, n, k, s, d, b, e) in enumerate(
        zip(w.large, w.small, w.kernel, w.strides, w.dilations, w.begin, w.end, strict=True)
    ):
        taps = np.arange(n)[:, None] * s - b + np.arange(k) * d
        low, high = 0, size
        if node.attrs["count_include_pad"]:
            padded = e if node.attrs["auto_pad"].startswith("SAME") else declared_end[axis]
            low, high = -b, size + padded
        per_axis = ((taps >= low) & (taps < high)).sum(1)
        counts = counts * per_axis.reshape([-1 if i == axis else 1 for i in range(len(w.small))])
    return counts[None, None]


@vjp("LpPool")
def lp_pool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """y = (sum |x|^p)^(1/p) per window: dx = sign(x) |x|^(p-1) * adjoint(dy * y^(1-p)); 0 where y is 0."""
    w = pooled(node)
    slope = _p_norm_share(op, dy, node.outputs[0], node.attrs["p"])
    rows = op.Reshape(slope, [-1, 1, *w.small])
    spread = op.ConvTranspose(rows, op.floats(np.ones((1, 1, *w.kernel))), **w.transposed())
    return (op.Mul(node.reshaped(spread), signed_power(op, node.inputs[0], node.attrs["p"])),)


@vjp("GlobalLpPool")
def global_lp_pool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """y = (sum |x|^p)^(1/p): dx = dy * y^(1-p) * sign(x) |x|^(p-1); 0 where y is 0."""
    slope = _p_norm_share(op, dy, node.outputs[0], node.attrs["p"])
    return (op.Mul(signed_power(op, node.inputs[0], node.attrs["p"]), slope),)


def _p_norm_share(op: Builder, dy: str, y: str, p: int) -> str:
    if p == 1:
        return dy
    zero = op.Cast(op.Equal(y, 0.0), to=op.dtype)
    return str(op.Mul(dy, op.Mul(op.Pow(op.Add(y, zero), 1.0 - p), op.Sub(1.0, zero))))


def signed_power(op: Builder, x: str, p: int) -> str:
    """sign(x) |x|^(p-1), the derivative of |x|^p / p; 0 at 0."""
    if p == 1:
        return str(op.Sign(x))
    return x if p == 2 else str(op.Mul(op.Sign(x), op.Pow(op.Abs(x), float(p - 1))))


@vjp("MaxUnpool", wrt=(0,))
def max_unpool(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy at the positions that the indices name."""
    if node.has(2):
        raise node.unsupported("its output shape is given, which changes what its indices mean")
    picked = op.GatherElements(op.Reshape(dy, [-1]), op.Reshape(node.inputs[1], [-1]), axis=0)
    return (node.reshaped(picked),)
