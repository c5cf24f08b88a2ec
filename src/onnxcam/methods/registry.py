"""The table of methods. A method is a function of the graph that returns the name of its alpha.

The saliency map is max(0, combine(alpha * A)): alpha (N, K, 1, 1) weighs channels, (N, K, h, w) weighs every cell;
`combine` is the sum over k, or a projection that is computed on the host.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from onnx import ValueInfoProto

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.engine import INTEGERS
from onnxcam.autodiff.quantized import quantization
from onnxcam.autodiff.registry import Rule
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Dim, Graph
from onnxcam.graph.layers import Layer
from onnxcam.methods.loop import LoopFunction
from onnxcam.targets import Target


def ones(context: "MethodContext") -> str:
    """alpha (1, K, 1, 1): every channel counts 1; also of methods whose weights come from a loop."""
    return context.op.constant(np.ones((1, context.layer.channels or 1, 1, 1), np.float32))


class MethodContext:
    """What a method sees: the builder, the graph, the layer, the head, the target, the picture input seen as a
    layer, and the method's options; A and G on demand.

    `settle` makes what was emitted part of `graph`, so that it can be differentiated in turn.
    """

    def __init__(
        self,
        op: Builder,
        layer: Layer,
        head: Head,
        target: Target,
        picture: Layer,
        options: Mapping[str, Any],
    ) -> None:
        self.op = op
        self.layer = layer
        self.head = head
        self.target = target
        self.picture = picture
        self.options = options
        self._gradients: dict[str, str] = {}

    @property
    def graph(self) -> Graph:
        return self.op.graph

    def settle(self, *keep: str, inputs: tuple[ValueInfoProto, ...] = ()) -> None:
        """Extend the graph by the emitted nodes that `keep` needs, and go on with a new builder on it.

        inputs: new ones, of one row per sample (a single one broadcasts).
        """
        one_hots, batch = self.op.one_hots, (self.graph.shape(self.picture.name) or (None,))[0]
        extended = self.op.extended(keep, inputs, {i.name: (batch, *_sizes(i)[1:]) for i in inputs})
        self.op = Builder(extended, blocks=self.op.blocks)
        self.op.one_hots.update(one_hots)

    @property
    def value(self) -> str:
        """The layer's value as the model goes on with it: behind the quantiser that alone reads it, dequantised.

        Runtimes fuse a quantiser with what is before it, unless something else reads the value between them.
        """
        name, dequantised = self.layer.name, None
        readers = self.graph.consumers(name)
        if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
            after = self.graph.consumers(readers[0].outputs[0])
            dequantised = after[0] if len(after) == 1 and after[0].op_type == "DequantizeLinear" else None
        return dequantised.outputs[0] if dequantised is not None else name

    @property
    def activations(self) -> str:
        """A (N, K, h, w), in the builder's float type: of a quantised layer the real numbers that it stands for.

        Pixels of an integer picture input are taken as they are.
        """
        name = self.value
        if self.graph.dtype(name) not in INTEGERS:
            return self.channels_first(self.op.as_float(name))
        if name == self.picture.name:
            return self.channels_first(self.op.Cast(name, to=self.op.dtype))
        found = quantization(self.graph, name)
        if found is None:
            raise UnsupportedError(
                f"layer `{name}` holds integers whose scale the graph does not tell",
                "choose a float layer; `onnxcam layers MODEL` lists them",
            )
        real = self.op.DequantizeLinear(name, found.scale, found.zero_point, axis=found.axis)
        return self.channels_first(self.op.Cast(real, to=self.op.dtype))

    @property
    def gradients(self) -> str:
        """G = d(score) / dA (N, K, h, w).

        Raises: UnsupportedError where the score does not depend on the layer by a differentiable path.
        """
        if self.layer.name not in self._gradients:
            self._gradients[self.layer.name] = self.gradient_by({})
        return self.channels_first(self._gradients[self.layer.name])

    def gradient_by(self, rules: Mapping[str, Callable[[Rule], Rule]]) -> str:
        """G as it lies in the model, with the rules of some nodes changed, see `differentiate`."""
        name = self.value
        y, cotangent = self.target.differentiated
        if self.target.narrow and not rules:
            y = self.target.narrow
        gradient = differentiate(self.graph, self.op, y, [name], cotangent, rules=rules)[name]
        if gradient is None:
            raise UnsupportedError(
                f"the score does not depend on layer `{name}` by any differentiable path",
                "`onnxcam layers MODEL` lists the layers that reach the score",
            )
        return gradient

    def channels_first(self, value: str) -> str:
        """A value that lies like the layer as (N, K, h, w), class tokens left out, the grid being the layout's."""
        op, layout = self.op, self.layer.layout
        if layout.kind == "nchw":
            return value
        if layout.kind == "nhwc":
            return str(op.Transpose(value, perm=[0, 3, 1, 2]))
        if layout.prefix:
            axis = 3 - layout.channel_axis
            value = op.Slice(value, [layout.prefix], [layout.prefix + layout.cells], [axis])
        if (last := layout.channel_axis) != 1:
            value = op.Transpose(value, perm=[0, last, *range(1, last)])
        return str(op.Reshape(value, [0, -1, *layout.grid]))


def _sizes(value: ValueInfoProto) -> list[Dim]:
    return [d.dim_value or d.dim_param or None for d in value.type.tensor_type.shape.dim]


AlphaFunction = Callable[[MethodContext], str]
CutFunction = Callable[[Graph, Layer, Mapping[str, Any]], str]


