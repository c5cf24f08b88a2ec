"""How a value lies on the picture: channels first or last, or a row of tokens with class tokens in front.

Found from the graph: convolutions make maps (N, K, h, w), of signals (N, K, l), of volumes (N, K, d, h, w); from there
every axis is followed as factors of batch, channels, depth, height and width through transposes, reshapes (windows and
their way back, cells merged into channels), element-wise operators, norms and linear layers. Where an operator loses
them, they come back at residual sums.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcam.errors import UsageError
from onnxcam.graph.index import Dim, Graph, Node, Shape

# For a picture (H, W), a signal (L,) and a volume (D, H, W): what the axes of each kind hold, in `_Factor`'s letters.
_PATTERNS = {
    2: {"nchw": ("k", "h", "w"), "nhwc": ("h", "w", "k"), "tokens": ("hw", "k"), "channels-tokens": ("k", "hw")},
    1: {"ncl": ("k", "w"), "nlc": ("w", "k"), "nchw": ("k", "", "w"), "nhwc": ("", "w", "k")},
    3: {
        "ncdhw": ("k", "d", "h", "w"),
        "ndhwc": ("d", "h", "w", "k"),
        "tokens": ("dhw", "k"),
        "channels-tokens": ("k", "dhw"),
    },
}
KINDS = tuple(dict.fromkeys(kind for patterns in _PATTERNS.values() for kind in patterns))
_MAPS = ("nchw", "ncl", "ncdhw")


@dataclass(frozen=True)
class Layout:
    """`nchw` (N, K, h, w), `nhwc` (N, h, w, K), `tokens` (N, prefix + h w, K), `channels-tokens` transposed.

    Of signals `ncl` (N, K, l) and `nlc` (N, prefix + l, K), their grid being (1, l); of volumes `ncdhw` and `ndhwc`,
    their grid being (d h, w): slices one below the other. sides: (l,) or (d, h, w) there.
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0
    sides: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w), (l,) or (d, h, w)."""
        return self.sides or self.grid

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def is_map(self) -> bool:
        """Whether it lies as convolutions make it."""
        return self.kind in _MAPS

    @property
    def channel_axis(self) -> int:
        return {"nhwc": 3, "tokens": 2, "nlc": 2, "ndhwc": 4}.get(self.kind, 1)

    def fits(self, shape: Shape | None) -> bool:
        """Whether a value of this shape can lie so; open dimensions fit anything."""
        tokens = self.prefix + self.cells
        wanted: dict[str, Shape] = {
            "nchw": (None, None, *self.grid),
            "nhwc": (None, *self.grid, None),
            "tokens": (None, tokens, None),
            "channels-tokens": (None, None, tokens),
            "ncl": (None, None, tokens),
            "nlc": (None, tokens, None),
            "ncdhw": (None, None, *self.sides),
            "ndhwc": (None, *self.sides, None),
        }
        pattern = wanted[self.kind]
        return (
            shape is not None
            and len(shape) == len(pattern)
            and all(w is None or d == w for d, w in zip(shape, pattern, strict=True))
        )


# Their outputs are maps (N, K, h, w), whatever is known of their inputs.
_MAPPERS = frozenset(
    """Conv ConvTranspose ConvInteger QLinearConv MaxPool AveragePool LpPool BatchNormalization InstanceNormalization
    GroupNormalization LRN Resize Upsample DepthToSpace SpaceToDepth FusedConv QLinearAveragePool GroupNorm""".split()
)
# Their outputs hold the same numbers as their inputs, moved or cast.
MOVES = frozenset(
    """Cast DequantizeLinear Dropout Expand Flatten Identity Pad QuantizeLinear Reshape Slice Split Squeeze Transpose
    Unsqueeze""".split()
)
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_NORMS = frozenset(
    """LayerNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization""".split()
)


@dataclass(frozen=True)
class _Factor:
    """Part of an axis: of the batch `n`, channels `k`, depth `d`, height `h`, width `w`, or a row of tokens with class
    tokens `t`; a signal's length is a width.

    step: how many rows or columns one step along it goes; side: of how many; row: how a `t` lies. A size of None is an
    open batch.
    """

    of: str
    size: int | None
    step: int = 1
    side: int = 0
    row: Layout | None = None


# Outermost first, and so within each axis: windows of a map are (n, h/7, w/7), (h 7, w 7), k.
_Axes = tuple[tuple[_Factor, ...], ...]


def layouts(graph: Graph, image: str, kind: str) -> dict[str, Layout]:
    """The layout of every value for which it can be told, the picture input's `kind` being known.

    kind: nchw or nhwc, which of signals (N, C, L) and volumes (N, C, D, H, W) says channels first or last.
    """
    known: dict[str, Layout] = {}
    axes: dict[str, _Axes] = {}
    grids: dict[int, Layout] = {}
    start = graph.shape(image)
    sides = len(start) - 2 if start is not None else 2
    if sides not in _PATTERNS:
        return known

    def learn(value: str, found: Layout) -> None:
        known[value] = found
        grids[found.cells] = found
        axes.setdefault(value, _axes(found, graph.shape(value) or ()))

    if start is not None and (found := _on_grid(_PATTERN_OF[sides, kind], start, sides)) is not None:
        learn(image, found)
    for node in graph.nodes:
        for output in node.outputs:
            shape = graph.shape(output) if output else None
            if shape is None:
                continue
            moved = None if _is_mapper(node, shape, sides) else _moved(graph, node, shape, axes)
            if moved is not None:
                axes[output] = moved
            if (found := _layout(graph, node, shape, known, grids, moved, sides)) is not None:
                learn(output, found)
    return known


def layout_of(kind: str, sides: Sequence[int]) -> Layout:
    """How the input lies: channels first (nchw) or last (nhwc), and its (H, W), (L,) or (D, H, W)."""
    return _of_sides(_PATTERN_OF[len(sides), kind], sides)


# Channels first and last, by the number of a picture's sides.
_PATTERN_OF = {(2, "nchw"): "nchw", (2, "nhwc"): "nhwc", (1, "nchw"): "ncl", (1, "nhwc"): "nlc",
               (3, "nchw"): "ncdhw", (3, "nhwc"): "ndhwc"}  # fmt: skip


def _is_mapper(node: Node, shape: Shape, sides: int) -> bool:
    """Whether a node makes a map; a signal may be convolved as a picture of one row."""
    return node.op_type in _MAPPERS and len(shape) in ((3, 4) if sides == 1 else (sides + 2,))


def _layout(
    graph: Graph,
    node: Node,
    shape: Shape,
    known: dict[str, Layout],
    grids: dict[int, Layout],
    moved: _Axes | None,
    sides: int,
) -> Layout | None:
    if _is_mapper(node, shape, sides) and not node.attrs.get("channels_last"):
        return _on_grid("nchw" if len(shape) == 4 else _PATTERN_OF[sides, "nchw"], shape, sides)
    if moved is not None and (found := _lying(moved, sides)) is not None:
        return found
    first = known.get(node.inputs[0]) if node.inputs else None
    if node.op_type == "Transpose" or node.op_type in _RESHAPES or node.op_type == "Gather":
        return None
    if node.op_type == "Concat":
        return _joined(graph, node, known, shape)
    if node.op_type == "Slice":
        return _cut(graph, node, first, shape)
    if _is_over_features(graph, node):
        return None if first is not None or moved is not None else _features_last(shape, grids, sides)
    return next((known[i] for i in node.inputs if i in known and known[i].fits(shape)), None)


def _on_grid(kind: str, shape: Shape, count: int = 2) -> Layout | None:
    """A map without class tokens, where the shape says all its sides; count: of the picture's."""
    sides = shape[1:-1] if kind in ("nhwc", "nlc", "ndhwc") else shape[2:]
    whole = tuple(d for d in sides if isinstance(d, int))
    if len(whole) < len(sides):
        return None
    if count == 1 and len(whole) == 2:  # a signal as a picture of one row
        return _of_sides(kind, whole[1:]) if whole[0] == 1 else None
    return _of_sides(kind, whole)


