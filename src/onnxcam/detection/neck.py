"""Where a detector's heads begin, and the last map that everything they say goes through."""

from collections.abc import Iterable, Sequence

from onnxcam.graph.index import Graph, Node

_WEIGHTED = ("Conv", "FusedConv", "QLinearConv", "ConvInteger", "ConvTranspose")


def tail(graph: Graph, value: str, size: tuple[int, int]) -> tuple[list[Node], list[Node]]:
    """The nodes behind the last convolutions on a grid of the picture before `value`, and these convolutions.

    Both in the order of the graph.
    """
    behind: dict[int, Node] = {}
    ends: dict[int, Node] = {}
    pending, seen = [value], {value}
    while pending:
        node = graph.producer(pending.pop())
        if node is None:
            continue
        if node.op_type in _WEIGHTED and _grid(graph, node.outputs[0], size) is not None:
            ends[id(node)] = node
            continue
        behind[id(node)] = node
        fresh = [name for name in node.reads if name not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return [n for n in graph.nodes if id(n) in behind], [n for n in graph.nodes if id(n) in ends]


def _grid(graph: Graph, value: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """(h, w) of a map (N, K, h, w) that covers the picture in its proportions, rounded; None of another value."""
    shape = graph.shape(value)
    if shape is None or len(shape) != 4 or not all(isinstance(d, int) for d in shape[2:]):
        return None
    h, w = (int(d) for d in shape[2:] if isinstance(d, int))
    return (h, w) if abs(w - h * size[1] / size[0]) < 1.5 or abs(h - w * size[0] / size[1]) < 1.5 else None


def shared_map(graph: Graph, values: Iterable[str], image: str, size: tuple[int, int]) -> str | None:
    """The last map on a grid that everything the heads say goes through, before their last convolutions.

    That is the last common dominator of what these convolutions read: behind it a pyramid splits into its levels, so
    it is the deepest map that serves boxes of every size. None where there is none.
    """
    heads = {id(node): node for value in values for node in tail(graph, value, size)[1]}
    dominators = _dominators(graph, image)
    shared = _meet([dominators.get(node.inputs[0], 0) for node in heads.values()] or [0])
    through = [node for i, node in enumerate(graph.nodes) if shared >> (i + 1) & 1]
    maps = [node.outputs[0] for node in through if (_grid(graph, node.outputs[0], size) or (1, 1)) != (1, 1)]
    return maps[-1] if maps else None


def _dominators(graph: Graph, image: str) -> dict[str, int]:
    """Per value that depends on the picture, the set (bits, node i as i + 1) of what every path to it goes through."""
    sets = {image: 1}
    for i, node in enumerate(graph.nodes):
        sources = [sets[name] for name in node.reads if name in sets]
        if sources:
            shared = _meet(sources) | 1 << (i + 1)
            sets.update({output: shared for output in node.outputs if output})
    return sets


def _meet(sets: Sequence[int]) -> int:
    shared = sets[0]
    for other in sets[1:]:
        shared &= other
    return shared
