"""The finish as nodes: what `saliency` and `render` do on the host, for files that explain themselves.

The same maps within rounding; only operators that every runtime has. Sums over channels and enlargements are matrix
products: as `ReduceSum` and `Resize` they take ONNX Runtime five times as long. A map is scaled on its own small grid,
by the extremes that the enlarged one will have, so that the picture's size is gone through as rarely as can be.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnxcam.graph.build import Builder
from onnxcam.graph.index import Dim, Graph
from onnxcam.graph.layers import Layer
from onnxcam.preprocess import Preprocess
from onnxcam.render import colormap

Size = tuple[int, int]


def raw_map(op: Builder, layer: Layer, activations: str, alpha: str, fixed: bool, rank: int) -> str:
    """(N, h, w), of rank 4 (N, 1, h, w): alpha A summed over channels, signed. fixed: one grid for all pictures."""
    alpha = _before_spreading(op, alpha)
    shape = op.graph.shape(alpha) or ()
    if shape == (1, 1, 1, 1):  # a map that the method made itself
        return activations if rank == 4 else str(op.Squeeze(activations, [1]))
    if not fixed or len(shape) != 4 or shape[2:] != (1, 1) or layer.channels is None:
        return str(op.ReduceSum(op.Mul(activations, alpha), [1], keepdims=rank - 3))
    return channel_sum(op, layer, activations, alpha, rank)


def channel_sum(op: Builder, layer: Layer, activations: str, alpha: str, rank: int, channels_last: bool = False) -> str:
    """The same of weights (N, K, 1, 1), on the layer's fixed grid: a matrix product."""
    weights, factor = _without_factor(op, alpha)
    K = layer.channels or 1
    if channels_last:
        cells = op.Reshape(op.Transpose(activations, perm=[0, 2, 3, 1]), [0, -1, K])
        product = op.MatMul(cells, op.Reshape(weights, [0, K, 1]))
    else:
        cells = op.Reshape(activations, [0, K, -1])
        product = op.MatMul(op.Reshape(weights, [0, 1, K]), cells)
    # Not before the Reshape: ONNX Runtime would make the factor part of the product, which then takes longer.
    summed = op.Reshape(product, [0, 1, *layer.grid] if rank == 4 else [0, *layer.grid])
    return str(op.Mul(summed, factor) if factor != 1 else summed)


_BLOCKWISE = frozenset({"Add", "BatchNormalization", "Clip", "HardSigmoid", "Mul", "Relu", "Sigmoid", "Tanh"})


def in_blocks(graph: Graph, layer: Layer) -> bool:
    """Whether ONNX Runtime on x86 holds a layer in blocks of channels, from which channels last are got soonest.

    So it holds what convolutions make, and what it makes of that element by element. OpenVINO holds them channels last.
    """
    shape, layout = graph.shape(layer.name) or (), layer.layout.kind
    if (
        layout != "nchw"
        or len(shape) != 4
        or graph.dtype(layer.name) != TensorProto.FLOAT
        or (layer.channels or 1) % 16
    ):
        return False
    pending, seen = [layer.name], {layer.name}
    while pending:
        node = graph.producer(pending.pop())
        if node is None or node.domain or node.op_type not in _BLOCKWISE | {"Conv"}:
            return False
        if node.op_type != "Conv":
            same = [v for v in node.inputs if v and v not in graph.initializers and graph.shape(v) != ()]
            if any(graph.shape(v) != shape for v in same):
                return False
            pending += [v for v in same if v not in seen]
            seen.update(same)
    return True


def _without_factor(op: Builder, alpha: str) -> tuple[str, float]:
    """The weights before the constant factor that all of them have, and that: the sum has fewer values to scale."""
    graph, value, factor = op.graph, alpha, 1.0
    while (node := graph.producer(value)) is not None and _rows(graph, value) == _rows(graph, node.inputs[0]):
        if node.op_type in ("Mul", "Div"):
            number = graph.constant(node.inputs[1])
            if number is None or number.size != 1 or not number.item():
                break
            factor = factor * float(number.item()) if node.op_type == "Mul" else factor / float(number.item())
        elif node.op_type not in ("Reshape", "Squeeze", "Unsqueeze"):
            break
        value = node.inputs[0]
    return value, factor


def _rows(graph: Graph, value: str) -> tuple[Dim, int | None]:
    """Of N rows of K values, in whatever shape, N and K; K None where it is not known."""
    first, *rest = graph.shape(value) or (None,)
    sizes = [d for d in rest if isinstance(d, int)]
    return first, math.prod(sizes) if first and len(sizes) == len(rest) else None


