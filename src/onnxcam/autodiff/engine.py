"""Reverse-mode differentiation of an ONNX graph, written in ONNX operators.

The engine finds the live path, asks the registry for each node's rule, un-broadcasts, sums fan-in and checks arity;
rules only know their own operator. What is emitted and turns out not to be needed is pruned when the model is built.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import TensorProto, helper

from onnxcam.autodiff.decisions import REFUSED
from onnxcam.autodiff.registry import ALL, INDEPENDENT, NON_DIFFERENTIABLE, RULES, Cotangents, Rule
from onnxcam.errors import UnsupportedError, UnsupportedOperatorError
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph, Node, Shape

INTEGERS = frozenset(
    {TensorProto.INT4, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
    | {TensorProto.UINT4, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
    | {TensorProto.STRING}
)


class Primal:
    """What a rule sees of the node it differentiates. Values named here are cast to the builder's float type."""

    def __init__(self, op: Builder, graph: Graph, node: Node, live: frozenset[str]) -> None:
        self._op = op
        self.graph = graph
        self.live_values = live
        self.node = node
        self.op_type = node.op_type
        self.attrs = node.attrs

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._op.as_float(v) if v else "" for v in self.node.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self._op.as_float(v) if v else "" for v in self.node.outputs)

    def input(self, position: int) -> str:
        """The name of an input, "" where it is omitted."""
        return self.inputs[position] if position < len(self.node.inputs) else ""

    def has(self, position: int) -> bool:
        """Whether an optional input is there."""
        return position < len(self.node.inputs) and self.node.inputs[position] != ""

    def live(self, position: int) -> bool:
        """Whether the input's cotangent is asked for."""
        return self.has(position) and self.node.inputs[position] in self.live_values

    def constant(self, position: int) -> npt.NDArray[Any] | None:
        """The array at an input when it does not depend on the model's inputs."""
        return self.graph.constant(self.node.inputs[position]) if self.has(position) else None

    def shape(self, position: int) -> Shape | None:
        """Shape of an input."""
        return self.graph.shape(self.node.inputs[position])

    def output_shape(self, position: int = 0) -> Shape | None:
        return self.graph.shape(self.node.outputs[position])

    def dtype(self, position: int) -> int:
        """`TensorProto.DataType` of an input, before any cast."""
        return self.graph.dtype(self.node.inputs[position])

    def output_dtype(self, position: int = 0) -> int:
        """`TensorProto.DataType` of an output, before any cast."""
        return self.graph.dtype(self.node.outputs[position])

    def rank(self, position: int = 0) -> int:
        """Rank of an input; raises where shape inference does not know it."""
        shape = self.shape(position)
        if shape is None:
            raise self.unsupported(f"the rank of its input `{self.node.inputs[position]}` is unknown")
        return len(shape)

    def static(self, position: int, axes: Iterable[int]) -> tuple[int, ...]:
        """Sizes of an input along `axes`; raises where one is not known when the model is rewritten."""
        shape = self.shape(position)
        dims = [shape[a] if shape is not None else None for a in axes]
        if not all(isinstance(d, int) for d in dims):
            raise self.unsupported(f"it needs fixed sizes, and its input `{self.node.inputs[position]}` is {shape}")
        return tuple(int(d) for d in dims if isinstance(d, int))

    def static_output(self, axes: Iterable[int]) -> tuple[int, ...]:
        """Sizes of the first output along `axes`; raises where one is not known when the model is rewritten."""
        shape = self.output_shape()
        dims = [shape[a] if shape is not None else None for a in axes]
        if not all(isinstance(d, int) for d in dims):
            raise self.unsupported(f"it needs fixed sizes, and its output is {shape}")
        return tuple(int(d) for d in dims if isinstance(d, int))

    def reshaped(self, dx: str, position: int = 0) -> str:
        """`dx` in the shape of an input; the shape is a constant where at most one dimension is open."""
        return str(self._op.Reshape(dx, self._shape_operand(position)))

    def reshaped_back(self, dy: str) -> str:
        """`dy`, of the output's shape, in the first input's; an open batch that both have stays the same symbol."""
        operand, given, made = self._shape_operand(0), self.shape(0), self.output_shape()
        batch = made[0] if made else None
        if isinstance(operand, list) and isinstance(batch, str) and given and given[0] == batch:
            operand[0] = 0
        return str(self._op.Reshape(dy, operand))

    def expanded(self, dx: str, position: int = 0, axes: Iterable[int] = ()) -> str:
        """`dx` broadcast to the shape of an input; `axes`: where `dx` is known to have size 1."""
        shape = self.shape(position)
        fixed = shape is not None and all(isinstance(d, int) for d in shape)
        whole = self._op.Expand(dx, list(shape) if shape and fixed else self._op.Shape(self.node.inputs[position]))
        self._op.spread[whole] = (dx, frozenset(axes))
        return str(whole)

    def _shape_operand(self, position: int) -> str | list[int]:
        shape = self.shape(position)
        if shape is not None and sum(not isinstance(d, int) for d in shape) <= 1 and 0 not in shape:
            return [d if isinstance(d, int) else -1 for d in shape]
        return str(self._op.Shape(self.node.inputs[position]))

    def sum_to(self, dx: str, shape: Shape | None, position: int) -> str:
        """`dx`, of the given shape, summed over the axes along which an input was broadcast to that shape."""
        op, value = self._op, self.node.inputs[position]
        source = self.shape(position)
        if source is None or shape is None:
            raise self.unsupported(f"the rank of `{value if source is None else self.node.outputs[0]}` is unknown")
        extra = len(shape) - len(source)
        if extra < 0:
            raise self.unsupported(f"`{value}` has more axes than the result, which broadcasting never gives")
        axes = list(range(extra))
        unsure = False
        for axis, (s, t) in enumerate(zip(source, shape[extra:], strict=True), extra):
            if s == 1 and t != 1:
                axes.append(axis)
            elif not (isinstance(s, int) and s > 1) and (s is None or s != t):
                unsure = True
        if unsure:
            have = op.Shape(value)
            if extra:
                have = op.Concat([1] * extra, have, axis=0)
            differ = op.NonZero(op.Not(op.Equal(have, op.Shape(dx))))
            summed = op.ReduceSum(dx, op.Squeeze(differ, [0]), keepdims=1, noop_with_empty_axes=1)
            return str(op.Reshape(summed, op.Shape(value))) if extra else str(summed)
        if not axes:
            return dx
        if extra == len(axes):
            return str(op.ReduceSum(dx, axes, keepdims=0))
        summed = op.ReduceSum(dx, axes, keepdims=1)
        return str(op.Squeeze(summed, list(range(extra)))) if extra else str(summed)

    def unsupported(self, why: str, hint: str = "fix the input's size with `--size`") -> UnsupportedError:
        """The designed error for a form of this operator that has no derivative here."""
        return UnsupportedError(
            f"{self.node.kind} node `{self.node.name}` cannot be differentiated: {why}",
            f"{hint}, or choose a layer after this node (`onnxcam layers`)",
        )


