"""Emits nodes: `op.Add(a, b)` appends one and returns the name of its output.

Scalars, lists and arrays become initializers, cached by value; a node emitted twice is emitted once. Names are
`onnxcam/<scope>/<Op>_<n>` under a prefix that no name in the model has, so they cannot collide with the model's.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxcam.graph.index import Dim, Graph

Operand = str | float | int | bool | Sequence[float] | Sequence[int] | npt.NDArray[Any] | None

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF)


class Builder:
    """Appends nodes to `graph`. `dtype` is the float type of every cotangent and scalar: float32, or float64.

    blocks: whether to prefer forms that can be computed in blocks of channels (see `onnxcam.graph.blocks`).
    """

    def __init__(self, graph: Graph, dtype: int = TensorProto.FLOAT, *, blocks: bool = False) -> None:
        self.graph = graph
        self.dtype = dtype
        self.blocks = blocks
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._emitted: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._count = 0
        # What later nodes can be spared: values spread over axes, one-hot rows (N, C) with their index (N,), and what
        # came back through a pooling by maxima: of what, the maxima, their cotangent, and how it comes back.
        self.spread: dict[str, tuple[str, frozenset[int]]] = {}
        self.one_hots: dict[str, str] = {}
        self.pooled: dict[str, tuple[str, str, str, Callable[[str], str]]] = {}
        taken = {o for n in graph.nodes for o in (n.name, *n.outputs)} | graph.initializers.keys() | {*graph.inputs}
        tries = (f"onnxcam{i or ''}" for i in range(len(taken) + 1))
        self.prefix = next(p for p in tries if not any(name.startswith(p + "/") for name in taken))
        self._scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes emitted inside are named after `name` (the node they are the derivative of, say)."""
        outer, self._scope = self._scope, name.strip("/")
        try:
            yield
        finally:
            self._scope = outer

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def emit(*operands: Operand, outputs: int = 1, **attrs: Any) -> Any:
            names = self.emit(op_type, operands, outputs, attrs)
            return names[0] if outputs == 1 else names

        return emit

    def emit(self, op_type: str, operands: Iterable[Operand], outputs: int, attrs: dict[str, Any]) -> tuple[str, ...]:
        """Append one node of the default domain; the names of its outputs."""
        inputs = [self.value(operand) for operand in operands]
        while inputs and not inputs[-1]:
            inputs.pop()
        attrs = {k: v for k, v in attrs.items() if v is not None}
        key = (op_type, *inputs, outputs, repr(sorted(attrs.items())))
        if key not in self._emitted:
            names = tuple(self.fresh(op_type) for _ in range(outputs))
            self.nodes.append(helper.make_node(op_type, inputs, names, name=names[0], **attrs))
            self._emitted[key] = names
        return self._emitted[key]

    def fresh(self, stem: str) -> str:
        """A new value name in the current scope."""
        self._count += 1
        return "/".join(part for part in (self.prefix, self._scope, f"{stem}_{self._count}") if part)

    def value(self, operand: Operand) -> str:
        """The name of an operand: names pass through, None is an omitted input, the rest become initializers."""
        if operand is None:
            return ""
        if isinstance(operand, str):
            return operand
        if isinstance(operand, np.ndarray | np.generic):
            return self.constant(np.asarray(operand))
        flat = operand if isinstance(operand, Sequence) else [operand]
        if all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in flat):
            return self.constant(np.asarray(operand, np.int64))
        if isinstance(operand, bool):
            return self.constant(np.asarray(operand))
        return self.constant(np.asarray(operand, helper.tensor_dtype_to_np_dtype(self.dtype)))

    def constant(self, array: npt.NDArray[Any]) -> str:
        """An initializer holding `array`, one per distinct value; float arrays keep their own type."""
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}/constant_{len(self._constants)}"
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            self._constants[key] = name
        return self._constants[key]

    def floats(self, array: npt.ArrayLike) -> str:
        """An initializer in the builder's float type."""
        return self.constant(np.asarray(array).astype(helper.tensor_dtype_to_np_dtype(self.dtype)))

    def as_float(self, value: str) -> str:
        """`value` in the builder's float type: other floats are cast, everything else passes through."""
        dtype = self.graph.dtype(value)
        if dtype == self.dtype or dtype not in _FLOATS:
            return value
        return str(self.Cast(value, to=self.dtype))

    def mean(self, value: str, axes: Sequence[int]) -> str:
        """The mean over axes, kept as 1; of a value that was just spread over them, the value before."""
        before, spread = self.spread.get(value, ("", frozenset()))
        return before if spread >= {*axes} else str(self.ReduceMean(value, list(axes), keepdims=1))

    def zeros_like(self, value: str) -> str:
        """Zeros of the builder's float type in the run-time shape of `value`."""
        return str(self.ConstantOfShape(self.Shape(value), value=self.scalar(0.0)))

    def scalar(self, number: float) -> TensorProto:
        """A one-element tensor for attributes such as ConstantOfShape's."""
        return helper.make_tensor("value", self.dtype, [1], [number])

    def model(
        self,
        outputs: Iterable[ValueInfoProto] = (),
        inputs: Iterable[ValueInfoProto] = (),
        base: Graph | None = None,
    ) -> ModelProto:
        """The whole model with these inputs and outputs and the emitted nodes that they need added.

        The model's own inputs, outputs and nodes stay as they are; what was emitted and is not needed is left out.
        base: the model whose own these are, default the builder's.
        """
        added = list(outputs)
        model = self._lean({o.name for o in added}, inputs, base)
        declared = {o.name for o in model.graph.output}
        model.graph.output.extend(o for o in added if o.name not in declared)
        return self.graph.complete(model)

    def extended(
        self,
        keep: Iterable[str],
        inputs: Iterable[ValueInfoProto] = (),
        shapes: Mapping[str, Sequence[Dim]] | None = None,
    ) -> Graph:
        """A graph that holds the emitted nodes that `keep` needs, so that emitted values have types and readers.

        shapes: of the new inputs, as far as shape inference is concerned.
        """
        g, model = self.graph, self._lean(set(keep), inputs)
        bound = {**g.shapes, **(shapes or {})}
        return Graph(model, weights=g.weights, shapes=bound, folder=g.folder, notes=g.notes)

    def _lean(self, live: set[str], inputs: Iterable[ValueInfoProto], base: Graph | None = None) -> ModelProto:
        whole, own = self.graph.model.graph, (base or self.graph).model.graph
        kept: list[NodeProto] = []
        for node in reversed([*whole.node[len(own.node) :], *self.nodes]):
            if live & set(node.output):
                kept.append(node)
                live.update(node.input)
        constants = [*whole.initializer[len(own.initializer) :], *self.initializers.values()]
        model = ModelProto()
        model.CopyFrom(self.graph.model)
        del model.graph.node[len(own.node) :], model.graph.initializer[len(own.initializer) :]
        model.graph.node.extend(reversed(kept))
        model.graph.initializer.extend(t for t in constants if t.name in live)
        model.graph.input.extend(inputs)
        return model


def tensor_info(name: str, dtype: int, shape: Sequence[int | str | None] | None) -> ValueInfoProto:
    """A `ValueInfoProto`; `shape` None leaves even the rank open."""
    return onnx.helper.make_tensor_value_info(name, dtype, shape)
