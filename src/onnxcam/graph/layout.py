"""How a value lies on the picture: channels first or last, or a row of tokens with class tokens in front.

Found from the graph: convolutions make maps (N, K, h, w); from there a layout follows a value through transposes,
reshapes, class tokens, element-wise operators and linear layers, and comes back at residual sums after an attention
that it was lost in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcam.errors import UsageError
from onnxcam.graph.index import Graph, Node, Shape

KINDS = ("nchw", "nhwc", "tokens", "channels-tokens")


@dataclass(frozen=True)
class Layout:
    """`nchw` (N, K, h, w), `nhwc` (N, h, w, K), `tokens` (N, prefix + h w, K), `channels-tokens` transposed."""

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def channel_axis(self) -> int:
        return {"nchw": 1, "nhwc": 3, "tokens": 2, "channels-tokens": 1}[self.kind]

    def fits(self, shape: Shape | None) -> bool:
        """Whether a value of this shape can lie so; open dimensions fit anything."""
        tokens = self.prefix + self.cells
        wanted: dict[str, Shape] = {
            "nchw": (None, None, *self.grid),
            "nhwc": (None, *self.grid, None),
            "tokens": (None, tokens, None),
            "channels-tokens": (None, None, tokens),
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
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_NORMS = frozenset(
    """LayerNormalization RMSNormalization SimplifiedLayerNormalization SkipLayerNormalization
    SkipSimplifiedLayerNormalization""".split()
)


def layouts(graph: Graph, image: str, kind: str) -> dict[str, Layout]:
    """The layout of every value for which it can be told, the picture input's `kind` (nchw, nhwc) being known."""
    known: dict[str, Layout] = {}
    start = graph.shape(image)
    if start is not None and len(start) == 4:
        height, width = (start[2], start[3]) if kind == "nchw" else (start[1], start[2])
        if isinstance(height, int) and isinstance(width, int):
            known[image] = Layout(kind, (height, width))
    grids: dict[int, tuple[int, int]] = {}
    for node in graph.nodes:
        for output in node.outputs:
            if output and (found := _layout(graph, node, output, known, grids)) is not None:
                known[output] = found
                grids[found.cells] = found.grid
    return known


def _layout(
    graph: Graph, node: Node, output: str, known: dict[str, Layout], grids: dict[int, tuple[int, int]]
) -> Layout | None:
    shape = graph.shape(output)
    if shape is None or len(shape) not in (3, 4):
        return None
    if node.op_type in _MAPPERS and len(shape) == 4 and not node.attrs.get("channels_last"):
        return _on_grid("nchw", shape)
    sources = [known[i] for i in node.inputs if i in known]
    first = known.get(node.inputs[0]) if node.inputs else None
    if node.op_type == "Transpose":
        return _transposed(first, tuple(node.attrs.get("perm") or ()))
    if node.op_type in _RESHAPES:
        return _reshaped(first, graph.shape(node.inputs[0]), shape)
    if node.op_type == "Concat":
        return _joined(graph, node, known, shape)
    if node.op_type == "Slice":
        return _cut(graph, node, first, shape)
    if node.op_type == "Gather":
        return None
    if node.op_type in _NORMS or (node.op_type == "MatMul" and graph.constant_rank(node.inputs[1]) == 2):
        return _features_last(first, shape, grids)
    return next((s for s in sources if s.fits(shape)), None)


def _on_grid(kind: str, shape: Shape) -> Layout | None:
    h, w = (shape[2], shape[3]) if kind == "nchw" else (shape[1], shape[2])
    return Layout(kind, (h, w)) if isinstance(h, int) and isinstance(w, int) else None


def _features_last(source: Layout | None, shape: Shape, grids: dict[int, tuple[int, int]]) -> Layout | None:
    """A norm over, or a linear layer of, the last axis: features last, also where the layout was lost before."""
    if source is not None and source.kind in ("nhwc", "tokens"):
        return source if source.fits(shape) else None
    if source is not None:
        return None
    if len(shape) == 4:
        return _on_grid("nhwc", shape)
    tokens = shape[1]
    if isinstance(tokens, int) and tokens in grids and grids[tokens] != (tokens, 1):
        return Layout("tokens", grids[tokens])
    return None


def _transposed(source: Layout | None, perm: tuple[int, ...]) -> Layout | None:
    turns = {
        ("nchw", (0, 2, 3, 1)): "nhwc",
        ("nhwc", (0, 3, 1, 2)): "nchw",
        ("tokens", (0, 2, 1)): "channels-tokens",
        ("channels-tokens", (0, 2, 1)): "tokens",
    }
    kind = turns.get((source.kind, perm)) if source is not None else None
    return replace(source, kind=kind) if source is not None and kind is not None else None


def _reshaped(source: Layout | None, before: Shape | None, shape: Shape) -> Layout | None:
    if source is None or before is None:
        return None
    channels = before[source.channel_axis]
    turned = {"nchw": "channels-tokens", "channels-tokens": "nchw", "nhwc": "tokens", "tokens": "nhwc"}[source.kind]
    for kind in (source.kind, turned):
        there = replace(source, kind=kind)
        if there.fits(shape) and shape[there.channel_axis] == channels and (kind != "nhwc" or not source.prefix):
            return there
    return None