def differentiate(
    graph: Graph,
    op: Builder,
    y: str,
    wrt: Sequence[str],
    cotangent: str | None = None,
    rules: Mapping[str, Callable[[Rule], Rule]] | None = None,
) -> dict[str, str | None]:
    """Append d(sum(y * cotangent)) / d(value) for every value in `wrt`; the names of the gradients.

    y: a value of `graph`, any shape; samples are independent, so for y of shape (N,) the gradient is per sample.
    cotangent: a value shaped like y, default ones. Gradients have the shape of their value and the builder's float
    type; None where y does not depend on the value. `op` may be a builder of `graph` or of an ancestor that holds
    the emitted nodes of `graph`. rules: for single nodes, by the name of their first output, what to make of their
    rule (guided backpropagation changes those of activations).

    At kinks each rule's docstring says which one-sided derivative it takes.

    Raises: UnsupportedOperatorError naming every operator on the path without a rule; UnsupportedError where a form
    of an operator has none.
    """
    live, path = live_path(graph, y, wrt)
    changed = rules or {}
    plain = _resolve(graph, path, y, wrt)
    applied = [changed[n.outputs[0]](r) if n.outputs[0] in changed else r for n, r in zip(path, plain, strict=True)]
    cotangents: dict[str, list[str]] = {}
    if y in live:
        cotangents[y] = [cotangent or op.ConstantOfShape(op.Shape(y), value=op.scalar(1.0))]

    def total(value: str) -> str | None:
        parts = cotangents.get(value, [])
        if len(parts) > 1:
            # What was spread is added as it was before, as long as another part has the whole shape.
            spread = [part for part in parts if part in op.spread]
            bare = [op.spread[part][0] for part in spread[len(spread) == len(parts) :]]
            kept = [part for part in parts if part not in op.spread] or spread[:1]
            # Of two an Add, which ONNX Runtime computes with all of its threads or as part of a convolution.
            summed = op.Add if len(kept) + len(bare) == 2 else op.Sum
            cotangents[value] = parts = [summed(*kept, *bare)]
        return parts[0] if parts else None

    for node, rule in zip(reversed(path), reversed(applied), strict=True):
        with op.scope(f"{node.name}.vjp"):
            positions = range(len(node.outputs)) if rule.outputs is None else rule.outputs
            dys = [total(node.outputs[i]) if i < len(node.outputs) and node.outputs[i] else None for i in positions]
            if all(dy is None for dy in dys):
                continue
            primal = Primal(op, graph, node, live)
            dxs = rule(op, primal, *dys)
            _check_arity(node, rule, dxs)
            for position, dx in enumerate(dxs):
                if dx is not None and primal.live(position):
                    if position in rule.broadcast or ALL in rule.broadcast:
                        dx = primal.sum_to(dx, primal.output_shape(), position)
                    cotangents.setdefault(node.inputs[position], []).append(dx)
    return {value: total(value) for value in wrt}