def _before_spreading(op: Builder, alpha: str) -> str:
    """The weights (N, K, 1, 1) that were spread over the grid only to be averaged, as behind global average pooling."""
    graph = op.graph
    mean = graph.producer(alpha)
    spread = graph.producer(mean.inputs[0]) if mean is not None and mean.op_type == "ReduceMean" else None
    if spread is not None and spread.op_type == "Expand" and (graph.shape(spread.inputs[0]) or ())[2:] == (1, 1):
        return spread.inputs[0]
    return alpha


@dataclass(frozen=True)
class Enlarged:
    """Maps (..., H, W); where they are a small map enlarged, rows (..., H, w) and columns (w, W) of which they are the
    product within rounding."""

    values: str
    rows: str | None = None
    columns: str | None = None


def finished(
    op: Builder, raws: Sequence[tuple[str, Size]], size: Size | str, normalize: str, fuse: str, rank: int
) -> Enlarged:
    """The saliency maps (N, H, W), of rank 4 (N, C, H, W) of C classes, from each layer's raw maps and their grid.

    size: (H, W), or the name of a value that holds it where it is known at run time only.
    """
    if len(raws) == 1:
        return _saliency(op, *raws[0], size, normalize, rank)
    if fuse != "mean":
        first, *others = [_saliency(op, raw, grid, size, normalize, rank).values for raw, grid in raws]
        for maps in others:
            first = op.emit({"product": "Mul", "max": "Max"}[fuse], (first, maps), 1, {})[0]
        return Enlarged(NORMALIZED[normalize](op, first, rank))
    seen = []
    for raw, grid in raws:
        positive = op.Relu(raw)
        small = min_max(op, positive, rank) if normalize == "minmax" else positive
        seen.append(resized(op, small, grid, size, rank).values)
    return Enlarged(NORMALIZED[normalize](op, op.Mul(op.Sum(*seen), 1 / len(seen)), rank))


def _saliency(op: Builder, raw: str, grid: Size, size: Size | str, normalize: str, rank: int) -> Enlarged:
    """max(raw, 0), normalised, enlarged, normalised once more: of `minmax` the two at once.

    (r - min) / (e + R) and then the same with U r of range d is (U r - min U r) / (d + e (e + R)) with e = 1e-7: the
    denominator is d + 1e-14 within one rounding, since R is about d.
    """
    positive, axes = op.Relu(raw), [rank - 2, rank - 1]
    if normalize == "none":
        return resized(op, positive, grid, size, rank)
    if isinstance(size, str):
        small = min_max(op, positive, rank) if normalize == "minmax" else positive
        return Enlarged(NORMALIZED[normalize](op, resized(op, small, grid, size, rank).values, rank))
    if grid == size:
        return Enlarged(
            min_max(op, positive, rank, 1e-14) if normalize == "minmax" else _by_maximum(op, positive, rank)
        )
    if normalize == "max":
        return resized(op, _by_maximum(op, positive, rank, _extremes(op, positive, grid, size)), grid, size, rank)
    above = op.Sub(positive, op.ReduceMin(positive, axes, keepdims=1))
    extremes = _extremes(op, above, grid, size)
    low, high = op.ReduceMin(extremes, axes, keepdims=1), op.ReduceMax(extremes, axes, keepdims=1)
    scaled = op.Div(op.Sub(above, low), op.Add(op.Sub(high, low), 1e-14))
    found = resized(op, scaled, grid, size, rank)
    return replace(found, values=op.Clip(found.values, 0.0, 1.0))


def _extremes(op: Builder, maps: str, grid: Size, size: Size) -> str:
    """Those values of the enlarged maps among which their smallest and largest are."""
    rows, columns = (interpolation(*axis)[corners(*axis)] for axis in zip(grid, size, strict=True))
    return str(op.MatMul(op.MatMul(op.constant(rows), maps), op.constant(columns.T)))


def min_max(op: Builder, maps: str, rank: int, epsilon: float = 1e-7) -> str:
    """Each map (m - min m) / (epsilon + max m - min m)."""
    axes = [rank - 2, rank - 1]
    above = op.Sub(maps, op.ReduceMin(maps, axes, keepdims=1))
    return str(op.Mul(above, op.Reciprocal(op.Add(op.ReduceMax(above, axes, keepdims=1), epsilon))))