def _joined(graph: Graph, node: Node, known: dict[str, Layout], shape: Shape) -> Layout | None:
    """Channels joined, spatial parts joined, or class tokens put in front."""
    parts = [known.get(i) for i in node.inputs]
    last = parts[-1]
    if last is None:
        return None
    axis = node.attrs["axis"] % len(shape)
    if axis == last.channel_axis:
        return last if all(p is not None and p.grid == last.grid and p.kind == last.kind for p in parts) else None
    if last.kind in ("nchw", "nhwc"):
        return _on_grid(last.kind, shape) if all(p is not None and p.kind == last.kind for p in parts) else None
    total = shape[axis]
    if not isinstance(total, int) or any(p is not None for p in parts[:-1]):
        return None
    return replace(last, prefix=total - last.cells)


def _cut(graph: Graph, node: Node, source: Layout | None, shape: Shape) -> Layout | None:
    """Spatial parts and steps of a map, channels of anything, and the class tokens cut off again."""
    if source is None:
        return None
    if source.kind in ("nchw", "nhwc"):
        return _on_grid(source.kind, shape)
    if source.fits(shape):
        return source
    bare = replace(source, prefix=0)
    return bare if bare.fits(shape) and _starts_at(graph, node, source.prefix) else None


def _starts_at(graph: Graph, node: Node, position: int) -> bool:
    starts = graph.constant(node.inputs[1])
    return starts is not None and starts.size == 1 and int(starts.reshape(-1)[0]) == position


def stated_layout(text: str, shape: Shape | None, picture: Sequence[int]) -> Layout:
    """The layout that a user states: `nchw`, `nhwc`, `tokens` or `tokens:PREFIX`, its grid from the shape.

    A row of tokens is laid on the grid whose aspect is nearest to the picture's (H, W).

    Raises: UsageError where the text or the shape does not allow it.
    """
    kind, _, prefix = text.partition(":")
    if kind not in KINDS or (prefix and not prefix.isdigit()):
        raise UsageError(f"unknown layer layout `{text}`", "use nchw, nhwc, tokens or tokens:PREFIX, such as tokens:1")
    shown = list(shape) if shape is not None else "unknown"
    if kind in ("nchw", "nhwc") and shape is not None and len(shape) == 4:
        found = _on_grid(kind, shape)
        if found is not None:
            return found
    if kind in ("tokens", "channels-tokens") and shape is not None and len(shape) == 3:
        count = shape[1 if kind == "tokens" else 2]
        if isinstance(count, int):
            return Layout(kind, token_grid(count - int(prefix or 0), picture), int(prefix or 0))
    raise UsageError(f"layout `{text}` does not fit the layer's shape {shown}", "`onnxcam layers MODEL` shows shapes")


def token_grid(cells: int, picture: Sequence[int]) -> tuple[int, int]:
    """The grid h x w of that many cells whose aspect is nearest to the picture's (H, W)."""
    heights = np.array([h for h in range(1, max(cells, 1) + 1) if cells % h == 0])
    distance = np.abs(np.log(heights * heights / max(cells, 1)) - np.log(picture[0] / picture[1]))
    h = int(heights[int(distance.argmin())])
    return h, cells // h


def mixing_norms(graph: Graph, known: dict[str, Layout]) -> list[str]:
    """Norm outputs on tokens that feed an operator that mixes tokens (attention, token MLP), in topological order.

    They leave the token layout and come back to it at a residual sum; the last norm before a head does not come back.
    """
    returns: set[str] = set()  # values without a token layout that lead back to one
    for node in reversed(graph.nodes):
        back = any(_on_tokens(known, o) or o in returns for o in node.outputs)
        if back:
            returns.update(i for i in node.reads if not _on_tokens(known, i))
    return [
        output
        for node in graph.nodes
        for output in node.outputs[:1]
        if _on_tokens(known, output) and _is_norm(graph, node) and _escapes(graph, output, known, returns)
    ]


def _on_tokens(known: dict[str, Layout], value: str) -> bool:
    return value in known and known[value].kind in ("tokens", "nhwc")


def _is_norm(graph: Graph, node: Node) -> bool:
    """A normalisation operator, or the scale and shift at the end of one that is spelt out."""
    if node.op_type in _NORMS:
        return True
    if node.op_type != "Add":
        return False
    for shift, other in (node.inputs, reversed(node.inputs)):
        maker = graph.producer(other)
        if graph.constant_rank(shift) == 1 and maker is not None and maker.op_type == "Mul":
            return any(graph.constant_rank(i) == 1 for i in maker.inputs)
    return False


def _escapes(graph: Graph, value: str, known: dict[str, Layout], returns: set[str]) -> bool:
    """Whether a value reaches, by token-wise linear steps, an operator that mixes tokens and leads back."""
    pending, seen = [value], {value}
    while pending:
        for node in graph.consumers(pending.pop()):
            for output in node.outputs:
                if output in returns:
                    return True
                residual = node.op_type == "Add" and sum(_on_tokens(known, i) for i in node.inputs) > 1
                if _on_tokens(known, output) and not residual and output not in seen and not _is_norm(graph, node):
                    seen.add(output)
                    pending.append(output)
    return False


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
                if output not in known or known[output].kind != "tokens" or not known[output].prefix:
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
