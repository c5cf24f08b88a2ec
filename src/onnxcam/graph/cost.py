"""What a graph computes, counted from its shapes."""

import math
from collections.abc import Sequence

from onnxcam.graph.index import Graph, Node

_KERNEL = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = frozenset(["MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "FusedGemm", "QGemm"])
_FREE = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Constant", "Dropout"])


def multiply_adds(graph: Graph, nodes: Sequence[Node] | None = None) -> int:
    """Multiply-adds of `nodes` (default: all) for the sizes that the graph is bound to; an open dimension counts 1.

    A convolution: elements made x channels of a group x kernel; of a ConvTranspose, elements read x channels made by a
    group x kernel. A matrix product: elements made x length of the sum. Everything else: one for each element made, or
    read where that is more by a reduction or pooling. Nothing for what only reshapes, and for what depends on weights
    alone, which runtimes compute when they load the file.
    """
    made_once = set(graph.initializers)
    for node in graph.nodes:
        if all(v in made_once for v in node.inputs if v) and not node.op_type.startswith("Random"):
            made_once.update(node.outputs)
    return sum(_of(graph, n) for n in (graph.nodes if nodes is None else nodes) if n.outputs[0] not in made_once)


def _of(graph: Graph, node: Node) -> int:
    def sizes(value: str) -> list[int]:
        return [d if isinstance(d, int) else 1 for d in graph.shape(value) or ()]

    made = sum(math.prod(sizes(value)) for value in node.outputs if value)
    if node.op_type in _FREE:
        return 0
    if node.op_type in _KERNEL:
        return made * math.prod(sizes(node.inputs[_KERNEL[node.op_type]])[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(sizes(node.inputs[0])) * math.prod(sizes(node.inputs[1])[1:])
    if node.op_type in _PRODUCTS:
        rows = sizes(node.inputs[0]) or [1]
        return made * rows[0 if node.attrs.get("transA") and len(rows) == 2 else -1]
    if node.op_type.startswith(("Reduce", "Arg", "TopK")) or "Pool" in node.op_type:
        return max(made, math.prod(sizes(node.inputs[0])))
    return made
