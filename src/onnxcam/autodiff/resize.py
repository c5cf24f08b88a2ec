"""Rules of operators that resample space or rearrange it into channels."""

import math
import string

import numpy as np

from onnxcam.autodiff.compose import composed
from onnxcam.autodiff.conv import window
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder

_RESIZE = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")


@vjp("Resize", wrt=(0,))
def resize(op: Builder, node: Primal, dy: str) -> Cotangents:
    """Resampling is linear and separable: along each axis y = x R, so dx = dy R^T.

    R, of shape (size, new size), is the operator itself applied to an identity matrix, in the graph, so that
    coordinates are rounded and clipped as in the runtime's own forward pass.
    """
    rank, shape, out = node.rank(0), node.shape(0) or (), node.output_shape() or ()
    axes = [a % rank for a in node.attrs.get("axes") or range(rank)]
    attrs = {name: node.attrs[name] for name in _RESIZE if name in node.attrs}
    roi = _region(node, len(axes))
    scales = _scales(node, axes)
    for i, axis in enumerate(axes):
        same = scales[i] == 1 if scales is not None else out != () and shape[axis] == out[axis]
        if same and (roi is None or list(roi[:, i]) == [0, 1]):
            continue
        (size,), (after,) = node.static(0, [axis]), node.static_output([axis])
        identity = op.EyeLike(op.ConstantOfShape([size, size], value=op.scalar(0.0)))
        region = None if roi is None else np.array([0, 0, 0, roi[0, i], 1, 1, 1, roi[1, i]], np.float32)
        scale = None if scales is None else np.array([1, 1, 1, scales[i]], np.float32)
        target = [1, 1, size, after] if scales is None else None
        r = op.Reshape(op.Resize(op.Unsqueeze(identity, [0, 1]), region, scale, target, **attrs), [size, after])
        dy = apply_along(op, r, dy, axis, rank)
    return (dy,)