def _by_maximum(op: Builder, maps: str, rank: int, among: str | None = None) -> str:
    """Each map divided by its maximum, or that of `among`; one of zeros stays so."""
    peak = op.ReduceMax(among or maps, [rank - 2, rank - 1], keepdims=1)
    return str(op.Div(maps, op.Add(peak, op.Cast(op.Equal(peak, 0.0), to=op.dtype))))


NORMALIZED: dict[str, Callable[[Builder, str, int], str]] = {
    "minmax": min_max,
    "max": _by_maximum,
    "none": lambda op, maps, rank: maps,
}


def resized(op: Builder, maps: str, grid: Size, size: Size | str, rank: int) -> Enlarged:
    """Half-pixel bilinear, clamped at the edges, without antialiasing."""
    if isinstance(size, str):
        whole = maps if rank == 4 else op.Unsqueeze(maps, [1])
        sizes = op.Concat(op.Shape(whole, start=0, end=2), size, axis=0)
        made = op.Resize(whole, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
        return Enlarged(made if rank == 4 else op.Squeeze(made, [1]))
    if grid == size:
        return Enlarged(maps)
    rows = op.constant(interpolation(grid[0], size[0]))
    square = (grid[0], size[0]) == (grid[1], size[1])
    columns = op.Transpose(rows, perm=[1, 0]) if square else op.constant(interpolation(grid[1], size[1]).T)
    tall = op.MatMul(rows, maps)
    return Enlarged(op.MatMul(tall, columns), tall, columns)


def interpolation(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """(pixels, cells): row i holds what each cell counts at pixel i, in a half-pixel linear resize."""
    at, below = _sources(cells, pixels)
    share = (at - below).astype(np.float32)
    weights = np.zeros((pixels, cells), np.float32)
    weights[np.arange(pixels), below] = 1 - share
    weights[np.arange(pixels), np.minimum(below + 1, cells - 1)] += share
    return weights


def corners(cells: int, pixels: int) -> npt.NDArray[np.bool_]:
    """(pixels,): where a line of pixels can have an extreme: between two cells it only rises or only falls."""
    _, below = _sources(cells, pixels)
    inside = np.zeros(pixels, bool)
    inside[1:-1] = (below[:-2] == below[1:-1]) & (below[1:-1] == below[2:])
    return ~inside


def _sources(cells: int, pixels: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Of every pixel its coordinate, in cells, and the cell below."""
    at = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    return at, np.floor(at).astype(np.intp)


def affine(op: Builder, values: str, factors: npt.NDArray[np.float64], shifts: npt.NDArray[np.float64]) -> str:
    """factor x - shift of values (N, C, ...), of each of the C its own: one pass, where `Mul` and `Sub` are two."""
    zeros, ones = op.floats(np.zeros(len(factors))), op.floats(np.ones(len(factors)))
    return str(op.BatchNormalization(values, op.floats(factors), op.floats(-shifts), zeros, ones, epsilon=0.0))


def model_input(op: Builder, picture: str, settings: Preprocess) -> str:
    """What the model takes, from pictures (N, H, W, 3) uint8 of its own size: `Preprocess` without the resize."""
    planes, gray, (height, width) = settings.layout == "nchw", settings.channels == "gray", settings.size
    swapped, perm = settings.channels == "bgr", [0, 3, 1, 2]
    if swapped:
        pixels = op.Gather(op.Transpose(picture, perm=perm) if planes else picture, [2, 1, 0], axis=1 if planes else 3)
    else:
        pixels = picture
    if settings.unchanged and not gray:
        return str(op.Identity(op.Transpose(pixels, perm=perm) if planes and not swapped else pixels))
    C = 1 if gray else 3
    std = np.broadcast_to(settings.std, C)
    factors, shifts = settings.scale / std, np.broadcast_to(settings.mean, C) / std
    values = op.Cast(pixels, to=op.dtype)  # of the picture itself where that can be, which an overlay reads too
    if gray:  # Pillow's "L": whole numbers below 2^24 are exact in float32
        weighted = op.MatMul(values, op.floats([[19595], [38470], [7471]]))
        values = op.Floor(op.Mul(op.Add(op.Reshape(weighted, [0, 0, -1]), 32768.0), 2.0**-16))
    elif not planes:  # rows (N, H, 3 W): an axis of 3 is slow to broadcast
        values = op.Reshape(values, [0, 0, -1])
    elif not swapped:
        values = op.Transpose(values, perm=perm)
    if planes and not gray:
        values = affine(op, values, factors, shifts)
    elif len({*factors}) == len({*shifts}) == 1:
        values = affine(op, values, np.repeat(factors[:1], height), np.repeat(shifts[:1], height))
    else:
        values = op.Sub(op.Mul(values, op.floats(np.tile(factors, width))), op.floats(np.tile(shifts, width)))
    if gray or not planes:
        values = op.Reshape(values, [0, 1, height, width] if planes else [0, height, width, C])
    return _stored(op, values, settings)


def _stored(op: Builder, values: str, settings: Preprocess) -> str:
    """Values in the type of the model's input, those of integers as `Preprocess` rounds them."""
    kind = np.dtype(settings.dtype)
    number = helper.np_dtype_to_tensor_dtype(kind)
    if kind.kind == "f":
        return str(op.Cast(values, to=number) if number != op.dtype else values)
    step, zero = settings.quantization or (1.0, 0)
    # Where the model has no quantiser of its own, OpenVINO would take it for a quantised one.
    if settings.quantization and kind.itemsize == 1:
        return str(op.QuantizeLinear(values, op.floats(step), op.constant(np.array(zero, kind))))
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    levels = op.Add(op.Round(op.Div(values, float(step)) if step != 1 else values), float(zero))
    return str(op.Cast(op.Clip(levels, op.floats(low), op.floats(high)), to=number))


def clipped(op: Builder, maps: str, size: Size, percentile: float) -> str:
    """Maps (N, H, W) in [0, 1] divided by their percentile and cut off at 1; as they are where that is 0."""
    place = percentile / 100 * (size[0] * size[1] - 1)
    count = size[0] * size[1] - int(place)
    largest, _ = op.TopK(op.Reshape(maps, [0, -1]), [count], axis=1, outputs=2)
    ends = op.Gather(largest, [count - 1, max(count - 2, 0)], axis=1)
    share = place - int(place)
    top = op.Unsqueeze(op.MatMul(ends, op.floats([[1 - share], [share]])), [2])
    zero = op.Cast(op.Equal(top, 0.0), to=op.dtype)
    return str(op.Min(op.Div(maps, op.Add(top, zero)), 1.0))


def overlaid(op: Builder, picture: str, maps: Enlarged, size: Size, colors: str, opacity: float) -> str:
    """(N, H, W, 3) uint8: the picture with maps (N, H, W) in [0, 1] blended over it, as `render.overlay` does.

    Colours are looked up and within 1 of 255. Looking up is slow; those of `jet` are computed where the maps are
    enlarged ones, not rounded to one of 256 before, and so within 2 opacity + 1.
    """
    strength, keep = 255 * opacity, 1 - opacity
    if colors == "jet" and maps.rows is not None and maps.columns is not None:
        # strength (1.5 - |4 v - peak|), cut off at 0 and strength, of three channels side by side.
        thrice = op.Reshape(op.Expand(op.Unsqueeze(maps.columns, [2]), [1, 1, 3]), [0, -1])
        peaks = np.tile([[3.0, 2.0, 1.0]], size[1])
        weights = op.Concat(op.Mul(thrice, 4 * strength), op.floats(-strength * peaks), axis=0)
        distance = op.Abs(op.MatMul(op.Pad(maps.rows, [0, 0, 0, 0, 0, 1], 1.0), weights))
        missing = op.Clip(distance, 0.5 * strength, 1.5 * strength)
        rowwise = op.Reshape(op.Cast(picture, to=op.dtype), [0, size[0], -1])
        brightest = affine(op, rowwise, np.full(size[0], keep), np.full(size[0], -1.5 * strength - 0.5))
        # What makes an output is written into it; a Reshape that did would copy.
        return str(op.Cast(op.Reshape(op.Sub(brightest, missing), [0, *size, 3]), to=TensorProto.UINT8))
    # By way of uint8, what is not a number becomes some colour, never an index out of range.
    level = op.Cast(op.Cast(op.Add(op.Mul(maps.values, 255.0), 0.5), to=TensorProto.UINT8), to=TensorProto.INT32)
    table = op.floats(colormap(colors).astype(np.float64) * opacity + 0.5)
    faded = op.Mul(op.Cast(picture, to=op.dtype), keep)
    return str(op.Cast(op.Add(faded, op.Gather(table, level, axis=0)), to=TensorProto.UINT8))
