"""The cut form: what lies after a layer as a model of its own, so that what lies before it runs once.

The fused model is the *prefix*: it computes the layer and whatever else crosses the cut. The *head* takes these values,
any number of samples at a time, and computes the outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcam.graph.build import tensor_info
from onnxcam.graph.index import Graph, Node

# Integers that cross a cut are sizes, mostly: the head computes them again from floats, so that they fit its batch.
_SIZES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.UNDEFINED})


@dataclass(frozen=True)
class HeadModel:
    """`model` computes `outputs` from the value `layer`, the values `crossing` the cut and the inputs `chosen`.

    Every input has the batch in front, as a symbol, whatever the batch of the model that was cut.
    """

    model: ModelProto
    layer: str
    crossing: tuple[str, ...]
    chosen: tuple[str, ...]
    outputs: tuple[str, ...]

    def shape(self, value: str) -> tuple[int, ...] | None:
        """The shape per sample of an input of floats; None where it is open, or of another type."""
        (declared,) = (i.type.tensor_type for i in self.model.graph.input if i.name == value)
        sizes = tuple(d.dim_value for d in declared.shape.dim)[1:]
        return sizes if declared.elem_type == TensorProto.FLOAT and all(sizes) else None


def crossing(graph: Graph, layer: str, outputs: Sequence[str], picture: str, given: Sequence[str] = ()) -> list[str]:
    """The values that the head of `head_after` needs beside the layer and what is given."""
    return _cut(graph, layer, outputs, picture, given)[1]


def head_after(graph: Graph, layer: str, outputs: Sequence[str], picture: str, given: Sequence[str] = ()) -> HeadModel:
    """Cut a graph behind the value `layer`; `picture` is the input that only the prefix sees.

    given: values that are not computed but chosen too, if they are needed.
    """
    kept, beside, chosen = _cut(graph, layer, outputs, picture, given)
    inputs = [tensor_info(v, graph.dtype(v), _open_batch(graph, v, "n")) for v in (layer, *beside)]
    declared = {i.name: i for i in graph.model.graph.input}
    inputs += [declared.get(v) or tensor_info(v, graph.dtype(v), _open_batch(graph, v, "asked")) for v in chosen]
    nodes, constants = _without_fixed_batch(graph, kept)
    used = {i for n in nodes for i in n.reads} | set(outputs)
    weights = [t for t in graph.model.graph.initializer if t.name in used]
    proto = helper.make_graph(
        [n.proto for n in nodes],
        "head",
        inputs,
        [tensor_info(o, graph.dtype(o), None) for o in outputs],
        [*weights, *constants],
    )
    model = helper.make_model(proto, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    return HeadModel(graph.complete(model), layer, tuple(beside), tuple(chosen), tuple(outputs))


def _cut(
    graph: Graph, layer: str, outputs: Sequence[str], picture: str, given: Sequence[str]
) -> tuple[list[Node], list[str], list[str]]:
    """The head's nodes, the values that cross the cut beside the layer, and the inputs chosen at run time."""
    known = {layer, *given}
    needed = _needed(graph, outputs, stop=known)
    varying = _reached(graph.nodes, {picture}) - {*given}
    after = _reached(needed, known) - known
    kept = [n for n in needed if after & set(n.outputs) or not varying & set(n.outputs)]
    beside = [v for v in _reads(kept, known) if v in varying]
    while sizes := [v for v in beside if graph.dtype(v) in _SIZES and graph.producer(v) is not None]:
        again = {id(graph.producer(v)) for v in sizes}
        held = {id(n) for n in kept} | again
        kept = [n for n in graph.nodes if id(n) in held]
        beside = [v for v in _reads(kept, known) if v in varying]
    chosen = [v for v in _reads(kept, {layer}) if v in given or (v in graph.inputs and v != picture)]
    return kept, beside, chosen


def past_channelwise(graph: Graph, layer: str) -> str:
    """The last value after `layer` that keeps its channels apart and a channel of zeros a channel of zeros.

    Setting a channel to zero there is setting it to zero at the layer, and the value is smaller.
    """
    value = layer
    while len(readers := graph.consumers(value)) == 1 and _is_channelwise(readers[0], graph):
        value = readers[0].outputs[0]
    return value


_CHANNELWISE = frozenset(
    {"GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "Relu", "Identity", "Dropout"}
)


def _is_channelwise(node: Node, graph: Graph) -> bool:
    if node.domain or len(node.outputs) > 1:
        return False
    if node.op_type == "ReduceMean" and len(node.inputs) > 1:
        axes, shape = graph.constant(node.inputs[1]), graph.shape(node.inputs[0])
        return axes is not None and shape is not None and {int(a) % len(shape) for a in axes.ravel()} == {2, 3}
    return node.op_type in _CHANNELWISE


def _needed(graph: Graph, outputs: Sequence[str], stop: set[str]) -> list[Node]:
    wanted, kept = set(outputs) - stop, []
    for node in reversed(graph.nodes):
        if wanted & set(node.outputs):
            kept.append(node)
            wanted.update(set(node.reads) - stop)
    return kept[::-1]


def _reached(nodes: Sequence[Node], sources: set[str]) -> set[str]:
    reached = set(sources)
    for node in nodes:
        if reached & set(node.reads):
            reached.update(node.outputs)
    return reached - {""}


def _reads(nodes: Sequence[Node], known: set[str]) -> list[str]:
    """What nodes read and none of them makes."""
    made = known | {o for n in nodes for o in n.outputs}
    return list(dict.fromkeys(v for n in nodes for v in n.reads if v not in made))


def _open_batch(graph: Graph, value: str, symbol: str) -> list[int | str | None] | None:
    shape = graph.shape(value)
    return None if shape is None else [symbol, *shape[1:]]


def _without_fixed_batch(graph: Graph, nodes: Sequence[Node]) -> tuple[list[Node], list[TensorProto]]:
    """Reshapes to a constant shape that begins with the model's own batch keep the batch that comes instead."""
    changed: list[Node] = []
    constants: dict[str, TensorProto] = {}
    for node in nodes:
        shape = graph.shape(node.inputs[0]) if node.op_type == "Reshape" and not node.domain else None
        target = graph.constant(node.inputs[1]) if shape else None
        if shape and target is not None and target.size and not node.attrs["allowzero"] and shape[0] == target[0]:
            name = f"{node.inputs[1]}/any batch"
            constants[name] = numpy_helper.from_array(np.asarray([0, *target[1:]], np.int64), name)
            proto = type(node.proto)()
            proto.CopyFrom(node.proto)
            proto.input[1] = name
            node = Node(proto, node.opset)
        changed.append(node)
    return changed, list(constants.values())