@dataclass(frozen=True)
class Option:
    """An option of a method: its default, which also says its type, what it means and what it may be."""

    default: Any
    about: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def value(self, name: str, given: Any) -> Any:
        """`given`, text included, as the option's type. Raises: UsageError for another type or out of range."""
        kind = type(self.default)
        try:
            if kind is int and float(given) != int(float(given)):
                raise ValueError
            value = kind(float(given)) if kind is int else kind(given)
        except (TypeError, ValueError, OverflowError):
            raise UsageError(f"option `{name}` takes {kind.__name__}, not `{given}`", self.about) from None
        if self.choices and value not in self.choices:
            raise UsageError(f"option `{name}` is `{value}`", f"use one of {', '.join(self.choices)}")
        low, high = (d if d is not None else value for d in (self.low, self.high))
        if value != value or not low <= value <= high:  # NaN is in no range
            bounds = ((" from", self.low), (" to", self.high))
            span = "".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
            raise UsageError(f"option `{name}` is {value}", f"give a number{span}: {self.about}")
        return value


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    alpha: emits the weights in the graph. loop: computes the weights or the maps on the host, by running the model
    again. combine: `sum` over channels, `eigen` or `kpca` on the host, or `none` where the function makes the map.
    passes: forward passes of the model for one sample. requires raises UnsupportedError where the head does not have
    the form that the method needs. at_input: the "layer" is the picture input itself. on_grid: the map that the
    function makes lies on the layer's grid, not on the picture's. cut: the value behind which the loop runs the head
    alone. planar: it enlarges or masks in the plane of a picture, so that volumes are beyond it. everywhere: it reads
    values all over the graph, so that none may be left out.
    """

    name: str
    formula: str
    paper: str
    alpha: AlphaFunction
    loop: LoopFunction | None = None
    combine: str = "sum"
    gradients: bool = False
    class_discriminative: bool = True
    passes: str = "1"
    requires: Callable[[Graph, Head, Layer], object] | None = None
    at_input: bool = False
    on_grid: bool = False
    cut: CutFunction | None = None
    planar: bool = False
    everywhere: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def makes_maps(self) -> bool:
        """Whether the function in the graph makes the map itself."""
        return self.combine == "none" and self.loop is None

    def emitted(self, context: MethodContext) -> tuple[str, str]:
        """What the method emits for the context's layer: A, or the map itself, and alpha."""
        if self.makes_maps:
            return self.alpha(context), context.op.constant(np.ones((1, 1, 1, 1), np.float32))
        alpha = self.alpha(context)  # first: it may settle, which drops what nothing needs yet
        return context.activations, alpha

    @property
    def needs(self) -> tuple[str, ...]:
        """What the method needs besides one forward pass: `gradients`, `loop`, `linear algebra`."""
        has = {
            "gradients": self.gradients,
            "loop": self.passes != "1",
            "linear algebra": self.combine in ("eigen", "kpca"),
        }
        return tuple(name for name, needed in has.items() if needed)

    def chosen(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, `given` over the defaults. Raises: UsageError for an unknown name or an unfit value."""
        unknown = [name for name in given if name not in self.options]
        if unknown:
            known = ", ".join(f"`{n}` ({o.default})" for n, o in self.options.items()) or "none"
            raise UsageError(f"method `{self.name}` has no option `{unknown[0]}`", f"its options: {known}")
        defaults = {name: option.default for name, option in self.options.items()}
        return defaults | {name: self.options[name].value(name, value) for name, value in given.items()}


METHODS: dict[str, Method] = {}


def method(
    name: str,
    *,
    formula: str,
    paper: str,
    gradients: bool = True,
    class_discriminative: bool = True,
    combine: str = "sum",
    **row: Any,
) -> Callable[[AlphaFunction], AlphaFunction]:
    """Register a method: the decorated function emits nodes and returns the name of alpha; arguments as in `Method`.

    With combine `none` it returns the name of the map (N, 1, h, w) itself.
    """

    def register(alpha: AlphaFunction) -> AlphaFunction:
        METHODS[name] = Method(
            name=name, formula=formula, paper=paper, alpha=alpha, gradients=gradients,
            class_discriminative=class_discriminative, combine=combine, **row,
        )  # fmt: skip
        return alpha

    return register


def looped(
    name: str, *, formula: str, paper: str, passes: str, alpha: AlphaFunction = ones, **row: Any
) -> Callable[[LoopFunction], LoopFunction]:
    """Register a method that runs the model many times: the decorated function gets a `Loop`.

    It returns, per layer, the weights (N, K, 1, 1) or (N, K, h, w); with combine `none` the raw maps (N, h, w).
    alpha: what every run computes in the graph besides the score; `loop.gradients` returns it.
    """

    def register(loop: LoopFunction) -> LoopFunction:
        METHODS[name] = Method(name=name, formula=formula, paper=paper, passes=passes, alpha=alpha, loop=loop, **row)
        return loop

    return register


def possible_methods(
    graph: Graph, head: Head, layer: Layer, picture: Layer, blocked: Mapping[str, frozenset[str]]
) -> tuple[str, ...]:
    """The methods that layer and head allow; blocked: the operators without a rule between a value and the score."""

    def possible(row: Method) -> bool:
        where = picture if row.at_input else layer
        if row.planar and len(picture.layout.shape) == 3:
            return False
        if row.gradients and blocked.get(where.name, True):
            return False
        return explained_by(row, graph, head, where)

    return tuple(name for name, row in METHODS.items() if possible(row))


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
