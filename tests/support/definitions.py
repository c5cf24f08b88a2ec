"""Operators by their definition in float64, where `onnx.reference` has none, has float32, or is wrong.

The tests of the rules compare them with ONNX Runtime as well.
"""

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_grid_sample


class Erf(OpRun):
    """`onnx.reference` computes Erf in float32."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """`onnx.reference` runs the function body, whose Erf is float32."""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "none":
            return (x * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[x.dtype])(x),)
        return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)


def windows(x: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """(N, C, *output, taps): the elements of each pooling window in row-major order, nan for padding."""
    n, size, kernel = x.ndim - 2, x.shape[2:], a["kernel_shape"]
    s, d = a["strides"] or [1] * n, a["dilations"] or [1] * n
    reach = [d[i] * (kernel[i] - 1) for i in range(n)]
    begin, end = ([0] * n, [0] * n) if not a["pads"] else (a["pads"][:n], a["pads"][n:])
    if a["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
        out = [-(-size[i] // s[i]) for i in range(n)]
        total = [max((out[i] - 1) * s[i] + reach[i] + 1 - size[i], 0) for i in range(n)]
        begin = [t // 2 if a["auto_pad"] == "SAME_UPPER" else -(-t // 2) for t in total]
    else:
        span = [size[i] + begin[i] + end[i] - reach[i] - 1 for i in range(n)]
        out = [(-(-span[i] // s[i]) if a["ceil_mode"] else span[i] // s[i]) + 1 for i in range(n)]
        out = [out[i] - ((out[i] - 1) * s[i] >= size[i] + begin[i]) for i in range(n)]
    far = [max(0, (out[i] - 1) * s[i] + reach[i] + 1 - size[i] - begin[i]) for i in range(n)]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, far, strict=True)], constant_values=np.nan)
    taps = [
        padded[(..., *(slice(t * d[i], t * d[i] + (out[i] - 1) * s[i] + 1, s[i]) for i, t in enumerate(tap)))]
        for tap in np.ndindex(*kernel)
    ]
    return np.stack(taps, -1)


class MaxPool(OpRun):
    """The Indices of `onnx.reference` are wrong for stride 1, its SAME_LOWER is SAME_UPPER; this is the definition."""

    def _run(
        self, x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, pads=None, storage_order=0, strides=None
    ):
        attributes = {k: v for k, v in locals().items() if k not in ("self", "x")}
        y = windows(x, attributes)
        positions = windows(np.arange(x.size, dtype=np.float64).reshape(x.shape), attributes)
        indices = np.take_along_axis(positions, np.nanargmax(y, -1)[..., None], -1)[..., 0].astype(np.int64)
        return (np.nanmax(y, -1), indices)[: len(self.onnx_node.output)]


class LpPool(OpRun):
    """`onnx.reference` fails for `ceil_mode`."""

    def _run(self, x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, p=2, pads=None, strides=None):
        attributes = {k: v for k, v in locals().items() if k not in ("self", "x", "p")}
        return (np.nansum(np.abs(windows(x, attributes)) ** p, -1) ** (1.0 / p),)


class GlobalLpPool(OpRun):
    """`onnx.reference` has none."""

    def _run(self, x, p=2):
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1.0 / p),)


class ConvTranspose(OpRun):
    """`onnx.reference` fails for groups of unequal channel numbers and for `output_shape`; this is the definition."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None,
             output_padding=None, output_shape=None, pads=None, strides=None):  # fmt: skip
        n = x.ndim - 2
        s, d, extra = strides or [1] * n, dilations or [1] * n, output_padding or [0] * n
        kernel, size = w.shape[2:], x.shape[2:]
        full = [s[i] * (size[i] - 1) + extra[i] + d[i] * (kernel[i] - 1) + 1 for i in range(n)]
        begin, end = (pads or [0] * 2 * n)[:n], (pads or [0] * 2 * n)[n:]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER") or output_shape:
            wanted = output_shape or [size[i] * s[i] for i in range(n)]
            full = [max(f, v) for f, v in zip(full, wanted, strict=True)]  # past the windows lie zeros
            total = [f - v for f, v in zip(full, wanted, strict=True)]
            half = [t // 2 for t in total]
            rest = [t - h for t, h in zip(total, half, strict=True)]
            begin, end = (half, rest) if auto_pad == "SAME_UPPER" else (rest, half)
        y = np.zeros((x.shape[0], group, w.shape[1], *full), x.dtype)
        x, w = x.reshape(x.shape[0], group, -1, *size), w.reshape(group, -1, *w.shape[1:])
        for tap in np.ndindex(*kernel):
            at = [slice(t * d[i], t * d[i] + s[i] * (size[i] - 1) + 1, s[i]) for i, t in enumerate(tap)]
            y[(..., *at)] += np.einsum("ngc...,gcm->ngm...", x, w[(slice(None),) * 3 + tap])
        y = y.reshape(y.shape[0], -1, *full)[
            (..., *(slice(p, f - e) for p, f, e in zip(begin, full, end, strict=True)))
        ]
        return (y if b is None else y + b.reshape(-1, *[1] * n),)


class GlobalMaxPool(OpRun):
    """`onnx.reference` reduces the wrong axes unless x has four."""

    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class LRN(OpRun):
    """`onnx.reference` leaves out the last neighbour and wants four axes."""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):
        squares = np.zeros_like(x)
        for c in range(x.shape[1]):
            low, high = c - (size - 1) // 2, c + size // 2
            squares[:, c] = (x[:, max(low, 0) : high + 1] ** 2).sum(axis=1)
        return (x / (bias + alpha / size * squares) ** beta,)


