"""Heads that read one token of many: the same head computed for that token alone, so that its gradient is too."""

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, helper

from onnxcam.autodiff.engine import live_path
from onnxcam.graph.build import Builder
from onnxcam.graph.index import Graph, Node

ELEMENTWISE = frozenset(
    "Add Sub Mul Div Pow Neg Abs Sqrt Exp Log Reciprocal Erf Sigmoid Tanh Relu LeakyRelu Elu Selu Gelu HardSigmoid "
    "HardSwish Mish Softplus Softsign Clip Identity Cast".split()
)

Axes = list[int | None]  # per input: the axis of its tokens, None where it is read whole


def of_one_token(graph: Graph, op: Builder, y: str, wrt: Sequence[str]) -> str | None:
    """A copy of `y` that computes for one token what lies, token by token, between `wrt` and the Gather of that token.

    The copy has the value of `y` and its gradient at `wrt`, which is one token wide on the way where that of `y` would
    be T wide and 0 but for one. What is read beside the Gather too (of an attention, its input, keys and values) stays
    whole. None where nothing is spared.
    """
    _, path = live_path(graph, y, wrt)
    found = _token(graph, op, path, wrt)
    if found is None:
        return None
    pick, token = found
    copies = {pick.outputs[0]: token}
    for node in path[path.index(pick) + 1 :]:
        if not copies.keys().isdisjoint(node.inputs):
            if node.domain:
                return None
            copies |= zip(node.outputs, _copied(op, node, [copies.get(i, i) for i in node.inputs]), strict=True)
    return copies[y]


def for_one_token(graph: Graph, reads: Sequence[str], wrt: Sequence[str]) -> Graph:
    """The graph with such a copy, of the first of `reads`, in the place of what it copies.

    `reads`, `wrt` and the outputs keep their names, and their values but for the rounding of products of one row.
    What no output, `reads` or `wrt` needs any more is gone. The graph itself where nothing is spared.
    """
    op = Builder(graph)
    found = _token(graph, op, live_path(graph, reads[0], wrt)[1], wrt)
    if found is None:
        return graph
    pick, _ = found
    op.nodes[-1].output[:] = pick.outputs
    kept: list[NodeProto] = []
    read = {*reads, *graph.outputs}
    for node in reversed(graph.nodes):
        if read.isdisjoint(node.outputs) and any(map(graph.consumers, node.outputs)):
            continue
        for made in (node,) if node is not pick else [Node(n, graph.opset) for n in reversed(op.nodes)]:
            kept.append(made.proto)
            read.update(made.reads)
    model = ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(op.initializers.values())
    return Graph(model, weights=graph.weights, shapes=graph.shapes, folder=graph.folder, notes=graph.notes)


def _token(graph: Graph, op: Builder, path: Sequence[Node], wrt: Sequence[str]) -> tuple[Node, str] | None:
    """The Gather of one token on `path`, and its output computed for that token alone; None where nothing is spared."""
    picks = [node for node in path if _picked(graph, node) is not None]
    if len(picks) != 1:
        return None
    pick, token = picks[0], _picked(graph, picks[0])
    assert token is not None
    made_by = {node.outputs[0]: node for node in path}
    reads: dict[str, Axes] = {pick.outputs[0]: [1, None]}  # of the nodes that are copied for one token
    axis_of: dict[str, int] = {}
    for node in reversed(path[: path.index(pick)]):
        out = node.outputs[0]
        axis = None if out in wrt else _asked(out, [r for r in graph.consumers(out) if r.outputs[0] in made_by], reads)
        axes = _axes(graph, node, axis) if axis is not None else None
        if axis is not None and axes is not None:
            reads[out], axis_of[out] = axes, axis
    if not axis_of:
        return None
    parts: dict[tuple[str, int], str] = {}  # of values, along an axis
    for node in path[: path.index(pick) + 1]:
        out, inputs = node.outputs[0], list(node.inputs)
        for i, axis in enumerate(reads.get(out, ())):
            if axis is not None:
                slot = (inputs[i], axis)
                if slot not in parts:
                    parts[slot] = str(op.Slice(inputs[i], [token], [token + 1], [axis]))
                inputs[i] = parts[slot]
        if out in axis_of:
            if node.op_type == "Reshape":
                sizes = enumerate(graph.shape(out) or ())
                inputs[1] = op.value([1 if i == axis_of[out] else d if isinstance(d, int) else -1 for i, d in sizes])
            parts[out, axis_of[out]] = _copied(op, node, inputs)[0]
    return pick, str(op.Squeeze(parts[pick.inputs[0], 1], [1]))


def _copied(op: Builder, node: Node, inputs: list[str]) -> tuple[str, ...]:
    attrs = {a.name: helper.get_attribute_value(a) for a in node.proto.attribute}
    return op.emit(node.op_type, [i or None for i in inputs], len(node.outputs), attrs)


def _picked(graph: Graph, node: Node) -> int | None:
    """The token that a Gather takes out of (N, T, C); None for any other node."""
    if node.kind != "Gather":
        return None
    shape, index = graph.shape(node.inputs[0]) or (), graph.constant(node.inputs[1])
    if len(shape) != 3 or not isinstance(shape[1], int) or node.attrs["axis"] not in (1, -2):
        return None
    return None if index is None or index.ndim else int(index) % shape[1]


def _asked(value: str, readers: Sequence[Node], reads: dict[str, Axes]) -> int | None:
    """The axis along which all readers want one token of a value; None where one of them wants more."""
    axes = {
        axis
        for reader in readers
        for name, axis in zip(reader.inputs, reads.get(reader.outputs[0], [None] * len(reader.inputs)), strict=True)
        if name == value
    }
    return axes.pop() if len(axes) == 1 else None


def _axes(graph: Graph, node: Node, axis: int) -> Axes | None:
    """What a node reads for one token of its output, which lies along `axis`; None where it mixes tokens."""
    shapes = [graph.shape(i) if i else () for i in node.inputs]
    out = graph.shape(node.outputs[0])
    if out is None or any(s is None for s in shapes) or len(node.outputs) != 1 or node.domain:
        return None
    first, rank = shapes[0] or (), len(out)
    others: Axes = [None] * (len(shapes) - 1)
    if node.op_type in ELEMENTWISE:
        placed = [(axis - rank + len(s or ()), s or ()) for s in shapes]
        if any(at >= 0 and s[at] not in (1, out[axis]) for at, s in placed):
            return None
        return [None if at < 0 or s[at] == 1 else at for at, s in placed]
    if node.op_type == "MatMul" and axis == rank - 2 and len(first) >= 2:
        return [len(first) - 2, *others]
    if node.op_type == "Transpose" and "perm" in node.attrs:
        return [int(node.attrs["perm"][axis])]
    if node.op_type == "Reshape" and sum(not isinstance(d, int) for d in out) <= 1:
        return [axis, *others] if first[: axis + 1] == out[: axis + 1] else None
    if node.op_type == "Softmax" and node.attrs["axis"] % rank != axis:
        return [axis]
    if node.op_type == "LayerNormalization" and node.attrs["axis"] % rank > axis:
        return [axis, *others]
    if node.op_type == "ReduceMean" and node.attrs["keepdims"] and len(shapes) == 2:
        reduced = graph.constant(node.inputs[1])
        return [axis, None] if reduced is not None and all(a % rank != axis for a in reduced) and reduced.size else None
    return None
