"""Input attributions: the picture input itself is the layer, A = x and G = d score / d x.

Channels are reduced in two ways. Where G is multiplied by x, channels are summed: the map is signed, in units of the
score. Where it is not, its sign is that of the preprocessing, not of evidence: the map is the largest magnitude over
channels (Simonyan et al.).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from onnxcam.autodiff.engine import INTEGERS, Primal, blockers
from onnxcam.autodiff.registry import Cotangents, Rule
from onnxcam.errors import UnsupportedError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layers import Layer
from onnxcam.methods.loop import Array, Floats, Loop
from onnxcam.methods.registry import MethodContext, Option, looped, method


def float_input(graph: Graph, head: Head, layer: Layer) -> None:
    """Raises: UnsupportedError where the picture holds integers, or gradients do not reach it."""
    picture = graph.inputs[0]
    if graph.dtype(picture) in INTEGERS:
        raise UnsupportedError(
            f"input `{picture}` holds integers: there is no gradient with respect to it",
            "choose a method that explains a layer, or one that masks the picture",
        )
    blocked = blockers(graph, head.logits).get(picture)
    if blocked is None or blocked:
        why = f"no derivative rule for {', '.join(sorted(blocked))}" if blocked else "no differentiable path"
        raise UnsupportedError(f"gradients of the score do not reach the input `{picture}`: {why}", "choose a layer")


def largest_magnitude(context: MethodContext, gradient: str) -> str:
    """(N, 1, H, W): max over channels of |gradient (N, C, H, W)|, element by element where channels are few."""
    op, channels = context.op, context.picture.channels
    magnitude = op.Abs(gradient)
    if channels is None or not 1 < channels <= 4:
        return str(op.ReduceMax(magnitude, [1], keepdims=1))
    return str(op.Max(*op.Split(magnitude, [1] * channels, axis=1, outputs=channels)))


def _gradient(context: MethodContext) -> str:
    return context.gradients


@method(
    "saliency",
    formula="M = max_c |G|",
    paper="Simonyan et al., Deep Inside Convolutional Networks, ICLR Workshop 2014",
    combine="none",
    at_input=True,
    requires=float_input,
)
def saliency(context: MethodContext) -> str:
    """The map (N, 1, H, W): the largest magnitude of the gradient over the input's channels."""
    return largest_magnitude(context, context.gradients)


method(
    "inputxgradient",
    formula="M = sum_c x_c G_c",
    paper="Shrikumar et al., Not Just a Black Box, 2016",
    at_input=True,
    requires=float_input,
)(_gradient)


@looped(
    "integratedgradients",
    formula="M = sum_c (x_c - b) integral_0^1 G_c(b + t (x - b)) dt",
    paper="Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017",
    passes="2 + steps",
    alpha=_gradient,
    gradients=True,
    combine="none",
    at_input=True,
    requires=float_input,
    options={
        "steps": Option(50, "points of the Gauss-Legendre rule", low=1),
        "baseline": Option(0.0, "b, one number for the whole model input"),
    },
)
def integratedgradients(loop: Loop) -> list[Floats]:
    """The raw map (N, H, W), signed, in units of the score; the integral by Gauss-Legendre, as Captum's default.

    The map sums up to score(x) - score(b); how far it is from that is recorded as `completeness_delta`.
    """
    (a,), baseline, steps = loop.activations, np.float32(loop.options["baseline"]), loop.options["steps"]
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    times, shares = ((1 + nodes) / 2).astype(np.float32), weights / 2
    maps = []
    for sample, x in enumerate(loop.x):
        total, done = np.zeros(a.shape[1:]), 0
        for gradients in gradients_at(loop, sample, (baseline + t * (x - baseline) for t in times), steps):
            total += np.tensordot(shares[done : done + len(gradients)], gradients, 1)
            done += len(gradients)
        found = ((a[sample] - baseline) * total).sum(axis=0)
        start = loop.scores(np.full_like(x, baseline)[np.newaxis], loop.index[sample : sample + 1])[0]
        loop.facts[sample]["completeness_delta"] = float(found.sum() - (float(loop.score[sample]) - float(start)))
        maps.append(found)
    return [np.stack(maps).astype(np.float32)]


NOISE = {
    "samples": Option(25, "noisy pictures", low=1),
    "std": Option(0.15, "standard deviation of the noise, as a share of the input's range", low=0.0),
}