class Pad(OpRun):
    """`onnx.reference` refuses negative pads."""

    def _run(self, x, pads, value=None, axes=None, mode="constant"):
        along = range(x.ndim) if axes is None else [int(a) for a in axes]
        for axis, (before, after) in zip(along, np.reshape(pads, (2, -1)).T, strict=True):
            kept = [slice(None)] * x.ndim
            kept[axis] = slice(max(-before, 0), x.shape[axis] + min(after, 0))
            width = [(0, 0)] * x.ndim
            width[axis] = (max(before, 0), max(after, 0))
            filled = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
            x = np.pad(x[tuple(kept)], width, mode=mode, **filled)
        return (x,)


class GroupNormalization(OpRun):
    """`onnx.reference` computes in float32; scale and bias per group (opset 18) or per channel (opset 21)."""

    def _run(self, x, scale, bias, epsilon=1e-5, num_groups=1, stash_type=1):
        n = x.reshape(x.shape[0], num_groups, -1)
        n = (n - n.mean(-1, keepdims=True)) / np.sqrt(n.var(-1, keepdims=True) + epsilon)
        per = scale.size
        return ((n.reshape(x.shape[0], per, -1) * scale[:, None] + bias[:, None]).reshape(x.shape),)


class LpNormalization(OpRun):
    """`onnx.reference` leaves out the absolute value for p = 1."""

    def _run(self, x: np.ndarray, axis: int = -1, p: int = 2) -> tuple[np.ndarray]:
        return (x / (np.abs(x) ** p).sum(axis, keepdims=True) ** (1 / p),)


class RMSNormalization(OpRun):
    """`onnx.reference` computes in float32."""

    def _run(self, x: np.ndarray, s: np.ndarray, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1):
        along = tuple(range(axis % x.ndim, x.ndim))
        return (x / np.sqrt((x * x).mean(along, keepdims=True) + epsilon) * s,)


class AffineGrid(OpRun):
    """`onnx.reference` rounds the grid to float32."""

    def _run(self, theta: np.ndarray, size: np.ndarray, align_corners: int = 0) -> tuple[np.ndarray]:
        space = [int(n) for n in size[2:]]
        grid = np.empty((len(theta), *space, len(space)))
        for at in np.ndindex(*space):
            sizes = zip(at, space, strict=True)
            point = [(2 * i / (n - 1) if align_corners else (2 * i + 1) / n) - 1 for i, n in sizes]
            grid[(slice(None), *at)] = theta @ np.array([*reversed(point), 1.0])
        return (grid,)


class GridSample(op_grid_sample.GridSample):
    """`onnx.reference` rounds coordinates to float32."""

    def _gs_denormalize_coordinates(self, n: np.ndarray, dims: tuple[int, ...], align_corners: bool) -> np.ndarray:
        return np.array([self._gs_denormalize(v, dim, align_corners) for v, dim in zip(n, dims, strict=True)])


DEFINITIONS = (
    AffineGrid, ConvTranspose, Erf, Gelu, GlobalLpPool, GlobalMaxPool, GridSample, GroupNormalization, LRN,
    LpNormalization, LpPool, MaxPool, Pad, RMSNormalization,
)  # fmt: skip
