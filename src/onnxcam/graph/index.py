"""A read-only index over a model: who makes a value, who reads it, its type, its constant.

The two queries everything else is built on are `producer(value)` and `consumers(value)`. Values are named by the
tensor name in the file; nodes are the model's own, in topological order (the checker guarantees it).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxcam.errors import ModelError, first_line
from onnxcam.graph.foreign import stand_ins

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator

Dim = int | str | None
Shape = tuple[Dim, ...]

# Constants up to this many elements travel into shape inference and constant folding; larger ones are weights.
SMALL = 4096
# Constants of more elements than this are not computed when a model is loaded.
LARGE = 2**26

_RUNS = "check that the untouched file runs in onnxruntime; if it does, `onnxsim` can simplify it beforehand"


@dataclass(frozen=True)
class ValueType:
    """Element type (a `TensorProto.DataType`) and shape; an unknown rank is None, an unknown dimension is None."""

    dtype: int
    shape: Shape | None


@cache
def _schema(op_type: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


class Node:
    """One node of the model, with schema defaults filled into `attrs`."""

    __slots__ = ("_attrs", "domain", "inputs", "op_type", "opset", "outputs", "proto")

    def __init__(self, proto: NodeProto, opset: int) -> None:
        self.proto = proto
        self.op_type: str = proto.op_type
        self.domain: str = "" if proto.domain == "ai.onnx" else proto.domain
        self.inputs: tuple[str, ...] = tuple(proto.input)
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self.opset = opset
        self._attrs: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """`Conv`, or `com.microsoft::FusedConv` outside the default domain."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type

    @property
    def name(self) -> str:
        """The node's name, or its first output's where the file leaves nodes unnamed."""
        return self.proto.name or next((o for o in self.outputs if o), self.op_type)

    @property
    def schema(self) -> onnx.defs.OpSchema | None:
        return _schema(self.op_type, self.domain, self.opset)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes as Python values (strings decoded), defaults of the schema included."""
        if self._attrs is None:
            attrs: dict[str, Any] = {}
            if self.schema is not None:
                for name, declared in self.schema.attributes.items():
                    if declared.default_value.type:
                        attrs[name] = _attribute(declared.default_value)
            attrs.update((a.name, _attribute(a)) for a in self.proto.attribute)
            self._attrs = attrs
        return self._attrs

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs plus what subgraphs capture from the outer scope; empty optional inputs left out."""
        captured = [name for a in self.proto.attribute for g in subgraphs(a) for name in _captured(g)]
        return tuple(i for i in (*self.inputs, *captured) if i)

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}"


def _attribute(attribute: AttributeProto) -> Any:
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type == AttributeProto.STRINGS:
        return [v.decode() for v in value]
    return value


def subgraphs(attribute: AttributeProto) -> Iterator[GraphProto]:
    """The graphs that an attribute holds: branches and bodies."""
    if attribute.type == AttributeProto.GRAPH:
        yield attribute.g
    yield from attribute.graphs


def branches(node: NodeProto) -> bool:
    """Whether a node holds graphs of its own."""
    return any(True for a in node.attribute for _ in subgraphs(a))


def _captured(graph: GraphProto) -> Iterator[str]:
    local = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    for node in graph.node:
        inner = (name for a in node.attribute for g in subgraphs(a) for name in _captured(g))
        yield from (name for name in (*node.input, *inner) if name and name not in local)
        local.update(node.output)
    yield from (o.name for o in graph.output if o.name not in local)