def live_path(graph: Graph, y: str, wrt: Sequence[str]) -> tuple[frozenset[str], list[Node]]:
    """The values, and the nodes in topological order, that carry an influence of `wrt` on `y`.

    Influence does not pass operators that are non-differentiable on purpose, casts to integers, or an operator's
    index-like inputs.
    """
    needed: set[str] = {y}
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            needed.update(_differentiable_reads(node))
    moved = {value for value in wrt if value in needed}
    path: list[Node] = []
    for node in graph.nodes:
        carried = set(_differentiable_reads(node)) & moved & needed
        outputs = {node.outputs[i] for i in _differentiable_outputs(node)} & needed
        if carried and outputs:
            path.append(node)
            moved.update(outputs)
    return frozenset(moved & needed), path


def _differentiable_reads(node: Node) -> list[str]:
    """The values that a node's outputs depend on differentiably; without a rule, what subgraphs capture too."""
    if not node.domain and node.op_type in NON_DIFFERENTIABLE | INDEPENDENT:
        return []
    if not node.domain and node.op_type == "Cast" and node.attrs["to"] in INTEGERS:
        return []
    rule = RULES.get(node.kind)
    if rule is None or rule.wrt is None:
        return list(node.reads)
    return [node.inputs[i] for i in rule.wrt if i < len(node.inputs) and node.inputs[i]]


def _differentiable_outputs(node: Node) -> Iterable[int]:
    rule = RULES.get(node.kind)
    positions = range(len(node.outputs)) if rule is None or rule.outputs is None else rule.outputs
    return [i for i in positions if i < len(node.outputs) and node.outputs[i]]


def blockers(graph: Graph, y: str) -> dict[str, frozenset[str]]:
    """For every value that influences `y`: the kinds of operators without a rule between it and `y`.

    One pass from `y` upwards; an empty set means that the gradient of `y` at the value can be built.
    """
    found: dict[str, frozenset[str]] = {y: frozenset()}
    for node in reversed(graph.nodes):
        below = [found[node.outputs[i]] for i in _differentiable_outputs(node) if node.outputs[i] in found]
        if below:
            own = () if rule_of(node) else (node.kind,)
            kinds = frozenset(own).union(*below)
            for value in _differentiable_reads(node):
                found[value] = found.get(value, frozenset()) | kinds
    return found


def _resolve(graph: Graph, path: Sequence[Node], y: str, wrt: Sequence[str]) -> list[Rule]:
    rules: list[Rule] = []
    blockers: dict[str, list[Node]] = {}
    for node in path:
        rule = rule_of(node)
        if rule is None:
            blockers.setdefault(node.kind, []).append(node)
        else:
            rules.append(rule)
    if blockers:
        width = max(map(len, blockers))
        lines = [
            f"  {kind:<{width}}  {len(nodes)}x  first node `{nodes[0].name}`"
            + (f": {REFUSED[kind]}" if kind in REFUSED else "")
            for kind, nodes in blockers.items()
        ]
        many = "operators have" if len(blockers) > 1 else "operator has"
        start = ", ".join(f"`{v}`" for v in wrt)
        raise UnsupportedOperatorError(
            f"{len(blockers)} {many} no derivative rule between {start} and `{y}`\n" + "\n".join(lines),
            "choose a layer after them (`onnxcam layers MODEL` marks the reachable ones)",
        )
    return rules


def _check_arity(node: Node, rule: Rule, dxs: Cotangents) -> None:
    allowed = len(node.inputs) if rule.wrt is None else max(rule.wrt) + 1
    if len(dxs) > max(allowed, len(node.inputs)) or not isinstance(dxs, tuple):
        raise AssertionError(f"rule of {node.kind} returned {len(dxs)} cotangents for {len(node.inputs)} inputs")


def rule_of(node: Node) -> Rule | None:
    """The operator's rule, else the differentiation of the function body in its schema; None where it has neither."""
    body = node.kind not in REFUSED and any(
        getattr(node.schema, name, False) for name in ("has_function", "has_context_dependent_function")
    )
    return RULES.get(node.kind) or (EXPANSION if body else None)


def _expanded(op: Builder, node: Primal, *dys: str | None) -> Cotangents:
    """Differentiates an operator through the function body in its schema, re-computed beside the node."""
    return pull_back(op, node, *body_graph(op, node), dys)