def _region(node: Primal, axes: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None":
    if node.attrs["coordinate_transformation_mode"] != "tf_crop_and_resize":
        return None
    roi = node.constant(1)
    if roi is None:
        raise node.unsupported("its region of interest is not constant")
    return roi.astype(np.float64).reshape(2, axes)


def _scales(node: Primal, axes: list[int]) -> list[float] | None:
    """The factor per axis; None where it is new size / size."""
    if node.has(2) and node.shape(2) != (0,):
        scales = node.constant(2)
        if scales is None:
            raise node.unsupported("its scales are not constant")
        return [float(s) for s in scales]
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return None
    sizes, new, wanted = node.static(0, axes), node.static_output(axes), node.constant(3)
    if wanted is None:
        raise node.unsupported("its sizes are not constant")
    ratios = [int(w) / s for w, s in zip(wanted, sizes, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    if [math.floor(np.float32(scale) * np.float32(s)) for s in sizes] != list(new):
        raise node.unsupported("the aspect ratio that it keeps gives a fractional size", "export it with exact sizes")
    return [scale] * len(sizes)


def apply_along(op: Builder, matrix: str, value: str, axis: int, rank: int) -> str:
    """The (m, n) matrix applied to every line of n elements along `axis`."""
    if axis == rank - 1:
        return str(op.MatMul(value, op.Transpose(matrix, perm=[1, 0])))
    if axis == rank - 2:
        return str(op.MatMul(matrix, value))
    letters = string.ascii_lowercase[:rank]
    n = letters[axis]
    return str(op.Einsum(matrix, value, equation=f"z{n},{letters}->{letters.replace(n, 'z')}"))


@vjp("DepthToSpace")
def depth_to_space(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy rearranged back."""
    block = node.attrs["blocksize"]
    if node.attrs.get("mode", "DCR") == "DCR":
        return (op.SpaceToDepth(dy, blocksize=block),)
    _, _, h, w = _nchw(node)
    blocks = op.Transpose(op.Reshape(dy, [0, -1, h, block, w, block]), perm=[0, 1, 3, 5, 2, 4])
    return (op.Reshape(blocks, [0, -1, h, w]),)


@vjp("SpaceToDepth")
def space_to_depth(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy rearranged back."""
    return (op.DepthToSpace(dy, blocksize=node.attrs["blocksize"], mode=node.attrs.get("mode", "DCR")),)


def _nchw(node: Primal) -> tuple[int | None, int | None, int, int]:
    return (None, None, *node.static(0, (2, 3)))  # type: ignore[return-value]


@vjp("Col2Im", wrt=(0,))
def col2im(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = the columns of dy (im2col): a convolution with one one-hot kernel per tap."""
    block = node.constant(2)
    if block is None:
        raise node.unsupported("its block shape is not constant")
    kernel, image = [int(k) for k in block], node.static_output(range(2, len(node.output_shape() or ())))
    taps = math.prod(kernel)
    n = len(kernel)
    w = window(node, kernel, image, (1,) * n)
    one_hot = op.floats(np.eye(taps).reshape(taps, 1, *kernel))
    pads = node.attrs.get("pads") or [0] * 2 * n
    columns = op.Conv(
        op.Reshape(dy, [-1, 1, *image]), one_hot, strides=[*w.strides], dilations=[*w.dilations], pads=pads
    )
    return (node.reshaped(columns),)


@composed("GridSample")
def grid_sample(b: Builder, node: Primal) -> str:
    """y = sum over the 2^d or 4^d neighbouring pixels of weight * x[pixel]; nothing flows to the grid of `nearest`.

    Padding `border` clamps coordinates, `reflection` mirrors them, `zeros` drops pixels outside.
    """
    x, grid = node.inputs
    size = node.static(0, range(2, node.rank(0)))
    points = node.static(1, range(1, node.rank(1) - 1))
    align, padding = bool(node.attrs["align_corners"]), node.attrs["padding_mode"]
    (channels,) = node.static(0, [1])
    taps: list[tuple[str, str]] = [(b.floats(0.0), "")]  # flat pixel index, weight ("" for 1)
    for axis, n in enumerate(size):
        g = b.Reshape(b.Gather(grid, len(size) - 1 - axis, axis=-1), [0, 1, -1])
        per_axis = _kernel(b, g, n, node.attrs["mode"].removeprefix("bi"), padding, align)
        taps = [
            (b.Add(b.Mul(index, float(n)), pixel), b.Mul(weight, w) if weight and w else weight or w)
            for index, weight in taps
            for pixel, w in per_axis
        ]
    flat = b.Reshape(x, [0, channels, -1])
    parts = []
    for index, weight in taps:
        everywhere = b.Expand(b.Cast(index, to=7), [1, channels, 1])
        picked = b.GatherElements(flat, everywhere, axis=2)
        parts.append(b.Mul(picked, weight) if weight else picked)
    total = parts[0] if len(parts) == 1 else b.Sum(*parts)
    return str(b.Reshape(total, [0, channels, *points]))


def _kernel(b: Builder, g: str, n: int, mode: str, padding: str, align: bool) -> list[tuple[str, str]]:
    """Neighbouring pixels of normalised coordinates along an axis of n pixels, all within it, and their weights."""
    at = b.Mul(b.Add(g, 1.0), (n - 1) / 2) if align else b.Sub(b.Mul(b.Add(g, 1.0), n / 2), 0.5)
    low, high = (0.0, n - 1.0) if align else (-0.5, n - 0.5)

    def inside(p: str) -> str:
        return str(b.Clip(p, b.floats(0.0), b.floats(n - 1.0)))

    at = b.Round(at) if mode == "nearest" else at
    if padding == "border":
        at = b.Where(b.Or(b.Less(at, low), b.Greater(at, high)), inside(at), at)
    elif padding == "reflection":
        at = _reflected(b, at, low, high)
    placed = []
    for p, w in [(at, "")] if mode == "nearest" else _weights(b, at, mode):
        if padding == "zeros":
            seen = b.Cast(b.And(b.GreaterOrEqual(p, 0.0), b.LessOrEqual(p, n - 1.0)), to=b.dtype)
            placed.append((inside(p), b.Mul(w, seen) if w else seen))
        else:
            placed.append((inside(_reflected(b, p, low, high) if padding == "reflection" else p), w))
    return placed


def _reflected(b: Builder, x: str, low: float, high: float) -> str:
    """`x` mirrored at the bounds until it lies between them."""
    span = high - low
    if span == 0:
        return str(b.Mul(x, 0.0))
    phase = b.Sub(x, low)
    phase = b.Sub(phase, b.Mul(b.Floor(b.Div(phase, 2 * span)), 2 * span))
    return str(b.Add(b.Sub(span, b.Abs(b.Sub(phase, span))), low))


def _weights(b: Builder, at: str, mode: str) -> list[tuple[str, str]]:
    """Neighbouring pixels of a coordinate and their weights (cubic: Keys' kernel with a = -0.75)."""
    base = b.Floor(at)
    t = b.Sub(at, base)
    if mode == "linear":
        return [(base, b.Sub(1.0, t)), (b.Add(base, 1.0), t)]
    a, pixels = -0.75, []
    for offset in (-1.0, 0.0, 1.0, 2.0):
        d = b.Abs(b.Sub(t, offset))
        if offset in (0.0, 1.0):
            w = b.Add(b.Mul(b.Mul(d, d), b.Sub(b.Mul(d, a + 2), a + 3)), 1.0)
        else:
            w = b.Mul(b.Sub(b.Mul(b.Add(b.Mul(b.Sub(d, 5.0), d), 8.0), d), 4.0), a)
        pixels.append((b.Add(base, offset), w))
    return pixels


@composed("RoiAlign", wrt=(0,))
def roi_align(b: Builder, node: Primal) -> str:
    """Averages of bilinear samples are separable: y = W_y x W_x^T per region; regions themselves get no gradient."""
    if node.attrs["mode"] != "avg":
        raise node.unsupported("only the average of its samples has a rule, not the maximum")
    x, rois, batch = node.inputs
    scale, ratio = float(node.attrs["spatial_scale"]), int(node.attrs["sampling_ratio"])
    half = node.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    matrices = []
    for axis, bins in ((1, node.attrs["output_height"]), (0, node.attrs["output_width"])):
        (size,) = node.static(0, [3 - axis])
        edges = [b.Sub(b.Mul(b.Gather(rois, i, axis=1), scale), 0.5 if half else 0.0) for i in (axis, axis + 2)]
        length = b.Sub(edges[1], edges[0])
        length = length if half else b.Max(length, 1.0)
        step = b.Reshape(b.Div(length, float(bins)), [-1, 1, 1])
        count = b.floats(float(ratio)) if ratio > 0 else b.Ceil(step)
        most = b.Cast(b.ReduceMax(count, keepdims=0), to=7)
        sample = b.Reshape(b.Cast(b.Range(0, most, 1), to=b.dtype), [1, 1, -1])
        share = b.Div(b.Cast(b.Less(sample, count), to=b.dtype), count)
        position = b.Add(b.floats(np.arange(bins).reshape(1, -1, 1)), b.Div(b.Add(sample, 0.5), count))
        at = b.Add(b.Reshape(edges[0], [-1, 1, 1]), b.Mul(position, step))
        inside = b.Cast(b.And(b.GreaterOrEqual(at, -1.0), b.LessOrEqual(at, float(size))), to=b.dtype)
        at = b.Unsqueeze(b.Clip(at, b.floats(0.0), b.floats(size - 1.0)), [3])
        hat = b.Relu(b.Sub(1.0, b.Abs(b.Sub(at, b.floats(np.arange(size).reshape(1, 1, 1, -1))))))
        weights = b.Mul(hat, b.Unsqueeze(b.Mul(inside, share), [3]))
        matrices.append(b.Unsqueeze(b.ReduceSum(weights, [2], keepdims=0), [1]))
    rows, columns = matrices
    picked = b.Gather(x, batch, axis=0)
    return str(b.MatMul(b.MatMul(rows, picked), b.Transpose(columns, perm=[0, 1, 3, 2])))


@composed("AffineGrid", wrt=(0,))
def affine_grid(b: Builder, node: Primal) -> str:
    """The grid is theta times the normalised coordinates of every position of the output."""
    size = node.constant(1)
    if size is None:
        raise node.unsupported("its size is not constant")
    batch, _, *space = (int(s) for s in size)
    lines = [np.linspace(-1, 1, n) if node.attrs["align_corners"] else (2 * np.arange(n) + 1) / n - 1 for n in space]
    axes = np.meshgrid(*lines, indexing="ij")
    points = np.stack([*(axis.ravel() for axis in reversed(axes)), np.ones(math.prod(space))])
    grid = b.MatMul(node.inputs[0], b.floats(points))
    return str(b.Reshape(b.Transpose(grid, perm=[0, 2, 1]), [batch, *space, len(space)]))