def _of_sides(kind: str, sides: Sequence[int], prefix: int = 0) -> Layout:
    """The layout of a picture's, signal's or volume's sides."""
    if len(sides) == 2:
        return Layout(kind, (sides[0], sides[1]), prefix)
    return Layout(kind, (math.prod(sides[:-1]), sides[-1]), prefix, tuple(sides))


def _is_over_features(graph: Graph, node: Node) -> bool:
    """A norm over, or a linear layer of, the last axis."""
    return node.op_type in _NORMS or (node.op_type == "MatMul" and graph.constant_rank(node.inputs[1]) == 2)


def _features_last(shape: Shape, grids: dict[int, Layout], sides: int) -> Layout | None:
    """Features last on a grid that was met before, where the layout was lost on the way."""
    if len(shape) == 4 and sides == 2:
        found = _on_grid("nhwc", shape)
        return found if found is not None and found.cells in grids and grids[found.cells].grid == found.grid else None
    tokens = shape[1] if len(shape) == 3 else None
    if not isinstance(tokens, int) or tokens not in grids:
        return None
    return _of_sides("nlc" if sides == 1 else "tokens", grids[tokens].shape)


# --- axes ---------------------------------------------------------------------------------------------------------


def _axes(layout: Layout, shape: Shape) -> _Axes:
    n = _Factor("n", shape[0] if isinstance(shape[0], int) else None)
    channels = shape[layout.channel_axis]
    letters = "dhw"[-len(layout.shape) :]
    factors = {name: _Factor(name, size, side=size) for name, size in zip(letters, layout.shape, strict=True)}
    factors["k"] = _Factor("k", channels if isinstance(channels, int) else None)
    row = (_Factor("t", layout.prefix + layout.cells, row=layout),)
    pattern = _PATTERNS[len(layout.shape)][layout.kind]
    held = (row if layout.prefix and axis != "k" else tuple(factors[name] for name in axis) for axis in pattern)
    return ((n,), *held)