def pull_back(
    op: Builder, node: Primal, body: Graph, inputs: Sequence[str], outputs: Sequence[str], dys: Sequence[str | None]
) -> Cotangents:
    """Cotangents of `inputs` through `body`, a graph that computes the node; emits the body and its derivative."""
    local = Builder(body, op.dtype)
    local.prefix = op.fresh("body")
    wrt = [name for i, name in enumerate(inputs) if name and node.live(i)]
    grads: dict[str, str] = {}
    for y, dy in zip(outputs, dys, strict=False):
        if dy is None:
            continue
        for value, grad in differentiate(body, local, y, wrt, cotangent=dy).items():
            if grad is not None:
                grads[value] = local.Add(grads[value], grad) if value in grads else grad
    op.initializers.update({t.name: t for t in body.initializers.values()} | local.initializers)
    op.nodes.extend(n.proto for n in body.nodes)
    op.nodes.extend(local.nodes)
    return tuple(grads.get(name) if node.live(i) else None for i, name in enumerate(inputs))


EXPANSION = Rule(_expanded, None, (), None)


def body_graph(op: Builder, node: Primal) -> tuple[Graph, tuple[str, ...], tuple[str, ...]]:
    """The function body of a node as a graph of its own with names that are new in the model."""
    source, graph = node.node, node.graph
    proto = onnx.NodeProto()
    proto.CopyFrom(source.proto)
    present = {a.name for a in proto.attribute}
    schema = source.schema
    assert schema is not None
    for name, declared in schema.attributes.items():
        if name not in present and declared.default_value.type:
            proto.attribute.add().CopyFrom(declared.default_value)
    inputs = node.inputs
    outputs = tuple(op.fresh(source.op_type) if o else "" for o in source.outputs)
    del proto.input[:], proto.output[:]
    proto.input.extend(inputs)
    proto.output.extend(outputs)
    typed = {}
    for i, name in enumerate(inputs):
        if name and name not in typed:
            dtype = node.dtype(i)
            typed[name] = tensor_info(name, dtype if name == source.inputs[i] else op.dtype, node.shape(i))
    constants = [
        onnx.numpy_helper.from_array(array, name)
        for i, name in enumerate(inputs)
        if name and (array := node.constant(i)) is not None and array.size <= 64 and name == source.inputs[i]
    ]
    types = [typed[name].type if name else onnx.TypeProto() for name in inputs]
    function = _function(schema, graph.opset, proto, types)
    proto.domain = function.domain = "body"
    function.name = proto.op_type
    function.ClearField("opset_import")
    function.opset_import.append(helper.make_opsetid("", graph.opset))
    shell = helper.make_graph(
        [proto], "body", list(typed.values()), [onnx.ValueInfoProto(name=o) for o in outputs if o], constants
    )
    opsets = [helper.make_opsetid("", graph.opset), helper.make_opsetid("body", 1)]
    model = helper.make_model(shell, opset_imports=opsets, functions=[function], ir_version=graph.model.ir_version)
    model = onnx.inliner.inline_local_functions(model)
    _rename(model, op.fresh("body"), keep={*typed, *outputs})
    return Graph(model), inputs, outputs


def _function(schema: Any, opset: int, proto: onnx.NodeProto, types: Sequence[onnx.TypeProto]) -> onnx.FunctionProto:
    """The newest body that the schema has for this opset, specialised to the node where the schema builds it."""
    function = onnx.FunctionProto()
    if schema.has_function:
        version = max(v for v in schema.function_opset_versions if v <= opset)
        function.ParseFromString(schema.get_function_with_opset_version(version))
        return function
    version = max(v for v in schema.context_dependent_function_opset_versions if v <= opset)
    serialized = proto.SerializeToString(), [t.SerializeToString() for t in types]
    function.ParseFromString(schema.get_context_dependent_function_with_opset_version(version, *serialized))
    return function


def _rename(model: onnx.ModelProto, prefix: str, keep: set[str]) -> None:
    """Give every value that the inliner made a name that is new in the whole model."""
    renamed: Callable[[str], str] = lambda name: name if not name or name in keep else f"{prefix}/{name}"  # noqa: E731
    for node in model.graph.node:
        node.name = f"{prefix}/{node.name or node.output[0]}"
        for names in (node.input, node.output):
            fresh = [renamed(n) for n in names]
            del names[:]
            names.extend(fresh)
    constants = [n for n in model.graph.node if n.op_type == "Constant"]
    for node in constants:
        tensor = Node(node, 18).attrs
        array = next(iter(tensor.values()))
        array = onnx.numpy_helper.to_array(array) if isinstance(array, TensorProto) else np.asarray(array)
        if (array.dtype == np.float64 and "value_float" in tensor) or "value_floats" in tensor:
            array = array.astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
