"""The finish as nodes: what `saliency` and `render` do on the host, for files that explain themselves.

Same order, same constants; only operators that every runtime has. Sums over channels and enlargements are matrix
products: as `ReduceSum` and `Resize` they take ONNX Runtime five times as long.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxcam.graph.build import Builder
from onnxcam.graph.layers import Layer
from onnxcam.preprocess import Preprocess
from onnxcam.render import colormap

Size = tuple[int, int]


def raw_map(op: Builder, layer: Layer, activations: str, alpha: str, fixed: bool) -> str:
    """(N, 1, h, w): alpha A summed over channels, signed. fixed: the grid is the same for all pictures."""
    alpha = _before_spreading(op, alpha)
    shape = op.graph.shape(alpha) or ()
    if shape == (1, 1, 1, 1):
        return activations  # a map that the method made itself
    if not fixed or len(shape) != 4 or shape[2:] != (1, 1) or layer.channels is None:
        return str(op.ReduceSum(op.Mul(activations, alpha), [1], keepdims=1))
    cells = op.Reshape(activations, [0, layer.channels, -1])
    return str(op.Reshape(op.MatMul(op.Reshape(alpha, [0, 1, -1]), cells), [0, 1, *layer.grid]))


def _before_spreading(op: Builder, alpha: str) -> str:
    """The weights (N, K, 1, 1) that were spread over the grid only to be averaged, as behind global average pooling."""
    graph = op.graph
    mean = graph.producer(alpha)
    spread = graph.producer(mean.inputs[0]) if mean is not None and mean.op_type == "ReduceMean" else None
    if spread is not None and spread.op_type == "Expand" and (graph.shape(spread.inputs[0]) or ())[2:] == (1, 1):
        return spread.inputs[0]
    return alpha


def finished(op: Builder, raws: Sequence[tuple[str, Size]], size: Size | str, normalize: str, fuse: str) -> str:
    """The saliency maps (N, C, H, W) of C classes from each layer's raw maps (N, C, h, w) and their grid.

    size: (H, W), or the name of a value that holds it where it is known at run time only.
    """
    seen = []
    for raw, grid in raws:
        positive = op.Relu(raw)
        seen.append(resized(op, min_max(op, positive) if normalize == "minmax" else positive, grid, size))
    if len(seen) == 1:
        return NORMALIZED[normalize](op, seen[0])
    if fuse == "mean":
        fused = op.Mul(op.Sum(*seen), 1 / len(seen))
    else:
        fused = NORMALIZED[normalize](op, seen[0])
        for maps in seen[1:]:
            fused = op.emit({"product": "Mul", "max": "Max"}[fuse], (fused, NORMALIZED[normalize](op, maps)), 1, {})[0]
    return NORMALIZED[normalize](op, fused)


def min_max(op: Builder, maps: str) -> str:
    """Each map (m - min m) / (1e-7 + max m - min m)."""
    above = op.Sub(maps, op.ReduceMin(maps, [2, 3], keepdims=1))
    return str(op.Mul(above, op.Reciprocal(op.Add(op.ReduceMax(above, [2, 3], keepdims=1), 1e-7))))


def _by_maximum(op: Builder, maps: str) -> str:
    """Each map divided by its maximum; one of zeros stays so."""
    peak = op.ReduceMax(maps, [2, 3], keepdims=1)
    return str(op.Div(maps, op.Add(peak, op.Cast(op.Equal(peak, 0.0), to=op.dtype))))


NORMALIZED: dict[str, Callable[[Builder, str], str]] = {
    "minmax": min_max,
    "max": _by_maximum,
    "none": lambda op, maps: maps,
}


def resized(op: Builder, maps: str, grid: Size, size: Size | str) -> str:
    """Half-pixel bilinear, clamped at the edges, without antialiasing."""
    if isinstance(size, str):
        sizes = op.Concat(op.Shape(maps, start=0, end=2), size, axis=0)
        return str(op.Resize(maps, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel"))
    if grid == size:
        return maps
    rows = op.constant(interpolation(grid[0], size[0]))
    square = (grid[0], size[0]) == (grid[1], size[1])
    columns = op.Transpose(rows, perm=[1, 0]) if square else op.constant(interpolation(grid[1], size[1]).T)
    return str(op.MatMul(op.MatMul(rows, maps), columns))


def interpolation(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """(pixels, cells): row i holds what each cell counts at pixel i, in a half-pixel linear resize."""
    at = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    below = np.floor(at).astype(int)
    share = (at - below).astype(np.float32)
    weights = np.zeros((pixels, cells), np.float32)
    weights[np.arange(pixels), below] = 1 - share
    weights[np.arange(pixels), np.minimum(below + 1, cells - 1)] += share
    return weights


def model_input(op: Builder, picture: str, settings: Preprocess) -> str:
    """What the model takes, from pictures (N, H, W, 3) uint8 of its own size: `Preprocess` without the resize."""
    planes = settings.layout == "nchw"
    pixels = op.Transpose(picture, perm=[0, 3, 1, 2]) if planes else picture
    values, axis = op.Cast(pixels, to=op.dtype), 1 if planes else 3
    count = 1 if settings.channels == "gray" else 3
    if count == 1:  # Pillow's "L": whole numbers below 2^24 are exact in float32
        luminance = np.array([19595.0, 38470.0, 7471.0]).reshape((3, 1, 1) if planes else 3)
        weighted = op.ReduceSum(op.Mul(values, op.floats(luminance)), [axis], keepdims=1)
        values = op.Floor(op.Mul(op.Add(weighted, 32768.0), 2.0**-16))
    elif settings.channels == "bgr":
        values = op.Gather(values, [2, 1, 0], axis=axis)
    factor, shift = settings.scale / np.asarray(settings.std), np.asarray(settings.mean) / np.asarray(settings.std)
    rowwise = not planes and factor.size * shift.size > 1  # whole rows at a time: an axis of 3 is slow to broadcast

    def per_channel(numbers: npt.NDArray[np.float64]) -> str:
        if numbers.size == 1:
            return op.floats(numbers.reshape(()))
        return op.floats(numbers.reshape(count, 1, 1) if planes else np.tile(numbers, settings.size[1]))

    if rowwise:
        values = op.Reshape(values, [0, 0, -1])
    if (factor != 1).any():
        values = op.Mul(values, per_channel(factor))
    if shift.any():
        values = op.Sub(values, per_channel(shift))
    if rowwise:
        values = op.Reshape(values, [0, *settings.size, count])
    kind = np.dtype(settings.dtype)
    if kind.kind != "f":
        step, zero = settings.quantization or (1.0, 0)
        low, high = np.iinfo(kind).min, np.iinfo(kind).max
        levels = op.Add(op.Round(op.Div(values, float(step)) if step != 1 else values), float(zero))
        values = op.Clip(levels, op.floats(low), op.floats(high))
    number = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE,
              "uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "uint16": TensorProto.UINT16,
              "int16": TensorProto.INT16, "int32": TensorProto.INT32}[settings.dtype]  # fmt: skip
    return str(op.Cast(values, to=number) if number != op.dtype else values)


def overlaid(op: Builder, picture: str, values: str, colors: str, opacity: float) -> str:
    """(N, H, W, 3) uint8: the picture with values (N, H, W) in [0, 1] blended over it, within 1 of `render.overlay`."""
    # By way of uint8, what is not a number becomes some colour, never an index out of range.
    level = op.Cast(op.Cast(op.Add(op.Mul(values, 255.0), 0.5), to=TensorProto.UINT8), to=TensorProto.INT32)
    table = op.floats(colormap(colors).astype(np.float64) * opacity + 0.5)
    faded = op.Mul(op.Cast(picture, to=op.dtype), 1.0 - opacity)
    return str(op.Cast(op.Add(faded, op.Gather(table, level, axis=0)), to=TensorProto.UINT8))