@looped(
    "smoothgrad",
    formula="M = max_c |mean_i G_c(x + noise_i)|",
    paper="Smilkov et al., SmoothGrad, 2017",
    passes="1 + samples",
    alpha=_gradient,
    gradients=True,
    combine="none",
    at_input=True,
    requires=float_input,
    options=NOISE,
)
def smoothgrad(loop: Loop) -> list[Floats]:
    """The raw map (N, H, W): the largest magnitude over channels of the mean gradient on noisy pictures, seeded."""
    return _moments(loop, lambda mean, square: np.abs(mean))


@looped(
    "vargrad",
    formula="M = max_c (mean_i G_c^2 - (mean_i G_c)^2), G at x + noise_i",
    paper="Adebayo et al., Local Explanation Methods for Deep Neural Networks, ICLR Workshop 2018",
    passes="1 + samples",
    alpha=_gradient,
    gradients=True,
    combine="none",
    at_input=True,
    requires=float_input,
    options=NOISE,
)
def vargrad(loop: Loop) -> list[Floats]:
    """The raw map (N, H, W): the largest variance (population) over channels of the gradient on noisy pictures."""
    return _moments(loop, lambda mean, square: np.maximum(square - mean**2, 0))


Doubles = npt.NDArray[np.float64]


def _moments(loop: Loop, reduced: Callable[[Doubles, Doubles], Doubles]) -> list[Floats]:
    count = loop.options["samples"]
    maps = []
    for sample, x in enumerate(loop.x):
        mean, square = np.zeros((2, *loop.activations[0].shape[1:]))
        for gradients in gradients_at(loop, sample, noisy(loop, x, count), count):
            double = gradients.astype(np.float64)
            mean += double.sum(axis=0) / count
            square += (double**2).sum(axis=0) / count
        maps.append(reduced(mean, square).max(axis=0))
    return [np.stack(maps).astype(np.float32)]


def noisy(loop: Loop, x: Array, count: int) -> Iterator[Array]:
    """`count` copies of a sample with seeded normal noise of `std` times its range."""
    rng, std = loop.random(), np.float32(loop.options["std"]) * np.float32(np.ptp(x))
    return (x + std * rng.standard_normal(x.shape, np.float32) for _ in range(count))


def gradients_at(loop: Loop, sample: int, points: Iterator[Array], total: int, layer: int = 0) -> Iterator[Floats]:
    """The gradients (n, K, h, w) at a layer, on `total` other inputs in place of a sample's, chunk by chunk."""
    for chunk in loop.chunks(sample, points, total):
        yield loop.gradients(chunk.astype(loop.x.dtype), np.full(len(chunk), loop.index[sample]), layer)


@method(
    "guidedbackprop",
    formula="M = max_c |G|, only positive gradients passing back through each activation",
    paper="Springenberg et al., Striving for Simplicity, ICLR Workshop 2015",
    combine="none",
    at_input=True,
    requires=float_input,
)
def guidedbackprop(context: MethodContext) -> str:
    """The map (N, 1, H, W); max(0, .) before the derivative of every activation, not of ReLU alone."""
    return largest_magnitude(context, context.channels_first(context.gradient_by(guided(context.graph))))


@method(
    "deconvnet",
    formula="M = max_c |G|, each activation's derivative replaced by max(0, .) of the gradient",
    paper="Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014",
    combine="none",
    at_input=True,
    requires=float_input,
)
def deconvnet(context: MethodContext) -> str:
    """The map (N, 1, H, W); what an activation lets through going forward has no say in it.

    Constant factors beside an activation that is spelt out as x times a gate of x (GELU's 1/2) stay.
    """
    return largest_magnitude(context, context.channels_first(context.gradient_by(deconvolved(context.graph))))


@method(
    "guidedgradcam",
    planar=True,
    formula="M = max_c |Grad-CAM enlarged * guided G|",
    paper="Selvaraju et al., Grad-CAM, ICCV 2017",
    combine="none",
    requires=float_input,
)
def guidedgradcam(context: MethodContext) -> str:
    """The map (N, 1, H, W): the layer's Grad-CAM in [0, 1], enlarged, times guided backpropagation at the input."""
    op, layer = context.op, context.layer
    alpha = op.ReduceMean(context.gradients, [2, 3], keepdims=1)
    cam = min_max(op, op.Relu(op.ReduceSum(op.Mul(alpha, context.activations), [1], keepdims=1)))
    context.layer = context.picture
    gradient = context.channels_first(context.gradient_by(guided(context.graph)))
    context.layer = layer
    return largest_magnitude(context, op.Mul(min_max(op, enlarged(op, cam, context.picture.grid)), gradient))