def _lying(axes: _Axes, sides: int) -> Layout | None:
    """The layout that axes make, if any: the batch alone, and whole sides; finer steps of them may be channels."""
    batch, *rest = axes
    if any(f.of != "n" for f in batch) or any(f.of == "n" for axis in rest for f in axis):
        return None
    for kind, pattern in _PATTERNS[sides].items():
        if len(pattern) != len(rest):
            continue
        if any(f.of == "t" for f in rest[pattern.index("k")]):
            continue
        spatial = [axis for name, axis in zip(pattern, rest, strict=True) if name != "k"]
        if kind in ("tokens", "channels-tokens", "nlc", "ncl") and len(spatial[0]) == 1 and (row := spatial[0][0].row):
            return replace(row, kind=kind)
        names = ["".join(f.of for f in side) for side in spatial]
        whole = all((f.size or 0) * f.step == f.side for side in spatial for f in side)
        if whole and names == [name for name in pattern if name != "k"]:
            return _of_sides(kind, [f.size or 0 for side in spatial for f in side])
    return None


def _moved(graph: Graph, node: Node, shape: Shape, axes: dict[str, _Axes]) -> _Axes | None:
    """The axes of a node's output where they follow from those of its inputs."""
    source = axes.get(node.inputs[0]) if node.inputs else None
    if source is None and node.op_type in (*_RESHAPES, *_NORMS, "MatMul", "Slice", "Split", "Transpose"):
        return None
    if node.op_type in ("Concat", "Gather"):
        return None
    if source is None:
        return next((axes[i] for i in node.inputs if i in axes and graph.shape(i) == shape), None)
    if node.op_type == "Transpose":
        perm = node.attrs.get("perm")
        return tuple(source[i] for i in perm) if perm and len(perm) == len(source) else None
    if node.op_type in _RESHAPES:
        return _regrouped([f for axis in source for f in axis], shape)
    if node.op_type in ("Slice", "Split"):
        return _narrowed(source, shape)
    if node.op_type.startswith("Reduce"):
        return _reduced(graph, node, source)
    if _is_over_features(graph, node):
        return (*source[:-1], _features(shape[-1])) if _is_features(source[-1]) else None
    if node.op_type == "MatMul":
        other = axes.get(node.inputs[1])
        return (*source[:-1], other[-1]) if other is not None and len(other) == len(source) == len(shape) else None
    return next((axes[i] for i in node.inputs if i in axes and graph.shape(i) == shape), None)


