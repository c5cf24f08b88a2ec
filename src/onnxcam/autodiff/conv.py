"""Rules of convolutions, and the window arithmetic that pooling shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.linear import rows_at
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.errors import UnsupportedError
from onnxcam.graph.build import Builder


@dataclass(frozen=True)
class Window:
    """A sliding window per spatial axis: sizes of both sides, kernel, stride, dilation, padding at the begin."""

    large: tuple[int, ...]
    small: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]

    def __post_init__(self) -> None:
        sides = (self.small, self.large, self.kernel, self.strides, self.dilations, self.begin)
        if len({len(side) for side in sides}) > 1:
            raise UnsupportedError("a convolution or pooling has other sides than its input", "export again")

    @property
    def reach(self) -> list[int]:
        """Extent of the dilated kernel minus one."""
        return [d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def end(self) -> list[int]:
        """Padding at the end that the windows really use; negative where they do not reach the last element."""
        spans = zip(self.small, self.strides, self.reach, self.begin, self.large, strict=True)
        return [(n - 1) * s + r + 1 - b - size for n, s, r, b, size in spans]

    def forward(self) -> dict[str, list[int]]:
        """Attributes of the Conv that maps the large side to the small one."""
        ends = [max(e, 0) for e in self.end]
        return {"strides": [*self.strides], "dilations": [*self.dilations], "pads": [*self.begin, *ends]}

    def transposed(self) -> dict[str, list[int]]:
        """Attributes of the ConvTranspose that is its adjoint, exact for every size."""
        return self.forward() | {"output_padding": [max(-e, 0) for e in self.end]}


def window(node: Primal, kernel: Sequence[int], large: tuple[int, ...], small: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling node, `auto_pad` and implicit attributes made explicit."""
    n = len(kernel)
    strides = tuple(node.attrs.get("strides") or [1] * n)
    dilations = tuple(node.attrs.get("dilations") or [1] * n)
    begin = tuple((node.attrs.get("pads") or [0] * 2 * n)[:n])
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max((m - 1) * s + d * (k - 1) + 1 - size, 0)
                 for m, s, d, k, size in zip(small, strides, dilations, kernel, large, strict=True)]  # fmt: skip
        begin = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
    elif auto == "VALID":
        begin = (0,) * n
    return Window(large, small, tuple(kernel), strides, dilations, begin)


def spatial(node: Primal, position: int = 0) -> tuple[int, ...]:
    """Fixed spatial sizes of an (N, C, ...) input."""
    return node.static(position, range(2, node.rank(position)))


def output_spatial(node: Primal) -> tuple[int, ...]:
    """Fixed spatial sizes of the (N, C, ...) output."""
    shape = node.output_shape()
    dims = shape[2:] if shape else (None,)
    if not all(isinstance(d, int) for d in dims):
        raise node.unsupported(f"it needs fixed sizes, and its output is {shape}")
    return tuple(int(d) for d in dims if isinstance(d, int))


