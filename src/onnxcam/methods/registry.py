"""The table of methods. A method is a function of the graph that returns the name of its alpha.

The saliency map is max(0, combine(alpha * A)): alpha (N, K, 1, 1) weighs channels, (N, K, h, w) weighs every cell;
`combine` is the sum over k, or a projection that is computed on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from onnx import ValueInfoProto

from onnxcam.autodiff import differentiate
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.layers import Layer
from onnxcam.methods.loop import LoopFunction
from onnxcam.targets import Target


class MethodContext:
    """What a method sees: the builder, the graph, the layer, the head and the target; A and G on demand.

    `settle` makes what was emitted part of `graph`, so that it can be differentiated in turn.
    """

    def __init__(self, op: Builder, layer: Layer, head: Head, target: Target) -> None:
        self.op = op
        self.layer = layer
        self.head = head
        self.target = target
        self._gradients: dict[str, str] = {}

    @property
    def graph(self) -> Graph:
        return self.op.graph

    def settle(self, *keep: str, inputs: tuple[ValueInfoProto, ...] = ()) -> None:
        """Extend the graph by the emitted nodes that `keep` needs, and go on with a new builder on it."""
        self.op = Builder(self.op.extended(keep, inputs))

    @property
    def activations(self) -> str:
        """A (N, K, h, w), in the builder's float type."""
        return self.op.as_float(self.layer.name)

    @property
    def gradients(self) -> str:
        """G = d(score) / dA (N, K, h, w).

        Raises: UnsupportedError where the score does not depend on the layer by a differentiable path.
        """
        name = self.layer.name
        if name not in self._gradients:
            gradient = differentiate(self.graph, self.op, self.target.score, [name])[name]
            if gradient is None:
                raise UnsupportedError(
                    f"the score does not depend on layer `{name}` by any differentiable path",
                    "`onnxcam layers MODEL` lists the layers that reach the score",
                )
            self._gradients[name] = gradient
        return self._gradients[name]


AlphaFunction = Callable[[MethodContext], str]


@dataclass(frozen=True)
class Method:
    """One row of the table; `requires` raises UnsupportedError where the head does not have the form it needs."""

    name: str
    alpha: AlphaFunction
    formula: str
    paper: str
    gradients: bool
    class_discriminative: bool
    requires: Callable[[Graph, Head, Layer], object] | None
    combine: str
    loop: LoopFunction | None


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    formula: str,
    paper: str,
    gradients: bool = True,
    class_discriminative: bool = True,
    requires: Callable[[Graph, Head, Layer], object] | None = None,
    combine: str = "sum",
    loop: LoopFunction | None = None,
) -> Callable[[AlphaFunction], AlphaFunction]:
    """Register a method: the decorated function emits nodes and returns the name of alpha.

    combine: `sum` over channels, `eigen` or `kpca` (see `onnxcam.methods.projection`). loop: computes the raw maps on
    the host by running the model again (see `onnxcam.methods.loop`); alpha is then not used.
    """

    def register(alpha: AlphaFunction) -> AlphaFunction:
        METHODS[name] = Method(name, alpha, formula, paper, gradients, class_discriminative, requires, combine, loop)
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