def _is_features(axis: tuple[_Factor, ...]) -> bool:
    """Whether an axis holds channels, those that cells were put into included."""
    return any(f.of == "k" for f in axis) and not any(f.of in "nt" for f in axis)


def _features(size: Dim) -> tuple[_Factor, ...]:
    return (_Factor("k", size if isinstance(size, int) else None),)


def _reduced(graph: Graph, node: Node, source: _Axes) -> _Axes | None:
    stated = node.attrs.get("axes")
    if stated is None and len(node.inputs) > 1:
        stated = graph.constant(node.inputs[1])
    if stated is None:
        return None
    gone = {int(a) % len(source) for a in np.ravel(stated)}
    keep = node.attrs.get("keepdims", 1)
    return tuple(() if i in gone else axis for i, axis in enumerate(source) if keep or i not in gone)


def _narrowed(source: _Axes, shape: Shape) -> _Axes | None:
    """Part of the channels."""
    if len(source) != len(shape):
        return None
    axes: list[tuple[_Factor, ...]] = []
    for axis, size in zip(source, shape, strict=True):
        names = {f.of for f in axis}
        if isinstance(size, int) and "n" not in names and size != math.prod(f.size or 0 for f in axis):
            if names != {"k"}:
                return None
            axis = _features(size)
        axes.append(axis)
    return tuple(axes)


