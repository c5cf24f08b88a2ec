"""Rules of operators that pick, place, repeat or accumulate elements."""

from collections.abc import Callable

import numpy as np

from onnxcam.autodiff.compose import composed
from onnxcam.autodiff.elementwise import mask
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


@vjp("TopK", wrt=(0,))
def top_k(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy at the positions that were chosen, 0 elsewhere."""
    zeros = op.zeros_like(node.inputs[0])
    return (op.ScatterElements(zeros, node.outputs[1] or _indices(op, node), dy, axis=node.attrs["axis"]),)


def _indices(op: Builder, node: Primal) -> str:
    attrs = {name: node.attrs[name] for name in ("axis", "largest", "sorted")}
    return str(op.TopK(*node.inputs, outputs=2, **attrs)[1])


@vjp("GatherElements", wrt=(0,))
def gather_elements(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx adds each element of dy to the position it was taken from."""
    zeros = op.zeros_like(node.inputs[0])
    return (op.ScatterElements(zeros, node.inputs[1], dy, axis=node.attrs["axis"], reduction="add"),)


@vjp("GatherND", wrt=(0,))
def gather_nd(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx adds each slice of dy to the position it was taken from; batch axes become one more index."""
    x, indices = node.inputs
    batch = node.attrs["batch_dims"]
    zeros = op.zeros_like(x)
    if not batch:
        return (op.ScatterND(zeros, indices, dy, reduction="add"),)
    # One flat batch axis; its position joins the index tuples.
    zeros, indices, dy = (_merged(op, v, batch) for v in (zeros, indices, dy))
    order = node.rank(1) - batch + 1
    count = op.Shape(indices, start=0, end=1)
    column = op.Reshape(op.Range(0, op.Squeeze(count, [0]), 1), [-1, *[1] * (order - 1)])
    columns = op.Expand(column, op.Concat(op.Shape(indices, end=-1), [1], axis=0))
    placed = op.ScatterND(zeros, op.Concat(columns, indices, axis=-1), dy, reduction="add")
    return (node.reshaped(placed),)


def _merged(op: Builder, value: str, axes: int) -> str:
    """The first `axes` axes as one."""
    return str(op.Reshape(value, op.Concat([-1], op.Shape(value, start=axes), axis=0)))


@vjp("ScatterElements", wrt=(0, 2))
def scatter_elements(op: Builder, node: Primal, dy: str) -> Cotangents:
    """What was overwritten gets nothing and the updates get dy from their places; see `_scattered`."""
    axis, indices = node.attrs["axis"], node.inputs[1]

    def scatter(data: str, updates: str, reduction: str) -> str:
        return str(op.ScatterElements(data, indices, updates, axis=axis, reduction=reduction))

    return _scattered(op, node, dy, scatter, lambda v: str(op.GatherElements(v, indices, axis=axis)))


@vjp("ScatterND", wrt=(0, 2))
def scatter_nd(op: Builder, node: Primal, dy: str) -> Cotangents:
    """What was overwritten gets nothing and the updates get dy from their places; see `_scattered`."""
    indices = node.inputs[1]

    def scatter(data: str, updates: str, reduction: str) -> str:
        return str(op.ScatterND(data, indices, updates, reduction=reduction))

    return _scattered(op, node, dy, scatter, lambda v: str(op.GatherND(v, indices)))


def _scattered(
    op: Builder, node: Primal, dy: str, scatter: Callable[[str, str, str], str], gather: Callable[[str], str]
) -> Cotangents:
    """Reductions: none, add; mul (updates only if each place is hit once); max and min, ties sharing dy equally."""
    (data, _, updates), reduction = node.inputs, node.attrs.get("reduction", "none")
    if reduction == "none":
        return (scatter(dy, op.zeros_like(updates), "none"), None, gather(dy))
    if reduction == "add":
        return (dy, None, gather(dy))
    if reduction == "mul":
        if node.live(2):
            raise node.unsupported("the factors of a product of scattered updates have no rule")
        ones = op.ConstantOfShape(op.Shape(data), value=op.scalar(1.0))
        return (op.Mul(dy, scatter(ones, updates, "mul")), None)
    y = node.outputs[0]
    kept, taken = mask(op, op.Equal(data, y)), mask(op, op.Equal(updates, gather(y)))
    share = op.Div(dy, scatter(kept, taken, "add"))
    return (op.Mul(share, kept), None, op.Mul(gather(share), taken))


@vjp("Tile", wrt=(0,))
def tile(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy summed over the copies."""
    x, repeats = node.inputs
    rank = node.rank(0)
    pairs = op.Concat(op.Unsqueeze(repeats, [1]), op.Unsqueeze(op.Shape(x), [1]), axis=1)
    copies = op.Reshape(dy, op.Reshape(pairs, [-1]))
    return (op.ReduceSum(copies, [*range(0, 2 * rank, 2)], keepdims=0),)


@vjp("Trilu", wrt=(0,))
def trilu(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = the same triangle of dy."""
    return (op.Trilu(dy, node.input(1) or None, upper=node.attrs["upper"]),)


@vjp("CumSum", wrt=(0,))
def cum_sum(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy summed from the other end."""
    reverse = 1 - node.attrs["reverse"]
    return (op.CumSum(dy, node.inputs[1], exclusive=node.attrs["exclusive"], reverse=reverse),)


@composed("CumProd", wrt=(0,))
def cum_prod(b: Builder, node: Primal) -> str:
    """y_i is the product over the j that come before i, as a masked (n, n) product, so that zeros need no care."""
    x, rank, axis = node.inputs[0], node.rank(0), node.constant(1)
    if axis is None:
        raise node.unsupported("its axis is not constant")
    at = int(axis.reshape(())) % rank
    (n,) = node.static(0, [at])
    i, j = (b.constant(np.arange(n).reshape(shape)) for shape in ((n, 1), (1, n)))
    before = (b.Greater if node.attrs["exclusive"] else b.GreaterOrEqual)(
        *((j, i) if node.attrs["reverse"] else (i, j))
    )
    shape = [n if a == at else 1 for a in range(rank)]
    factors = b.Where(b.Reshape(before, [*shape[:at], n, *shape[at:]]), b.Unsqueeze(x, [at]), 1.0)
    return str(b.ReduceProd(factors, [at + 1], keepdims=0))


@vjp("ReverseSequence", wrt=(0,))
def reverse_sequence(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy reversed again."""
    axes = {name: node.attrs[name] for name in ("batch_axis", "time_axis")}
    return (op.ReverseSequence(dy, node.inputs[1], **axes),)


@vjp("Compress", wrt=(0,))
def compress(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy at the slices that were kept, 0 elsewhere."""
    x, condition = node.inputs
    places = op.Squeeze(op.NonZero(condition), [0])
    if "axis" not in node.attrs:
        flat = op.Reshape(op.zeros_like(x), [-1])
        return (node.reshaped(op.ScatterElements(flat, places, dy, axis=0)),)
    rank, axis = node.rank(0), node.attrs["axis"] % node.rank(0)
    column = op.Reshape(places, [-1 if a == axis else 1 for a in range(rank)])
    return (op.ScatterElements(op.zeros_like(x), op.Expand(column, op.Shape(dy)), dy, axis=axis),)
