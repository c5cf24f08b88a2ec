"""The table of methods. A method is a function of the graph that returns the name of its alpha.

The saliency map is max(0, sum_k alpha_k A_k): alpha (N, K, 1, 1) weighs channels, (N, K, h, w) weighs every cell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from onnxcam.autodiff import differentiate
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.layers import Layer
from onnxcam.targets import Target


@dataclass(frozen=True)
class MethodContext:
    """What a method sees: the builder, the graph that holds the target's nodes, the layer, the head, the target."""

    op: Builder
    graph: Graph
    layer: Layer
    head: Head
    target: Target

    @cached_property
    def activations(self) -> str:
        """A (N, K, h, w), in the builder's float type."""
        return self.op.as_float(self.layer.name)

    @cached_property
    def gradients(self) -> str:
        """G = d(score) / dA (N, K, h, w).

        Raises: UnsupportedError where the score does not depend on the layer by a differentiable path.
        """
        gradient = differentiate(self.graph, self.op, self.target.score, [self.layer.name])[self.layer.name]
        if gradient is None:
            raise UnsupportedError(
                f"the score does not depend on layer `{self.layer.name}` by any differentiable path",
                "`onnxcam layers MODEL` lists the layers that reach the score",
            )
        return gradient


@dataclass(frozen=True)
class Method:
    """One row of the table; `requires` raises UnsupportedError where the head does not have the form it needs."""

    name: str
    alpha: Callable[[MethodContext], str]
    formula: str
    paper: str
    gradients: bool
    class_discriminative: bool
    requires: Callable[[Graph, Head, Layer], object] | None


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    formula: str,
    paper: str,
    gradients: bool = True,
    class_discriminative: bool = True,
    requires: Callable[[Graph, Head, Layer], object] | None = None,
) -> Callable[[Callable[[MethodContext], str]], Callable[[MethodContext], str]]:
    """Register a method: the decorated function emits nodes and returns the name of alpha."""

    def register(alpha: Callable[[MethodContext], str]) -> Callable[[MethodContext], str]:
        METHODS[name] = Method(name, alpha, formula, paper, gradients, class_discriminative, requires)
        return alpha

    return register


def explained_by(row: Method, graph: Graph, head: Head, layer: Layer) -> bool:
    """Whether the head has the form that a method needs at a layer."""
    try:
        if row.requires is not None:
            row.requires(graph, head, layer)
    except UnsupportedError:
        return False
    return True


def find_method(name: str) -> Method:
    """The method of that name. Raises: UsageError (exit code 2) with the nearest names."""
    if name in METHODS:
        return METHODS[name]
    close = get_close_matches(name.lower(), METHODS, 1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    raise UsageError(f"there is no method `{name}`", f"{hint}methods: {', '.join(METHODS)}")