def _regrouped(factors: list[_Factor], shape: Shape) -> _Axes | None:
    """Factors in the order of memory, shared out to the axes of a shape from the last one on, split where needed."""
    left = list(factors)
    axes: list[tuple[_Factor, ...]] = []
    for position in reversed(range(len(shape))):
        wanted = shape[position]
        taken: list[_Factor] = []
        if not isinstance(wanted, int) or position == 0:
            if position:
                return None
            taken, left = left, []
        else:
            while wanted > 1:
                if not left or left[-1].size is None:
                    return None
                last = left.pop()
                size = last.size or 0
                if wanted % size == 0:
                    taken.insert(0, last)
                    wanted //= size
                elif size % wanted == 0 and last.of != "t":
                    left.append(replace(last, size=size // wanted, step=last.step * wanted))
                    taken.insert(0, replace(last, size=wanted))
                    wanted = 1
                else:
                    return None
        axes.insert(0, _joint(taken))
    return tuple(axes) if not left else None


def _joint(factors: Sequence[_Factor]) -> tuple[_Factor, ...]:
    """Neighbours that are parts of one whole put together again; sides of one cell left out."""
    joint: list[_Factor] = []
    for factor in factors:
        if factor.size == 1 and factor.of != "n" and len(factors) > 1:
            continue
        if joint and (size := _whole(joint[-1], factor)) is not None:
            joint[-1] = replace(factor, size=size)
        else:
            joint.append(factor)
    return tuple(joint)


def _whole(outer: _Factor, inner: _Factor) -> int | None:
    """The size of two neighbours together, where they are parts of one whole."""
    if outer.of != inner.of or outer.size is None or inner.size is None or inner.of == "t":
        return None
    return outer.size * inner.size if inner.of in "nk" or outer.step == inner.step * inner.size else None


# --- joining and cutting ------------------------------------------------------------------------------------------


def _joined(graph: Graph, node: Node, known: dict[str, Layout], shape: Shape) -> Layout | None:
    """Channels joined, spatial parts joined, or class tokens put in front."""
    parts = [known.get(i) for i in node.inputs]
    last = parts[-1]
    if last is None:
        return None
    axis = node.attrs["axis"] % len(shape)
    if axis == last.channel_axis:
        return last if all(p is not None and p.grid == last.grid and p.kind == last.kind for p in parts) else None
    apart = last.kind not in ("tokens", "channels-tokens")
    if apart and all(p is not None and p.kind == last.kind and not p.prefix for p in parts):
        return _on_grid(last.kind, shape, len(last.shape))
    if apart and last.kind not in ("ncl", "nlc"):
        return None
    total = shape[axis]
    if not isinstance(total, int) or any(p is not None for p in parts[:-1]):
        return None
    return replace(last, prefix=total - last.cells)


def _cut(graph: Graph, node: Node, source: Layout | None, shape: Shape) -> Layout | None:
    """Spatial parts and steps of a map, channels of anything, and the class tokens cut off again."""
    if source is None:
        return None
    if source.kind not in ("tokens", "channels-tokens") and not source.prefix:
        return _on_grid(source.kind, shape, len(source.shape))
    if source.fits(shape):
        return source
    bare = replace(source, prefix=0)
    return bare if bare.fits(shape) and _starts_at(graph, node, source.prefix) else None


def _starts_at(graph: Graph, node: Node, position: int) -> bool:
    starts = graph.constant(node.inputs[1])
    return starts is not None and starts.size == 1 and int(starts.reshape(-1)[0]) == position


def stated_layout(text: str, shape: Shape | None, picture: Sequence[int]) -> Layout:
    """The layout that a user states: `nchw`, `nhwc`, `tokens` or `tokens:PREFIX`, its grid from the shape.

    A row of tokens is laid on the grid whose aspect is nearest to the picture's (H, W); where the picture is a signal
    (L,), along it. Signals and volumes (D, H, W) have `ncl`, `nlc`, `nlc:PREFIX`, `ncdhw` and `ndhwc`.

    Raises: UsageError where the text or the shape does not allow it.
    """
    kind, colon, prefix = text.partition(":")
    rows = ("tokens", "channels-tokens", "nlc", "ncl")
    if kind not in KINDS or (colon and (not prefix.isdigit() or kind not in rows)):
        raise UsageError(f"unknown layer layout `{text}`", "use nchw, nhwc, tokens or tokens:PREFIX, such as tokens:1")
    shown = list(shape) if shape is not None else "unknown"
    if len(picture) == 1:
        kind = {"tokens": "nlc", "channels-tokens": "ncl"}.get(kind, kind)
    if kind in _PATTERNS[len(picture)] and shape is not None and len(shape) == len(_PATTERNS[len(picture)][kind]) + 1:
        if kind not in rows:
            found = _on_grid(kind, shape, len(picture))
            if found is not None:
                return found
        elif len(picture) < 3:
            skipped = int(prefix or 0)
            count = shape[1 if kind in ("tokens", "nlc") else 2]
            if isinstance(count, int) and count > skipped:
                cells = count - skipped
                sides = (cells,) if len(picture) == 1 else token_grid(cells, picture)
                return _of_sides(kind, sides, skipped)
    raise UsageError(f"layout `{text}` does not fit the layer's shape {shown}", "`onnxcam layers MODEL` shows shapes")


def token_grid(cells: int, picture: Sequence[int]) -> tuple[int, int]:
    """The grid h x w of that many cells whose aspect is nearest to the picture's (H, W)."""
    heights = np.array([h for h in range(1, cells + 1) if cells % h == 0])
    distance = np.abs(np.log(heights * heights / cells) - np.log(picture[0] / picture[1]))
    h = int(heights[int(distance.argmin())])
    return h, cells // h


def norm_before_mixing(graph: Graph, known: dict[str, Layout]) -> str | None:
    """The norm whose output the last operator that mixes tokens (attention, token MLP) reads; None without such a norm.

    Mixing leaves the token layout and comes back to it, by more than moves; between the norm and the mixing are
    token-wise steps alone.
    """
    lost: set[str] = set()  # values that lie nowhere but lead back to tokens
    mixed: set[str] = set()  # ... by more than moves
    nodes = [n for n in graph.nodes if n.op_type not in ("Shape", "Size")]  # sizes are no way back
    for node in reversed(nodes):
        if any(_on_tokens(known, o) or o in lost for o in node.outputs):
            astray = [i for i in node.reads if i not in known or known[i].kind in ("channels-tokens", "ncl")]
            lost.update(astray)
            if node.op_type not in MOVES or mixed & set(node.outputs):
                mixed.update(astray)
    read = [
        i
        for n in nodes
        if (mixed if n.op_type in MOVES else lost) & set(n.outputs)
        for i in n.inputs
        if _on_tokens(known, i) and not _picks_prefix(graph, n, known[i])
    ]
    pending, seen, norms = read[-1:], set(read[-1:]), set[str]()
    while pending:
        value = pending.pop()
        maker = graph.producer(value)
        if maker is not None and _is_norm(graph, maker):
            norms.add(value)
            continue
        before = {i for i in maker.inputs if _on_tokens(known, i)} if maker is not None else set()
        if maker is not None and not before and maker.op_type in MOVES:
            before = {maker.inputs[0]}
        if not before:
            return None  # where norms come after the mixing, residual sums lead back to the first map
        pending.extend(before - seen)
        seen |= before
    return norms.pop() if len(norms) == 1 else None


def _on_tokens(known: dict[str, Layout], value: str) -> bool:
    return value in known and known[value].kind in ("tokens", "nhwc", "nlc", "ndhwc")


def _is_norm(graph: Graph, node: Node) -> bool:
    """A normalisation operator, or the scale and shift per feature at the end of one that is spelt out."""
    if node.op_type in _NORMS:
        return True
    if node.op_type != "Add":
        return False
    return any(_per_feature(graph, b) and _is_scaled(graph, a) for a, b in (node.inputs, node.inputs[::-1]))


def _is_scaled(graph: Graph, value: str) -> bool:
    """Whether a value is a product with a weight per feature, and with numbers (`addcmul` writes a 1)."""
    maker = graph.producer(value)
    if maker is None or maker.op_type != "Mul":
        return False
    numbers = [graph.constant(i) for i in maker.inputs]
    rest = [i for i, n in zip(maker.inputs, numbers, strict=True) if n is None or n.size != 1]
    return any(_per_feature(graph, i) for i in rest) or (len(rest) == 1 and _is_scaled(graph, rest[0]))


def _per_feature(graph: Graph, value: str) -> bool:
    """Whether a value is a weight with one number for each place on the last axis."""
    shape = graph.shape(value) if graph.constant_rank(value) else None
    return bool(shape) and shape is not None and shape[-1] != 1 and all(d == 1 for d in shape[:-1])


def vanishes(graph: Graph, value: str, known: dict[str, Layout]) -> bool:
    """Whether only the class tokens of a value reach the score: its patches get a gradient of exactly zero."""
    if not known[value].prefix:
        return False
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        for node in graph.consumers(current):
            if _picks_prefix(graph, node, known[current]):
                continue
            for output in node.outputs:
                if output not in known or not _on_tokens(known, output) or not known[output].prefix:
                    return False
                if output not in seen:
                    seen.add(output)
                    pending.append(output)
    return True


def _picks_prefix(graph: Graph, node: Node, layout: Layout) -> bool:
    axis = node.attrs.get("axis", 0)
    if node.op_type == "Gather" and axis in (1, -2):
        index = graph.constant(node.inputs[1])
        return index is not None and bool((index >= 0).all() and (index < layout.prefix).all())
    if node.op_type == "Slice" and len(node.inputs) > 3:
        start, end, axes = (graph.constant(i) for i in node.inputs[1:4])
        if start is None or end is None or axes is None or axes.size != 1 or int(axes.reshape(-1)[0]) not in (1, -2):
            return False
        return int(start.reshape(-1)[0]) >= 0 and 0 < int(end.reshape(-1)[0]) <= layout.prefix
    return False
