"""Rules made of other rules.

`composed`: an operator is spelt out in standard operators and the engine differentiates that. For operators that have
no function body in ONNX's schemas but a short definition. The definition is computed again beside the node, so this is
for operators whose forward pass is cheap, or is needed anyway.

`alias`: a node seen as another operator, whose rule is then applied. Nothing is computed again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import helper

from onnxcam.autodiff.engine import Primal, pull_back
from onnxcam.autodiff.registry import ALL, RULES, Cotangents, vjp
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph, Node

# Emits the operator's definition and returns its output, or its outputs.
Forward = Callable[[Builder, Primal], str | tuple[str, ...]]


def composed(
    *kinds: str, wrt: tuple[int, ...] | None = None, outputs: tuple[int, ...] | None = (0,)
) -> Callable[[Forward], Forward]:
    """Register the vjp of operators whose forward pass the decorated function emits; arguments as in `vjp`."""

    def register(forward: Forward) -> Forward:
        @vjp(*kinds, wrt=wrt, outputs=outputs)
        def rule(op: Builder, node: Primal, *dys: str | None) -> Cotangents:
            body, results = forward_graph(op, node, forward)
            return pull_back(op, node, body, node.inputs, results, dys)

        rule.__doc__, rule.__module__ = forward.__doc__, forward.__module__
        return forward

    return register


def forward_graph(op: Builder, node: Primal, forward: Forward) -> tuple[Graph, tuple[str, ...]]:
    """The graph that `forward` emits for a node, over the node's inputs, and the names of its results."""
    typed, constants = {}, []
    for i, name in enumerate(node.inputs):
        if not name or name in typed:
            continue
        cast = name != node.node.inputs[i]
        typed[name] = tensor_info(name, op.dtype if cast else node.dtype(i), node.shape(i))
        array = None if cast else node.constant(i)
        if array is not None and array.size <= 64:
            constants.append(onnx.numpy_helper.from_array(array, name))
    graph = op.graph
    shell = helper.make_graph([], "body", list(typed.values()), [], constants)
    opsets = [helper.make_opsetid("", graph.opset)]
    inner = Builder(Graph(helper.make_model(shell, opset_imports=opsets, ir_version=graph.model.ir_version)), op.dtype)
    inner.prefix = op.fresh("forward")
    results = forward(inner, node)
    results = (results,) if isinstance(results, str) else results
    return inner.extended([r for r in results if r]), results


def alias(op: Builder, node: Primal, kind: str, inputs: Sequence[str], **attrs: Any) -> Primal:
    """The node as a node of another kind with these inputs and attributes and the same outputs."""
    proto = helper.make_node(kind, inputs, node.node.outputs, name=node.node.name, **attrs)
    return Primal(op, node.graph, Node(proto, node.graph.opset), node.live_values)


def apply_rule(op: Builder, node: Primal, *dys: str | None) -> Cotangents:
    """The cotangents by the rule of the node's kind, summed to the shapes of its inputs."""
    rule = RULES[node.node.kind]
    dxs = rule(op, node, *dys)
    summed = [
        node.sum_to(dx, node.output_shape(), i) if dx and node.live(i) and {i, ALL} & {*rule.broadcast} else dx
        for i, dx in enumerate(dxs)
    ]
    return tuple(summed)
