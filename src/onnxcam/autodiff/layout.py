"""Rules of operators that only move values: reshapes, transposes, joins and cuts."""

import numpy as np

from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze", wrt=(0,))
def reshape(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy in the input's shape."""
    dx, shape = node.reshaped_back(dy), node.shape(0) or ()
    if dy in op.one_hots and len(shape) > 2 and all(d == 1 for d in shape[2:]):
        op.one_hots[dx] = op.one_hots[dy]
    return (dx,)


@vjp("Transpose")
def transpose(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy under the inverse permutation."""
    perm = node.attrs.get("perm")
    return (op.Transpose(dy, perm=[int(i) for i in np.argsort(perm)] if perm else None),)


@vjp("Expand", wrt=(0,), broadcast=(0,))
def expand(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy summed over the axes that were expanded."""
    return (dy,)


@vjp("Concat")
def concat(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx_i = its part of dy along the axis."""
    axis = node.attrs["axis"]
    if len(node.inputs) == 1:
        return (dy,)
    return tuple(op.Split(dy, _sizes(op, node, axis), axis=axis, outputs=len(node.inputs)))


def _sizes(op: Builder, node: Primal, axis: int) -> str | list[int]:
    shapes = [node.shape(i) for i in range(len(node.inputs))]
    sizes = [shape[axis] if shape is not None else None for shape in shapes]
    fixed = [s for s in sizes if isinstance(s, int)]
    if len(fixed) == len(sizes):
        return fixed
    return str(op.Concat(*(op.Gather(op.Shape(v), [axis]) for v in node.inputs), axis=0))


@vjp("Split", wrt=(0,), outputs=None)
def split(op: Builder, node: Primal, *dys: str | None) -> Cotangents:
    """dx = the cotangents joined along the axis, zeros for parts that nothing reads."""
    names = node.outputs
    if "" in names:
        count = node.attrs.get("num_outputs")
        names = op.Split(*node.inputs, axis=node.attrs["axis"], num_outputs=count, outputs=len(dys))
    parts = [dy or op.zeros_like(y) for dy, y in zip(dys, names, strict=True)]
    return (parts[0] if len(parts) == 1 else op.Concat(*parts, axis=node.attrs["axis"]),)


@vjp("Pad", wrt=(0, 2))
def pad(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx cuts the padding off again, dvalue sums it; reflect, edge and wrap add it to what it was copied from."""
    if node.attrs["mode"] == "constant":
        pads = node.constant(1)
        dx = op.Pad(dy, op.Neg(node.inputs[1]) if pads is None else -pads, None, node.input(3))
        rest = op.Sub(op.ReduceSum(dy, keepdims=0), op.ReduceSum(dx, keepdims=0)) if node.live(2) else None
        return (dx, None, rest and node.reshaped(rest, 2))[: len(node.inputs)]
    pads, axes = node.constant(1), node.constant(3)
    if pads is None or (node.has(3) and axes is None):
        raise node.unsupported("its pads are not constant", "export the model with fixed sizes")
    along = range(node.rank(0)) if axes is None else [int(a) for a in axes]
    amounts = pads.reshape(2, -1)
    for axis, (before, after) in zip(along, amounts.T, strict=True):
        if before or after:
            positions = op.Range(0, _size(op, node, axis), 1)
            source = op.Pad(positions, [int(before), int(after)], mode=node.attrs["mode"])
            dy = scatter_along(op, dy, source, _size(op, node, axis), axis, node.rank(0))
    return (dy,)


@vjp("Slice", wrt=(0,))
def slice_(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy at the positions that were taken, 0 elsewhere."""
    rank = node.rank(0)
    starts, axes, steps = node.constant(1), node.constant(3), node.constant(4)
    (count,) = node.static(1, [0])
    if node.has(3) and axes is None:
        raise node.unsupported("its axes are not constant", "export the model with fixed axes")
    along = [int(a) % rank for a in axes] if axes is not None else list(range(count))
    shape, out = node.shape(0) or (), node.output_shape() or (None,) * rank
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(along):
        unit = not node.has(4) or (steps is not None and steps[i] == 1)
        size, taken = shape[axis], out[axis]
        if unit and starts is not None and isinstance(size, int) and isinstance(taken, int):
            begin = int(np.clip(starts[i] + (size if starts[i] < 0 else 0), 0, size))
            before[axis], after[axis] = begin, size - begin - taken
        else:
            start, end, *step = (op.Gather(v, [i]) for v in (*node.inputs[1:3], *node.inputs[4:5]))
            kept = op.Slice(op.Range(0, _size(op, node, axis), 1), start, end, [0], *step)
            dy = scatter_along(op, dy, kept, _size(op, node, axis), axis, rank)
    return (op.Pad(dy, [*before, *after]) if any(before) or any(after) else dy,)


def _size(op: Builder, node: Primal, axis: int) -> str:
    """The size of the input along an axis, as an int64 scalar."""
    size = (node.shape(0) or ())[axis]
    if isinstance(size, int):
        return op.value(size)
    return str(op.Gather(op.Shape(node.inputs[0]), axis))


def scatter_along(op: Builder, dy: str, source: str, size: str, axis: int, rank: int) -> str:
    """Adds slice i of dy along `axis` to position source[i] of zeros of the given size: the adjoint of Gather."""
    axis %= rank
    others = op.Shape(dy)
    dims = op.Concat(
        *([op.Slice(others, [0], [axis])] if axis else []),
        op.Reshape(size, [1]),
        *([op.Slice(others, [axis + 1], [rank])] if axis + 1 < rank else []),
        axis=0,
    )
    column = op.Reshape(source, [-1 if i == axis else 1 for i in range(rank)])
    indices = op.Expand(column, others)
    zeros = op.ConstantOfShape(dims, value=op.scalar(0.0))
    return str(op.ScatterElements(zeros, indices, dy, axis=axis, reduction="add"))


@vjp("Gather", wrt=(0,))
def gather(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx adds each slice of dy to the position it was taken from."""
    rank = node.rank(0)
    axis = node.attrs["axis"] % rank
    index, size = node.constant(1), (node.shape(0) or ())[axis]
    if index is not None and index.ndim == 0 and isinstance(size, int):
        pads = np.zeros((2, rank), np.int64)
        pads[:, axis] = int(index) % size, size - 1 - int(index) % size
        return (op.Pad(op.Unsqueeze(dy, [axis]), pads.ravel()),)
    shape = node.shape(1)
    if shape is None:
        raise node.unsupported("the rank of its indices is unknown")
    flat = op.Reshape(node.inputs[1], [-1])
    if len(shape) != 1:
        dims = op.Shape(dy)
        head = [op.Slice(dims, [0], [axis])] if axis else []
        tail = [op.Slice(dims, [axis + len(shape)], [rank - 1 + len(shape)])] if axis + 1 < rank else []
        dy = op.Reshape(dy, op.Concat(*head, [-1], *tail, axis=0) if head or tail else [-1])
    return (scatter_along(op, dy, op.Cast(flat, to=7), _size(op, node, axis), axis, rank),)