class Graph:
    """The index. `shapes` binds the dimensions of graph inputs (ints or symbols) before shapes are inferred.

    `model` holds the weights as stubs (name, type and shape only), so that rewriting costs nothing per weight;
    `initializers` holds the tensors themselves and `complete` puts them back. `folder` is where the model's external
    data lie; `notes` says what loading changed, for provenance.
    """

    def __init__(
        self,
        model: ModelProto,
        *,
        weights: Mapping[str, TensorProto] | None = None,
        shapes: Mapping[str, Sequence[Dim]] | None = None,
        folder: Path | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        if weights is None:
            model, weights = split_weights(model)
        self.model = model
        self.weights = weights
        self.folder = folder
        self.notes = notes
        self.shapes = dict(shapes or {})
        self.opset: int = opset_of(model)
        domains = {o.domain: o.version for o in model.opset_import}
        self.nodes = tuple(Node(n, self.opset if n.domain in ("", "ai.onnx") else domains.get(n.domain, 1))
                           for n in model.graph.node)  # fmt: skip
        self.initializers: dict[str, TensorProto] = {t.name: weights.get(t.name, t) for t in model.graph.initializer}
        self.inputs: tuple[str, ...] = tuple(i.name for i in model.graph.input if i.name not in self.initializers)
        self.outputs: tuple[str, ...] = tuple(o.name for o in model.graph.output)
        self._producers = {o: n for n in self.nodes for o in n.outputs if o}
        self._constants: dict[str, npt.NDArray[Any] | None] = {}

    @cached_property
    def _consumers(self) -> dict[str, tuple[Node, ...]]:
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.reads):
                readers.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in readers.items()}

    def complete(self, model: ModelProto) -> ModelProto:
        """`model`, a descendant of this graph's, with the weights back in their places."""
        whole = ModelProto()
        whole.CopyFrom(model)
        for tensor in whole.graph.initializer:
            if tensor.name in self.weights:
                tensor.CopyFrom(self.weights[tensor.name])
        return whole

    @cached_property
    def types(self) -> dict[str, ValueType]:
        return infer_types(self.model, self.shapes)

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`; None for graph inputs and initializers."""
        return self._producers.get(value)

    def consumers(self, value: str) -> tuple[Node, ...]:
        """The nodes that read `value`, in topological order, subgraph captures included."""
        return self._consumers.get(value, ())

    def __contains__(self, value: str) -> bool:
        return value in self._producers or value in self.initializers or value in self.inputs

    def dtype(self, value: str) -> int:
        """`TensorProto.DataType` of a value; UNDEFINED where inference does not know it."""
        found = self.types.get(value)
        return found.dtype if found else TensorProto.UNDEFINED

    def shape(self, value: str) -> Shape | None:
        found = self.types.get(value)
        return found.shape if found else None

    def constant_rank(self, value: str) -> int | None:
        """Rank of a value that is a weight, or computed from weights alone by a cast or dequantisation; else None."""
        if value in self.initializers:
            return len(self.initializers[value].dims)
        node = self.producer(value)
        if node is not None and node.op_type in ("DequantizeLinear", "Cast", "Transpose", "Identity"):
            return self.constant_rank(node.inputs[0])
        return None

    def constant(self, value: str) -> npt.NDArray[Any] | None:
        """The array behind a value that does not depend on any input; None when it does (or is a subgraph's)."""
        if value not in self._constants:
            self._constants[value] = self._fold(value)
        return self._constants[value]

    def _fold(self, value: str) -> npt.NDArray[Any] | None:
        if value in self.initializers:
            return numpy_helper.to_array(self.initializers[value], str(self.folder or ""))
        needed: list[Node] = []
        sizes: list[TensorProto] = []
        pending, seen = [value], {value}
        while pending:
            name = pending.pop()
            if name in self.initializers:
                continue
            node = self.producer(name)
            if node is None or node.domain or node.op_type.startswith("Random") or len(needed) > 64:
                return None
            dims = self._sizes(node)
            if dims is not None:
                sizes.append(numpy_helper.from_array(dims, name))
                continue
            if node not in needed:
                needed.append(node)
            fresh = [r for r in node.reads if r not in seen]
            seen.update(fresh)
            pending.extend(fresh)
        used = [self.initializers[name] for name in sorted(seen & self.initializers.keys())]
        if not all(map(is_small, used)):
            return None
        from onnx.reference import ReferenceEvaluator

        order = {id(n): i for i, n in enumerate(self.nodes)}
        nodes = [n.proto for n in sorted(needed, key=lambda n: order[id(n)])]
        graph = helper.make_graph(nodes, "constant", [], [ValueInfoProto(name=value)], used + sizes)
        # onnx.reference knows DequantizeLinear from 19 on; nothing else changed its meaning there
        opset = helper.make_opsetid("", 19 if self.opset == 18 else self.opset)
        shapes = (self.shape(o) or () for n in needed for o in n.outputs)
        if any(math.prod(d for d in shape if isinstance(d, int)) > LARGE for shape in shapes):
            return None
        try:
            folded: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset])).run(None, {})
        except Exception as error:  # operators of the reference raise anything
            raise _fails(value, error) from error
        return np.asarray(folded[0])

    def _sizes(self, node: Node) -> npt.NDArray[np.int64] | None:
        """What a Shape node, or a Gather or Slice of one, returns, where inference knows these sizes."""
        maker = self.producer(node.inputs[0]) if node.op_type in ("Gather", "Slice") else node
        shape = self.shape(maker.inputs[0]) if maker is not None and maker.op_type == "Shape" else None
        if maker is None or shape is None:
            return None
        found = np.asarray(shape[slice(maker.attrs.get("start"), maker.attrs.get("end"))], object)
        if maker is not node:
            picks = [array for i in node.inputs[1:] if (array := self.constant(i)) is not None]
            if not picks or len(picks) < len(node.inputs) - 1:
                return None
            numbers = [int(p.ravel()[0]) for p in picks]
            step = numbers[3] if len(numbers) > 3 else 1
            chosen = picks[0] if node.op_type == "Gather" else slice(numbers[0], numbers[1], step)
            found = np.asarray(found[chosen], object)
        return found.astype(np.int64) if all(isinstance(d, int) for d in found.ravel()) else None


def is_small(tensor: TensorProto) -> bool:
    """Whether a constant is small enough to take part in shape inference and constant folding."""
    return math.prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL


def stub(tensor: TensorProto) -> TensorProto:
    """The weight's name, type and shape without its data, marked so that nothing looks for the data."""
    return TensorProto(
        name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL
    )


def split_weights(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """The model with its weights as stubs, and the weights."""
    weights = {t.name: t for t in model.graph.initializer if not is_small(t)}
    lean = ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            for part, content in value.ListFields():
                if part.name == "initializer":
                    stubs = map(stub, weights.values())
                    lean.graph.initializer.extend(t for t in content if t.name not in weights)
                    lean.graph.initializer.extend(stubs)
                else:
                    _assign(lean.graph, part, content)
        else:
            _assign(lean, field, value)
    return lean, weights


def _assign(message: Message, field: FieldDescriptor, value: Any) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(message, field.name, value)
    elif hasattr(value, "extend"):
        getattr(message, field.name).extend(value)
    else:
        getattr(message, field.name).CopyFrom(value)


def opset_of(model: ModelProto) -> int:
    """Version of the default operator set that the model imports."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


# Two batch sizes that shapes are probed with; what differs between them depends on the batch.
_PROBES = (5, 7)


def infer_types(model: ModelProto, shapes: Mapping[str, Sequence[Dim]]) -> dict[str, ValueType]:
    """Types of all values by shape inference, input shapes bound to `shapes`; weights may be stubs.

    Where inference loses a shape in arithmetic on shapes, the graph is walked with two fixed batches, shape arithmetic
    evaluated on the way: equal dimensions are fixed, the others depend on the batch and get a symbol of their own.

    Declared output and intermediate shapes are not trusted (exporters leave stale ones); those of other domains'
    nodes, which inference cannot reproduce, are.
    """
    types = _inferred(model, shapes)
    symbols = {d for shape in shapes.values() for d in shape if isinstance(d, str)}
    unknown = [o for n in model.graph.node for o in n.output if o and not _told(types.get(o), symbols)]
    if unknown:
        first, second = (
            walked_types(model, {k: [n if isinstance(d, str) else d for d in v] for k, v in shapes.items()})
            for n in (_PROBES if symbols else (1, 1))
        )
        for value in unknown:
            if value in first and value in second:
                types[value] = _merged(first[value], second[value])
    return types


def _told(known: ValueType | None, symbols: set[str]) -> bool:
    """Whether every dimension is a number or one of the input's symbols, not one that inference made up."""
    if known is None or known.shape is None:
        return False
    return all(isinstance(d, int) or d in symbols for d in known.shape)


def _merged(first: ValueType, second: ValueType) -> ValueType:
    if first.shape is None or second.shape is None or len(first.shape) != len(second.shape):
        return ValueType(first.dtype, None)
    pairs = zip(first.shape, second.shape, strict=True)
    return ValueType(first.dtype, tuple(a if a == b else "N" if (a, b) == _PROBES else f"N:{a}:{b}" for a, b in pairs))


def _inferred(model: ModelProto, shapes: Mapping[str, Sequence[Dim]]) -> dict[str, ValueType]:
    lean = ModelProto()
    lean.ir_version = model.ir_version
    lean.opset_import.extend(model.opset_import)
    lean.graph.name = model.graph.name
    lean.graph.node.extend(made for node in model.graph.node for made in stand_ins(node))
    lean.graph.initializer.extend(model.graph.initializer)
    for value in model.graph.input:
        bound = shapes.get(value.name)
        if bound is None:
            lean.graph.input.append(value)
        else:
            lean.graph.input.append(
                helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, list(bound))
            )
    for value in model.graph.output:
        bare = lean.graph.output.add(name=value.name)
        if value.type.HasField("tensor_type"):
            bare.type.tensor_type.elem_type = value.type.tensor_type.elem_type
    foreign = {o for n in model.graph.node if n.domain not in ("", "ai.onnx") for o in n.output}
    lean.graph.value_info.extend(v for v in model.graph.value_info if v.name in foreign)
    try:
        inferred = onnx.shape_inference.infer_shapes(lean, data_prop=True).graph
    except Exception as error:  # InferenceError, and what its bindings make of types that are none
        raise ModelError(f"the shapes of the model contradict one another: {first_line(error)}", _RUNS) from error
    types = {v.name: value_type(v) for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    types.update((t.name, ValueType(t.data_type, tuple(t.dims))) for t in inferred.initializer)
    return types


def walked_types(model: ModelProto, shapes: Mapping[str, Sequence[Dim]]) -> dict[str, ValueType]:
    """Types of all values, node by node; what depends on small constants and known shapes alone is evaluated."""
    opsets = list(model.opset_import)
    data = {t.name: t for t in model.graph.initializer if is_small(t)}
    types: dict[str, TypeProto] = {
        t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for t in model.graph.initializer
    }
    for value in model.graph.input:
        elem = value.type.tensor_type.elem_type
        bound = shapes.get(value.name)
        types[value.name] = value.type if bound is None else helper.make_tensor_type_proto(elem, list(bound))
    for node in (made for source in model.graph.node for made in stand_ins(source)):
        schema = Node(node, opset_of(model)).schema
        if schema is None:
            continue
        outer = any(True for a in node.attribute for _ in subgraphs(a))
        near = types if outer else {i: types[i] for i in node.input if i in types}
        if any(i and i not in types for i in node.input):
            continue
        known = {i: data[i] for i in node.input if i in data}
        try:
            inferred = _outputs(schema, node, near, known, opsets)
        except onnx.checker.ValidationError:  # an operator stands in for a quantised one, and takes floats only
            floats = {k: _retyped(t, TensorProto.FLOAT) for k, t in near.items()}
            try:
                inferred = _outputs(schema, node, floats, known, opsets)
            except onnx.checker.ValidationError as error:
                raise ModelError(
                    f"node `{Node(node, 0).name}` takes other types: {first_line(error)}", _RUNS
                ) from error
            dtype = types[node.input[0]].tensor_type.elem_type
            inferred = {o: _retyped(t, dtype) for o, t in inferred.items()}
        types.update(inferred)
        for name, array in _evaluated(node, types, data).items():
            data[name] = numpy_helper.from_array(array, name)
            types[name] = helper.make_tensor_type_proto(data[name].data_type, list(array.shape))
    return {name: value_type(ValueInfoProto(name=name, type=kind)) for name, kind in types.items()}


def _outputs(
    schema: onnx.defs.OpSchema,
    node: NodeProto,
    types: dict[str, TypeProto],
    data: dict[str, TensorProto],
    opsets: list[onnx.OperatorSetIdProto],
) -> dict[str, TypeProto]:
    try:
        return onnx.shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=opsets)
    except onnx.shape_inference.InferenceError:
        return {}


def _retyped(kind: TypeProto, dtype: int) -> TypeProto:
    made = TypeProto()
    made.CopyFrom(kind)
    made.tensor_type.elem_type = dtype
    return made


def _evaluated(
    node: NodeProto, types: Mapping[str, TypeProto], data: Mapping[str, TensorProto]
) -> dict[str, npt.NDArray[Any]]:
    """The outputs of a node that computes with shapes and small constants; empty for any other."""
    if node.op_type == "Shape":
        bounds = {a.name: a.i for a in node.attribute}
        shape = value_type(ValueInfoProto(name="", type=types[node.input[0]])).shape or (None,)
        dims = shape[slice(bounds.get("start"), bounds.get("end"))]
        return {node.output[0]: np.asarray(dims, np.int64)} if all(isinstance(d, int) for d in dims) else {}
    if not all(i in data for i in node.input if i) or node.op_type.startswith("Random") or node.domain:
        return {}
    if any(True for a in node.attribute for _ in subgraphs(a)):
        return {}
    shapes = (value_type(ValueInfoProto(name=o, type=types[o])).shape or () for o in node.output if o in types)
    if any(math.prod(d for d in shape if isinstance(d, int)) > SMALL for shape in shapes):
        return {}
    canonical = NodeProto(op_type=node.op_type, attribute=node.attribute)
    canonical.input.extend(f"i{k}" if name else "" for k, name in enumerate(node.input))
    canonical.output.extend(f"o{k}" for k in range(len(node.output)))
    feeds = {f"i{k}": numpy_helper.to_array(data[name]) for k, name in enumerate(node.input) if name}
    try:
        values = _evaluator(canonical.SerializeToString(deterministic=True)).run(None, feeds)
    except Exception as error:  # operators of the reference raise anything
        raise _fails(node.output[0], error) from error
    return {name: np.asarray(value) for name, value in zip(node.output, values, strict=True) if name}


def _fails(value: str, error: Exception) -> ModelError:
    return ModelError(f"constant `{value}` cannot be computed: {first_line(error)}", _RUNS)


@lru_cache(1024)
def _evaluator(serialized: bytes) -> "ReferenceEvaluator":
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(NodeProto.FromString(serialized))


def value_type(value: ValueInfoProto) -> ValueType:
    """Element type and shape that a `ValueInfoProto` declares."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return ValueType(tensor.elem_type, None)
    dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return ValueType(tensor.elem_type, tuple(dims))
