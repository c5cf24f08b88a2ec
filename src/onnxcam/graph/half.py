"""A float16 model that computes in float32: weights, inputs and outputs stay float16, casts stand behind and before.

ONNX Runtime's CPU provider has few float16 kernels. It casts what it has none for, and drops the casts between two such
operators; but activations, which are functions from opset 18 on, it spells out in float16, and fuses them no longer
with the convolutions before: a model lifted from an older opset would take half as long again.
"""

from collections.abc import Iterable

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxcam.graph.index import branches

_TYPES = ("to", "dtype", "output_dtype")
"""Attributes that hold the element type of an output."""


def has_half(model: ModelProto) -> bool:
    """Whether a weight is float16."""
    return any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)


def in_float32(model: ModelProto) -> ModelProto | None:
    """The same model computing in float32; None where it has branches, loops or operators of other domains.

    Vectors and scalars are converted here, which a file has few of; the other weights are cast when it runs.
    """
    nodes = model.graph.node
    if any(n.domain not in ("", "ai.onnx") or branches(n) for n in nodes):
        return None
    wide = ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    taken = {v for n in nodes for v in (*n.input, *n.output)} | {t.name for t in graph.initializer}

    def fresh(name: str) -> str:
        found = f"{name}/float32"
        while found in taken:
            found += "_"
        taken.add(found)
        return found

    for tensor in graph.initializer:
        if (
            tensor.data_type == TensorProto.FLOAT16
            and len(tensor.dims) < 2
            and tensor.data_location == TensorProto.DEFAULT
        ):
            tensor.CopyFrom(_widened(tensor))
    weights = [t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT16]
    read = {name: fresh(name) for name in (*weights, *_halves(graph.input))}
    made = {name: fresh(name) for name in _halves(graph.output) if any(name in n.output for n in nodes)}
    for node in graph.node:
        for names, renamed in ((node.input, {**read, **made}), (node.output, made)):
            names[:] = [renamed.get(name, name) for name in names]
        for attribute in node.attribute:
            _widen(attribute)
    casts = [_cast(name, value, TensorProto.FLOAT) for name, value in read.items()]
    rounded = [_cast(value, name, TensorProto.FLOAT16) for name, value in made.items()]
    whole = [*casts, *graph.node, *rounded]
    inferred = [v for v in graph.value_info if v.type.tensor_type.elem_type != TensorProto.FLOAT16]
    for field, kept in ((graph.node, whole), (graph.value_info, inferred)):
        copies = [type(one).FromString(one.SerializeToString()) for one in kept]
        del field[:]
        field.extend(copies)
    return wide


def _halves(declared: Iterable[ValueInfoProto]) -> list[str]:
    return [v.name for v in declared if v.type.tensor_type.elem_type == TensorProto.FLOAT16]


def _cast(value: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [value], [result], result, to=to)


def _widen(attribute: AttributeProto) -> None:
    if attribute.name in _TYPES and attribute.i == TensorProto.FLOAT16:
        attribute.i = TensorProto.FLOAT
    if attribute.t.data_type == TensorProto.FLOAT16:
        attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