@vjp("Conv")
def conv(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dX: the adjoint ConvTranspose, or a Conv with the kernel flipped where that is as exact and faster.

    dW correlates X with dY, dB sums dY. The flipped form (stride 1, constant weights) swaps the weights' channels per
    group and mirrors them in space by nodes, which every runtime folds when it loads the model. A head of 1 x 1 on one
    cell is a matrix product: one-hot rows take a row of the weights.
    """
    w = window(node, node.static(1, range(2, node.rank(1))), spatial(node), output_spatial(node))
    dx = dw = db = None
    if node.live(0) and dy in op.one_hots and max(*w.kernel, *w.large) == 1 and node.attrs["group"] == 1:
        dx = rows_at(op, node.input(1), op.one_hots[dy])
    elif node.live(0):
        dx = _flipped(op, node, dy, w) or _strided(op, node, dy, w)
        dx = dx or op.ConvTranspose(dy, node.input(1), group=node.attrs["group"], **w.transposed())
    if node.live(1):
        dw = weight_cotangent(op, node, node.input(0), dy, w)
    if node.live(2):
        db = op.ReduceSum(dy, [0, *range(2, node.rank(0))], keepdims=0)
    return (dx, dw, db)[: len(node.inputs)]


def _flipped(op: Builder, node: Primal, dy: str, w: Window) -> str | None:
    pads = [r - b for r, b in zip(w.reach, w.begin, strict=True)], [r - e for r, e in zip(w.reach, w.end, strict=True)]
    weights, group = node.constant(1), node.attrs["group"]
    if max(w.strides) > 1 or min(*pads[0], *pads[1]) < 0 or weights is None:
        return None
    mirrored = _mirrored(op, node.input(1), weights.shape, group)
    return str(op.Conv(dy, mirrored, group=group, dilations=[*w.dilations], pads=[*pads[0], *pads[1]]))


def _mirrored(op: Builder, weights: str, shape: tuple[int, ...], group: int) -> str:
    """The weights (M, C/g, ...) with outputs and inputs exchanged per group, mirrored in space."""
    weights, axes = _exchanged(op, weights, shape, group), [*range(2, len(shape))]
    if max(shape[2:]) == 1:
        return weights
    return str(op.Slice(weights, [-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes)))


def _exchanged(op: Builder, weights: str, shape: tuple[int, ...], group: int) -> str:
    """The weights (M, C/g, ...) with outputs and inputs exchanged per group."""
    m, c, *kernel = shape
    axes = [*range(2, len(shape))]
    if group == 1:
        return str(op.Transpose(weights, perm=[1, 0, *axes]))
    if (m, c) == (group, 1):
        return weights
    grouped = op.Reshape(weights, [group, m // group, c, *kernel])
    exchanged = op.Transpose(grouped, perm=[0, 2, 1, *(1 + a for a in axes)])
    return str(op.Reshape(exchanged, [group * c, m // group, *kernel]))


class _Phase(NamedTuple):
    """The taps of a kernel that reach the cells s q + a of one axis, and what they reach over the ends."""

    taps: range
    before: int
    after: int


def _phases(w: Window, axis: int) -> list[_Phase]:
    """With i = s q + a, dx[i] sums w[t] dy[q + e - m] over t = t0 + s m, t0 = (a + p) mod s, e = (a + p) div s."""
    stride, more, found = w.strides[axis], phase_cells(w)[axis] - w.small[axis], []
    for a in range(stride):
        e, start = divmod(a + w.begin[axis], stride)
        taps = range(start, w.kernel[axis], stride)
        found.append(_Phase(taps, len(taps) - 1 - e, e + more))
    return found


def _strided(op: Builder, node: Primal, dy: str, w: Window) -> str | None:
    """dX of a strided convolution by convolutions of stride 1, which can be computed in blocks of channels.

    For one cell or one channel per output, with zeros between the cells. Else one for each of the s x s phases of the
    picture, put together: a transposed convolution without the zeros (Shi et al., 2016, arXiv:1609.07009).
    """
    weights, group, s = node.constant(1), node.attrs["group"], w.strides[0]
    if weights is None or not (op.blocks and splits(w, channels := weights.shape[1] * group)):
        return None
    exchanged = _exchanged(op, node.input(1), weights.shape, group)
    if max(w.kernel) == 1 and max(w.begin) == 0:
        return _with_zeros(op, w, op.Conv(dy, exchanged, group=group), channels)
    before = [r - b for r, b in zip(w.reach, w.begin, strict=True)]
    fits = all(cells >= n for cells, n in zip(phase_cells(w), w.small, strict=True))
    if weights.shape[:2] == (group, 1) and fits and min(before) >= 0:
        mirrored = _mirrored(op, node.input(1), weights.shape, group)
        return str(op.Conv(_with_zeros(op, w, dy, channels), mirrored, group=group, pads=[*before, *w.begin]))
    rows, columns = _phases(w, 0), _phases(w, 1)
    if any(not phase.taps or min(phase.before, phase.after) < 0 for phase in (*rows, *columns)):
        return None
    kernels = {
        (row, column): op.Slice(
            exchanged,
            [row.taps[-1], column.taps[-1]],
            [p.taps[0] - 1 if p.taps[0] else -(2**31) for p in (row, column)],
            [2, 3],
            [-s, -s],
        )
        for row in rows
        for column in columns
    }
    parts = (op.Conv(dy, k, group=group, pads=[r.before, c.before, r.after, c.after]) for (r, c), k in kernels.items())
    return joined_phases(op, w, op.Concat(*parts, axis=1))


def splits(w: Window, channels: int) -> bool:
    """Whether windows on a picture (C, H, W) go by s x s phases of whole blocks of channels."""
    alike = len(w.kernel) == 2 and {*w.strides} == {w.strides[0]} and max(w.dilations) == 1
    return alike and channels % 16 == 0


def phase_cells(w: Window) -> list[int]:
    """Cells of every phase along each axis; the last may lie behind the picture's end."""
    return [-(-size // s) for size, s in zip(w.large, w.strides, strict=True)]


def joined_phases(op: Builder, w: Window, phases: str) -> str:
    """The picture of its s x s phases, which lie behind each other in the channels."""
    s = w.strides[0]
    whole = op.DepthToSpace(phases, blocksize=s) if s > 1 else phases
    fits = all(size % s == 0 for size in w.large)
    return str(whole if fits else op.Slice(whole, [0, 0], [*w.large], [2, 3]))


def _with_zeros(op: Builder, w: Window, x: str, channels: int) -> str:
    """(N, C, h, w) with zeros between the cells, which are the first phase of a picture whose others are zeros."""
    s, more = w.strides[0], [cells - n for cells, n in zip(phase_cells(w), w.small, strict=True)]
    return joined_phases(op, w, op.Pad(x, [0] * 5 + [(s * s - 1) * channels, *more]))


@vjp("ConvTranspose")
def conv_transpose(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dX is the Conv whose adjoint the node is; dW correlates dY with X; dB sums dY."""
    large, small = output_spatial(node), spatial(node)
    w = _transposed_window(node, large, small)
    dx = dw = db = None
    if node.live(0):
        dx = op.Conv(dy, node.input(1), group=node.attrs["group"], **w.forward())
    if node.live(1):
        dw = weight_cotangent(op, node, dy, node.input(0), w)
    if node.live(2):
        db = op.ReduceSum(dy, [0, *range(2, node.rank(0))], keepdims=0)
    return (dx, dw, db)[: len(node.inputs)]


def _transposed_window(node: Primal, large: tuple[int, ...], small: tuple[int, ...]) -> Window:
    kernel = node.static(1, range(2, node.rank(1)))
    n = len(kernel)
    base = window(node, kernel, large, small)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if "output_shape" in node.attrs or auto in ("SAME_UPPER", "SAME_LOWER"):
        extra = node.attrs.get("output_padding") or [0] * n
        total = [s * (m - 1) + e + r + 1 - size
                 for s, m, e, r, size in zip(base.strides, small, extra, base.reach, large, strict=True)]  # fmt: skip
        half = [max(t, 0) // 2 for t in total]
        begin = half if auto == "SAME_UPPER" else [max(t, 0) - h for t, h in zip(total, half, strict=True)]
        return Window(large, small, kernel, base.strides, base.dilations, tuple(begin))
    return base


def weight_cotangent(op: Builder, node: Primal, large: str, small: str, w: Window) -> str:
    """Cotangent of a (M, C/g, ...) kernel that links the large side (N, C, ...) with the small one (N, M, ...).

    A convolution with batch and channels exchanged and stride and dilation exchanged, per group; positions past the
    kernel, which the strides leave over, are cut off.
    """
    group = node.attrs["group"]
    m, c = node.static(1, (0, 1))
    n = len(w.kernel)
    axes = [*range(3, 3 + n)]
    x = op.Reshape(op.Transpose(op.Reshape(large, [0, group, c, *w.large]), perm=[2, 1, 0, *axes]), [c, -1, *w.large])
    g = op.Reshape(op.Transpose(op.Reshape(small, [0, m, *w.small]), perm=[1, 0, *range(2, 2 + n)]), [m, -1, *w.small])
    pads = [*w.begin, *(max(e, 0) for e in w.end)]
    dw = op.Conv(x, g, group=group, strides=[*w.dilations], dilations=[*w.strides], pads=pads)
    dw = op.Slice(dw, [0] * n, [*w.kernel], [*range(2, 2 + n)])
    return str(op.Transpose(dw, perm=[1, 0, *range(2, 2 + n)]))
