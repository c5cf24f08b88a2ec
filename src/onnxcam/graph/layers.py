"""Candidate target layers: the spatial feature maps on the way from the picture to the score."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layout import MOVES, Layout, layouts, norm_before_mixing, stated_layout, vanishes

_ENLARGING = ("Resize", "Upsample", "ConvTranspose", "DepthToSpace", "Reshape")
_FINE = 16
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "FusedConv")
_POOLS = ("MaxPool", "AveragePool", "LpPool")

# A side of fewer cells says little about where; VGG's 7 and AlexNet's 6, which pytorch-grad-cam recommends, stay.
_COARSE = 5


@dataclass(frozen=True)
class Layer:
    """A value that can be explained: its tensor name, the operator behind it, channels K, and how it lies."""

    name: str
    op_type: str
    node: str
    channels: int | None
    layout: Layout
    depth: int

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.layout.grid


class Layers:
    """The values between the picture and the score that lie on the picture.

    image: the picture input; kind: its layout, nchw or nhwc; scores: the values that the target is made of.
    """

    def __init__(self, graph: Graph, image: str, kind: str, *scores: str) -> None:
        self.graph = graph
        self.image = image
        self.score = "`, `".join(scores)
        self.layouts = layouts(graph, image, kind)
        self._between = _between(graph, image, scores)

    @cached_property
    def candidates(self) -> tuple[Layer, ...]:
        """Values on a grid of more than one cell, in the order of the graph, deepest last.

        What is only moved is no layer of its own, unless it comes from where it had no grid.
        """
        return tuple(
            layer
            for depth, node in enumerate(self._between)
            if node.op_type not in MOVES or node.inputs[0] not in self.layouts
            for output in node.outputs
            if output and (layer := self._layer(output, node, depth)) is not None
        )

    def _layer(self, value: str, node: Node, depth: int, layout: Layout | None = None) -> Layer | None:
        layout = layout or self.layouts.get(value)
        if layout is None or layout.cells <= 1 or layout.kind == "channels-tokens":
            return None
        shape = self.graph.shape(value) or ()
        k = shape[layout.channel_axis]
        return Layer(value, node.op_type, node.name, k if isinstance(k, int) else None, layout, depth)

    @cached_property
    def automatic(self) -> Layer:
        """The last spatial map before it is pooled or flattened away; in a transformer the norm before the last mixing.

        A map made by convolutions at the end wins, or what was pooled into it where that left fewer than 5 cells on a
        side; else the last norm that feeds an attention or a token MLP, as pytorch-grad-cam recommends
        (`blocks[-1].norm1`), since behind it a class token leaves the patches no gradient.

        Raises: UnsupportedError (exit code 4) where the model has no spatial map.
        """
        if not self.candidates:
            raise UnsupportedError(
                f"no feature map with a spatial grid lies between `{self.image}` and `{self.score}`",
                "name a value with `--layer` and how it lies with `--layer-layout`; where sizes are dynamic, bind them "
                "with `--size`",
            )
        last = self.candidates[-1]
        named = {layer.name: layer for layer in self.candidates}
        if last.layout.is_map:
            pooled = self.graph.producer(last.name)
            coarse = min(last.layout.shape) < _COARSE and pooled is not None and last.op_type in _POOLS
            return named.get(pooled.inputs[0], last) if coarse and pooled is not None else last
        return named.get(norm_before_mixing(self.graph, self.layouts) or "", last)

    @cached_property
    def before_enlarging(self) -> Layer:
        """Of a score that is read off a map: the coarsest map that is enlarged, of those that were not enlarged before.

        Maps whose cells are larger than 16 pixels are passed over: what a deep U-Net has at its bottom says little
        about where. Where a map holds as many channels as the score, what the last weights before it are applied to.
        The choice of Seg-Grad-CAM (the bottleneck) and of pytorch-grad-cam's tutorial (the end of the backbone).

        Raises: UnsupportedError (exit code 4) where the model has no spatial map.
        """
        automatic, named = self.automatic, {layer.name: layer for layer in self.candidates}
        score = self.layouts.get(self.score)
        classes = (self.graph.shape(self.score) or ())[score.channel_axis] if score else None
        enlarged: set[str] = set()
        first: list[str] = []
        for node in self._between:
            if enlarged & set(node.reads):
                enlarged.update(node.outputs)
            elif self._enlarges(node):
                enlarged.update(node.outputs)
                first.append(node.inputs[0])
        value, weighed = min(first, key=lambda v: self.layouts[v].cells, default=self.score), False
        while (maker := self.graph.producer(value)) is not None:
            layer = named.get(value)
            if layer is not None and (layer.channels != classes or weighed):
                return layer
            weighed = weighed or maker.op_type in _WEIGHTED
            value = maker.inputs[0]
        return automatic

    def _enlarges(self, node: Node) -> bool:
        """Whether a map of cells of at most 16 pixels becomes a finer one."""
        if not node.inputs or node.op_type not in _ENLARGING:
            return False
        before, after, picture = (self.layouts.get(v) for v in (node.inputs[0], node.outputs[0], self.image))
        if before is None or after is None or not before.cells < after.cells:
            return False
        return picture is None or all(_FINE * d >= p for d, p in zip(before.grid, picture.grid, strict=True))

    @property
    def depth(self) -> int:
        """How many operators lie between the picture and the score."""
        return len(self._between)

    def vanishes(self, layer: Layer) -> bool:
        """Whether only the layer's class tokens reach the score."""
        return layer.name in self.layouts and vanishes(self.graph, layer.name, self.layouts)

    @property
    def rule(self) -> str:
        """Why the automatic layer was chosen, in words."""
        if self.automatic.layout.is_map:
            return "the last spatial map"
        return "the last spatial map" if self.automatic is self.candidates[-1] else "the norm before the last attention"

    def named(self, name: str, layout: str | None = None, picture: tuple[int, int] = (1, 1)) -> Layer:
        """The layer called `name`: a value, or a node, which means its first output.

        layout: stated by the user where the graph does not tell, see `stated_layout`; picture: the input's (H, W).

        Raises: UsageError (exit code 2) for an unknown name, with the nearest ones; UnsupportedError for a value that
        has no spatial grid, or that does not lie between the picture and the score.
        """
        graph = self.graph
        nodes = {n.proto.name: n for n in graph.nodes if n.proto.name}
        if graph.producer(name) is None and name in nodes:
            name = nodes[name].outputs[0]
        node = graph.producer(name)
        if node is None:
            known = [text for layer in self.candidates for text in (layer.name, layer.node)]
            close = get_close_matches(name, known, 3, 0.5)
            listed = " or ".join(f"`{c}`" for c in dict.fromkeys(close))
            hint = f"did you mean {listed}?" if close else "`onnxcam layers MODEL` lists them"
            raise UsageError(f"the model has no layer `{name}`", hint)
        shape = graph.shape(name)
        sides = self.layouts[self.image].shape if self.image in self.layouts else picture
        stated = stated_layout(layout, shape, sides) if layout else None
        depth = next((i for i, n in enumerate(self._between) if n is node), -1)
        found = self._layer(name, node, depth, stated)
        if found is None:
            raise UnsupportedError(
                f"layer `{name}` has no spatial grid: its shape is {list(shape) if shape is not None else 'unknown'}",
                "choose a feature map (`onnxcam layers MODEL` lists them), or say how it lies with `--layer-layout`",
            )
        if depth < 0:
            raise UnsupportedError(
                f"layer `{name}` does not lie between the picture `{self.image}` and the score `{self.score}`",
                "`onnxcam layers MODEL` lists the layers that do",
            )
        return found

    def refuse_vanishing(self, layer: Layer) -> None:
        """Raises: UnsupportedError where only the layer's class tokens reach the score, naming the layer upstream."""
        if not self.vanishes(layer):
            return
        above = [c for c in self.candidates if c.depth < layer.depth and not self.vanishes(c)]
        nearest = (
            f"use `{above[-1].name}`, the nearest layer upstream where they do not" if above else "use another model"
        )
        raise UnsupportedError(
            f"gradients at layer `{layer.name}` vanish identically: only its class token reaches the score", nearest
        )


def _between(graph: Graph, source: str, scores: Sequence[str]) -> list[Node]:
    needed = {*scores}
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            needed.update(node.reads)
    reached = {source}
    nodes: list[Node] = []
    for node in graph.nodes:
        if reached & set(node.reads) and needed & set(node.outputs):
            nodes.append(node)
            reached.update(node.outputs)
    return nodes


def candidate_layers(graph: Graph, image: str, score: str, kind: str = "nchw") -> list[Layer]:
    """`Layers.candidates` of one question."""
    return list(Layers(graph, image, kind, score).candidates)


def automatic_layer(graph: Graph, image: str, score: str, kind: str = "nchw") -> Layer:
    """`Layers.automatic` of one question."""
    return Layers(graph, image, kind, score).automatic


def named_layer(graph: Graph, name: str, image: str, score: str, kind: str = "nchw") -> Layer:
    """`Layers.named` of one question."""
    return Layers(graph, image, kind, score).named(name)
