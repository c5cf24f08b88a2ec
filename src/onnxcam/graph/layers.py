"""Candidate target layers: the spatial feature maps on the way from the picture to the score."""

from dataclasses import dataclass
from difflib import get_close_matches

from onnx import TensorProto

from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.index import Graph, Node

# Outputs of these hold the same numbers as their input, moved or cast: not layers of their own.
_MOVES = frozenset(
    {"Cast", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Identity", "Pad", "QuantizeLinear", "Reshape"}
    | {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Layer:
    """A value that can be explained: its tensor name, the operator behind it, channels K and grid (h, w)."""

    name: str
    op_type: str
    node: str
    channels: int | None
    grid: tuple[int, int]
    depth: int


def candidate_layers(graph: Graph, source: str, score: str) -> list[Layer]:
    """Spatial values (N, K, h, w) with more than one cell between `source` and `score`, deepest last."""
    return [
        layer
        for depth, node in enumerate(_between(graph, source, score))
        if node.op_type not in _MOVES
        for output in node.outputs
        if output and (layer := _layer(graph, output, node, depth)) is not None
    ]


def _layer(graph: Graph, value: str, node: Node, depth: int) -> Layer | None:
    shape = graph.shape(value)
    if shape is None or len(shape) != 4 or graph.dtype(value) in (TensorProto.INT64, TensorProto.BOOL):
        return None
    _, k, h, w = shape
    if not isinstance(h, int) or not isinstance(w, int) or h * w <= 1:
        return None
    return Layer(value, node.op_type, node.name, k if isinstance(k, int) else None, (h, w), depth)


def _between(graph: Graph, source: str, score: str) -> list[Node]:
    needed = {score}
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


def automatic_layer(graph: Graph, source: str, score: str) -> Layer:
    """The last spatial map before it is pooled or flattened away.

    Raises: UnsupportedError (exit code 4) where the model has no spatial map.
    """
    layers = candidate_layers(graph, source, score)
    if not layers:
        raise UnsupportedError(
            f"no spatial feature map (N, K, h, w) lies between `{source}` and `{score}`",
            "choose a value with `--layer`; where sizes are dynamic, bind them with `--size`",
        )
    return layers[-1]


def named_layer(graph: Graph, name: str, source: str, score: str) -> Layer:
    """The layer called `name`: a value, or a node, which means its first output.

    Raises: UsageError (exit code 2) for an unknown name, with the nearest ones; UnsupportedError for a value that
    has no spatial grid.
    """
    nodes = {n.proto.name: n for n in graph.nodes if n.proto.name}
    if graph.producer(name) is None and name in nodes:
        name = nodes[name].outputs[0]
    node = graph.producer(name)
    layers = candidate_layers(graph, source, score)
    if node is None:
        known = [*(layer.name for layer in layers), *(layer.node for layer in layers)]
        close = get_close_matches(name, known, 3, 0.5)
        hint = f"did you mean {' or '.join(f'`{c}`' for c in close)}?" if close else "`onnxcam layers MODEL` lists them"
        raise UsageError(f"the model has no layer `{name}`", hint)
    for layer in layers:
        if layer.name == name:
            return layer
    found = _layer(graph, name, node, len(layers))
    shape = graph.shape(name)
    if found is None:
        raise UnsupportedError(
            f"layer `{name}` has no spatial grid: its shape is {list(shape) if shape is not None else 'unknown'}",
            "choose a feature map (N, K, h, w); `onnxcam layers MODEL` lists them",
        )
    if node not in _between(graph, source, score):
        raise UnsupportedError(
            f"layer `{name}` does not lie between the picture `{source}` and the score `{score}`",
            "`onnxcam layers MODEL` lists the layers that do",
        )
    return found