def min_max(op: Builder, maps: str) -> str:
    """Each channel of (N, K, h, w) scaled to [0, 1], as pytorch-grad-cam: 1e-7 beside the maximum."""
    above = op.Sub(maps, op.ReduceMin(maps, [2, 3], keepdims=1))
    return str(op.Div(above, op.Add(op.ReduceMax(above, [2, 3], keepdims=1), 1e-7)))


def enlarged(op: Builder, maps: str, size: tuple[int, int]) -> str:
    """(N, K, h, w) as (N, K, H, W), bilinear, half-pixel centres."""
    return str(op.Resize(maps, None, None, list(size), mode="linear", axes=[2, 3]))


# --- the rules of activations -------------------------------------------------------------------------------------

_ACTIVATIONS = frozenset(
    """Relu LeakyRelu PRelu ThresholdedRelu Elu Selu Celu Gelu Mish Softplus Swish HardSwish Tanh Clip
    com.microsoft::Gelu com.microsoft::FastGelu com.microsoft::QuickGelu com.microsoft::BiasGelu""".split()
)
_FUSED = frozenset({"com.microsoft::FusedConv", "com.microsoft::FusedGemm"})
# A product of x with a function of x made of these is an activation spelt out: SiLU, GELU, HardSwish.
_ELEMENTWISE = frozenset(
    """Sigmoid HardSigmoid Tanh Erf Softplus Clip Relu Exp Pow Neg Sqrt Add Sub Mul Div Min Max Cast Identity
    com.microsoft::QuickGelu""".split()
)


def guided(graph: Graph) -> dict[str, Callable[[Rule], Rule]]:
    """Guided backpropagation: every activation sees max(0, .) of the gradient that comes back to it."""

    def positive(rule: Rule) -> Rule:
        def function(op: Builder, node: Primal, *dys: str | None) -> Cotangents:
            return rule(op, node, *(None if dy is None else op.Relu(dy) for dy in dys))

        return replace(rule, function=function)

    fused = (n for n in graph.nodes if n.kind in _FUSED and n.attrs.get("activation"))
    return {n.outputs[0]: positive for n in (*activations(graph), *fused)}


def deconvolved(graph: Graph) -> dict[str, Callable[[Rule], Rule]]:
    """Deconvnet: max(0, .) of the gradient takes the place of every activation's own derivative.

    Raises: UnsupportedError where an activation is fused into a convolution.
    """
    fused = next((n for n in graph.nodes if n.kind in _FUSED and n.attrs.get("activation")), None)
    if fused is not None:
        raise UnsupportedError(
            f"`deconvnet` needs activations on their own, and {fused.kind} node `{fused.name}` holds one",
            "use the model from before ONNX Runtime's optimisation, or `guidedbackprop`",
        )

    def through(position: int) -> Callable[[Rule], Rule]:
        def function(op: Builder, node: Primal, dy: str, *_: str | None) -> Cotangents:
            return (None,) * position + (str(op.Relu(dy)),)

        return lambda rule: replace(rule, function=function)

    return {node.outputs[0]: through(position) for node, position in activations(graph).items()}


def activations(graph: Graph) -> dict[Node, int]:
    """Nodes that are activations, and which of their inputs is x: operators of that name, and x times a gate of x."""
    gated: dict[Node, int] = {}
    inside: set[str] = set()
    for node in graph.nodes:
        if node.kind == "Mul":
            for position, (x, gate) in enumerate((node.inputs, node.inputs[::-1])):
                found = next((v for r in _multiples(graph, x) if (v := _between(graph, r, gate)) is not None), None)
                if found:
                    gated[node] = position
                    inside |= found
                    break
    own = {n: 0 for n in graph.nodes if n.kind in _ACTIVATIONS and n.outputs[0] not in inside}
    return own | gated


def _multiples(graph: Graph, value: str) -> Iterator[str]:
    """The value, and those that it is a constant multiple of."""
    yield value
    node = graph.producer(value)
    if node is not None and node.kind in ("Mul", "Div"):
        varying = [i for i in node.inputs if graph.constant(i) is None]
        if len(varying) == 1:
            yield from _multiples(graph, varying[0])


def _between(graph: Graph, x: str, value: str) -> set[str] | None:
    """The values from `x` to `value` where that is an element-wise function of x alone; None where it is not."""
    found: set[str] = set()
    pending = [value]
    while pending:
        name = pending.pop()
        if name == x or name in found or graph.constant(name) is not None:
            continue
        node = graph.producer(name)
        if node is None or node.kind not in _ELEMENTWISE or len(found) > 16:
            return None
        found.add(name)
        pending += [i for i in node.inputs if i]
    return found or None
