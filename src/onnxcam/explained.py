"""The explained model: the user's graph with the target, the gradient and alpha appended as ordinary nodes."""

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from onnxcam.autodiff.engine import blockers, live_path
from onnxcam.autodiff.one_token import for_one_token, of_one_token
from onnxcam.autodiff.quantized import TWINS
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.finish import channel_sum, in_blocks
from onnxcam.graph.beside import beside
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.cut import HeadModel, crossing, head_after
from onnxcam.graph.head import Head
from onnxcam.graph.index import Dim, Graph, Node
from onnxcam.graph.layers import Layer, Layers
from onnxcam.graph.layout import layout_of
from onnxcam.graph.load import Run, load
from onnxcam.graph.read import ModelFile, ModelSource, read
from onnxcam.graph.signature import ImageInput, image_input
from onnxcam.methods import METHODS, Method, MethodContext, find_method, possible_methods
from onnxcam.profiling import stage
from onnxcam.runtime import Session
from onnxcam.targets import CLASS_INDEX, Target, TargetKind, TargetSpec, default_kind

DEFAULT_SIZE = (224, 224)
MAX_INPUT = 2**26
"""Most elements that one input of a model may have, the batch included where it is fixed."""
Size = tuple[int, int]


@dataclass(frozen=True)
class CutOutputs:
    """The head behind a layer, and the outputs of the explained model that feed its layer and crossing values."""

    head: HeadModel
    values: tuple[str, ...]


@dataclass(frozen=True)
class LayerOutputs:
    """The outputs for one target layer: `activations` (N, K, h, w) and `alpha`, broadcastable to it, float32.

    Where the method makes the map itself, `activations` is that map (N, 1, H, W) and alpha is 1. raw: of a lean model,
    their sum over channels (N, h, w) in their place: as a matrix product it costs less than copying A out. cut: of
    methods that run the head alone.
    """

    layer: Layer
    activations: str
    alpha: str
    raw: str | None
    cut: CutOutputs | None


@dataclass(frozen=True)
class ExplainedModel:
    """A rewritten model and the names in it.

    `model` has the original inputs and outputs, one more input and these outputs, called `onnxcam_...`:
    `activations` (N, K, h, w) float32 and `alpha` (N, K, 1, 1) or (N, K, h, w) float32 (numbered from the second layer
    on), `score` (N,) float32 and, of targets that are a class, `index` (N,) int64 the class explained, `logits` (N, C)
    float32 and, where the model ends in an activation, `probabilities` (N, C) float32. The inputs of the target, by
    role, choose what is explained: of a class `class_index` (1,) or (N,) int64, -1 the predicted one. resolved: per
    role that can leave something to the model, the output that holds what it was decided to be. target_head: of a lean
    model, where a question changes nothing but what lies behind the layer: makes that part, from the layer's value and
    what crosses beside it, outputs called `before_head`, to `answers`. Of plain classes it is fed the index decided.

    A lean model is one to run here: what nodes make is output under its own name, nothing is computed that a map of
    sums over channels does not need, a score that is one of the logits is read off them, and where a head reads one
    token, what only other tokens need is not computed (scores are then the model's but for the rounding).
    """

    model: ModelProto
    graph: Graph
    image: ImageInput
    kind: TargetKind
    method: Method
    options: Mapping[str, Any]
    layers: tuple[LayerOutputs, ...]
    inputs: Mapping[str, str]
    target_head: Callable[[], HeadModel] | None
    before_head: tuple[str, ...]
    answers: tuple[str, ...]
    notes: tuple[str, ...]
    score: str | None
    index: str | None
    logits: str | None
    probabilities: str | None
    resolved: Mapping[str, str]

    @property
    def head(self) -> Head:
        """The head that the target reads."""
        return self.kind.head

    @cached_property
    def raws(self) -> tuple[str, ...]:
        """The sums over channels of a lean model, one per layer, if it has them."""
        return tuple(outputs.raw for outputs in self.layers if outputs.raw)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """What one run asks for."""
        cuts = (name for outputs in self.layers if outputs.cut for name in outputs.cut.values)
        maps = (name for o in self.layers for name in ((o.raw,) if o.raw else (o.activations, o.alpha)))
        scores = (self.score, self.index, self.logits, self.probabilities, *self.resolved.values())
        return tuple(dict.fromkeys((*maps, *(name for name in scores if name is not None), *cuts)))

    @cached_property
    def shared_outputs(self) -> tuple[str, ...]:
        """What a run asks for whose layer `target_head` goes on from."""
        return tuple(dict.fromkeys((*self.before_head, *(name for name in self.outputs if name not in self.answers))))

    @cached_property
    def score_outputs(self) -> tuple[str, ...]:
        """What `scored` reads."""
        return tuple(name for name in ((self.score,) if self.score else (self.logits, self.index)) if name)

    def scored(self, results: Mapping[str, "np.ndarray[Any, Any]"], sample: int) -> float:
        """The explained score of one sample of a run's results."""
        if self.score:
            return float(results[self.score].item(sample))
        assert self.logits is not None and self.index is not None
        return float(results[self.logits].item(sample, results[self.index].item(sample)))


@stage("load")
def open_graph(
    file: ModelFile,
    *,
    size: Sequence[int] | None = None,
    input_layout: str | None = None,
    input_name: str | None = None,
    feeds: Mapping[str, Any] | None = None,
    run: Run | None = None,
    float32: bool | None = None,
) -> tuple[Graph, ImageInput, Size]:
    """Load a model with its picture input bound to `size` where the file leaves it open (default 224 x 224).

    size: (H, W), (L,) of signals, (D, H, W) of volumes; returned as (H, W), see `ImageInput`.

    input_name: the picture's input; feeds: values of the inputs beside it; float32: as for `load`.

    Raises: UsageError where `size` contradicts the file, or is needed; what `load` and `image_input` raise.
    """
    image = image_input(file.model, file.name, input_layout, input_name)
    image = replace(image, others=beside(file.model, file.name, image.name, feeds or {}))
    asked: Size | None = None if image.sides != 2 else DEFAULT_SIZE
    if size is not None:
        depth, (image, asked) = image.depth, image.asked(size)
        image = replace(image, depth=depth or image.depth)
    if asked is None and (image.height is None or image.width is None):
        raise UsageError(
            f"{file.name} takes {image.plane} of any size",
            "say which: `size=(L,)` of signals, `size=(D, H, W)` of volumes",
        )
    bound = (image.height or asked[0], image.width or asked[1]) if asked else (image.height or 1, image.width or 1)
    if size is not None and asked and image.spatial(bound) != image.spatial(asked):
        takes, given = ("x".join(map(str, sides)) for sides in (image.spatial(bound), size))
        raise UsageError(
            f"{file.name} takes {image.plane} of {takes}, not {given}",
            "leave the size out, or export the model with dynamic height and width",
        )
    if (elements := math.prod(d for d in image.bound(bound) if isinstance(d, int))) > MAX_INPUT:
        raise UnsupportedError(
            f"{file.name}: one input of shape {image.bound(bound)} has {elements:,} elements, more than {MAX_INPUT:,}",
            "export the model for smaller inputs, or set `onnxcam.explained.MAX_INPUT` if you trust it",
        )
    return load(file, image.shapes(bound), run or run_once(file, image, bound), float32), image, bound


def run_once(file: ModelFile, image: ImageInput, size: Size) -> Run:
    """Runs a model on one seeded noise picture, to compare two versions of it."""
    feed = noise(image, size)

    def run(model: ModelProto) -> Sequence["np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]:
        return list(Session(model, folder=file.folder).run(image.feeds(feed)).values())

    return run


def noise(image: ImageInput, size: Size) -> "np.ndarray[tuple[int, ...], np.dtype[Any]]":
    """One seeded noise picture, or as many as the model's batch."""
    shape = [d if isinstance(d, int) else 1 for d in image.bound(size)]
    drawn = np.random.default_rng(0).uniform(0, 255, shape)
    return (drawn if np.dtype(image.dtype).kind in "iu" else drawn / 255).astype(image.dtype)


@dataclass(frozen=True)
class Plan:
    """What to explain and where, decided and checked; nothing is appended yet. `picture`: the input as a layer."""

    graph: Graph
    image: ImageInput
    method: Method
    options: Mapping[str, Any]
    kind: TargetKind
    layers: tuple[Layer, ...]
    picture: Layer
    layer_rule: str | None

    @property
    def head(self) -> Head:
        """The head that the target reads."""
        return self.kind.head

    @property
    def has_target_head(self) -> bool:
        """Whether a target changes nothing but what one head makes of the layer's value."""
        row, (layer, *others) = self.method, self.layers
        weighs = row.gradients and row.loop is None and not row.at_input and not row.makes_maps
        return weighs and not others and self.graph.dtype(layer.name) == TensorProto.FLOAT

    @property
    def names(self) -> set[str]:
        """Every value name that the model has."""
        made = {o for n in self.graph.nodes for o in n.outputs}
        return made | {*self.graph.inputs} | self.graph.initializers.keys()

    def context(self, op: Builder, target: Target) -> MethodContext:
        """What the method sees of one target."""
        return MethodContext(op, self.layers[0], self.head, target, self.picture, self.options)

    def emit(self, context: MethodContext, *keep: str) -> list[tuple[str, str]]:
        """A and alpha of every layer, made part of the context's graph together with `keep`."""
        maps: list[tuple[str, str]] = []
        for layer in self.layers:
            context.layer = layer
            maps.append(self.method.emitted(context))
            context.settle(*context.target.values, *keep, *(value for pair in maps for value in pair))
        return maps


def plan(
    graph: Graph,
    image: ImageInput,
    *,
    method: str = "gradcam",
    layer: str | Sequence[str] | None = None,
    layer_layout: str | None = None,
    target: TargetSpec | None = None,
    score: str = "logit",
    output: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Find target and layers, and refuse what cannot be. Arguments as for `rewrite`; options: of the method."""
    row = find_method(method)
    settings = row.chosen(options or {})
    kind = default_kind(graph, image, output, score) if target is None else target.bind(graph, image)
    names = [layer] if isinstance(layer, str) else list(layer or ())
    found = Layers(graph, image.name, image.layout, *kind.reads)
    picture = input_layer(graph, image)
    if row.at_input:
        _refuse_layers(row, [name for name in names if name != image.name], image.name)
        layers = [picture]
    else:
        wanted = names or ([kind.layer] if kind.layer else [])
        layers = [found.named(name, layer_layout, picture.grid) for name in wanted] or [
            found.before_enlarging if kind.on_map else found.automatic
        ]
    _refuse_planar(row, image)
    _check_possible(graph, kind.head, row, layers, picture, found)
    if row.gradients:
        for chosen in layers:
            found.refuse_vanishing(chosen)
    rule = None
    if not (names or row.at_input):
        rule = kind.layer_rule or ("the last map before one is enlarged" if kind.on_map else found.rule)
    return Plan(graph, image, row, settings, kind, tuple(layers), picture, rule)


@stage("rewrite")
def explained_model(
    graph: Graph,
    image: ImageInput,
    *,
    lean: bool = False,
    summed: bool = True,
    channels_last: bool = False,
    blocks: bool = False,
    **wanted: Any,
) -> ExplainedModel:
    """Append target, gradient and alpha to a loaded graph. Arguments as for `rewrite` and `plan`.

    lean: see ExplainedModel; summed: whether sums over channels are all that is made of A and alpha; channels_last:
    whether it is run by the kernels that `in_blocks` speaks of; blocks: see Builder.
    """
    chosen = plan(graph, image, **wanted)
    row, kind, layers = chosen.method, chosen.kind, chosen.layers
    if lean and not row.everywhere:
        graph = for_one_token(graph, kind.reads, [layer.name for layer in layers])
        chosen = replace(chosen, graph=graph)
    summed = lean and summed and row.name in _CHANNEL_GRADIENTS and all(layer.channels for layer in layers)
    taken = chosen.names
    inputs = {i.role: free_name(i.role, taken) for i in kind.inputs}
    op = Builder(graph, blocks=blocks)
    target = kind.build(op, inputs).at(graph, [layer.name for layer in layers])
    if row.gradients and target.differentiated[0] in graph:
        names = [layer.name for layer in layers]
        target = replace(target, narrow=of_one_token(graph, op, target.differentiated[0], names))
    context = chosen.context(op, target)
    context.settle(*target.values, inputs=tuple(i.declared(inputs[i.role]) for i in kind.inputs))
    refuse_another_shape(context.graph, target)
    heads = [
        head_after(context.graph, row.cut(context.graph, layer, chosen.options), [target.score], image.name)
        for layer in layers
        if row.cut is not None
    ]
    maps = chosen.emit(context)
    single = lean and chosen.has_target_head
    scored = () if summed and target.entry else (target.score,)
    given = tuple(target.resolved.values()) if target.resolved.keys() == {CLASS_INDEX} else ()
    decided = [value for value in target.resolved.values() if value not in given]
    ways: list[tuple[str, list[str]]] = [(layers[0].name, [])]
    if summed:
        ways = [*_sums(context.op, layers, maps, channels_last and all(in_blocks(graph, layer) for layer in layers))]
        kept = (*(value for pair in maps for value in pair), *(raw for _, raws in ways for raw in raws))
        context.settle(*target.values, *kept)
    for start, raws in ways:
        answers = tuple(dict.fromkeys((*scored, *(raws or maps[0][1:]), *decided)))
        cut = (context.graph, start, answers, image.name, given)
        beside = crossing(*cut) if single else []
        if not beside:
            break
    # What a token model adds beside its layer is there anyway; elsewhere to keep such a value costs a fusion.
    by_head = single and (not beside or layers[0].layout.kind == "tokens")
    outputs: list[ValueInfoProto] = []

    def expose(role: str, value: str, dtype: int, shape: list[Dim]) -> str:
        name = value
        if not lean or context.graph.producer(value) is None:
            name = free_name(f"onnxcam_{role}", taken)
            taken.add(name)
            context.op.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        if all(known.name != name for known in outputs):
            outputs.append(tensor_info(name, dtype, shape))
        return name

    def expose_map(number: int, layer: Layer, activations: str, alpha: str) -> LayerOutputs:
        if summed:
            outputs.append(tensor_info(raws[number], TensorProto.FLOAT, ["N", *layer.grid]))
            return LayerOutputs(layer, activations, alpha, raws[number], None)
        suffix = f"_{number}" if number else ""
        whole = row.makes_maps
        shape: list[Dim] = ["N", 1, None, None] if whole else ["N", layer.channels, *layer.grid]
        return LayerOutputs(
            layer,
            expose(f"activations{suffix}", activations, TensorProto.FLOAT, shape),
            expose(f"alpha{suffix}", alpha, TensorProto.FLOAT, [None, 1 if whole else layer.channels, None, None]),
            None,
            CutOutputs(heads[number], expose_inputs(suffix, heads[number].layer, *heads[number].crossing))
            if heads
            else None,
        )

    def expose_inputs(suffix: str, *inputs: str) -> tuple[str, ...]:
        g = context.graph
        return tuple(
            expose(f"cut{suffix}_{i}", v, g.dtype(v), list(shape) if (shape := g.shape(v)) is not None else [])
            for i, v in enumerate(inputs)
        )

    def expose_role(role: str, value: str) -> str:
        if index and value == target.index:
            return index
        shape = context.graph.shape(value)
        return expose(role, value, context.graph.dtype(value), ["N", *shape[1:]] if shape else ["N"])

    rows: list[Dim] = ["N", kind.head.classes]
    classes, probabilities = target.classes, target.probabilities
    if not kind.has_class:  # what the target reads can be asked for, like the model's own outputs
        inner = [value for value in kind.reads if value not in graph.outputs and graph.producer(value) is not None]
        outputs += [tensor_info(value, graph.dtype(value), graph.shape(value)) for value in inner]
    shown = tuple(expose_map(i, layer, *pair) for i, (layer, pair) in enumerate(zip(layers, maps, strict=True)))
    index = expose("index", target.index, TensorProto.INT64, ["N"]) if target.index else None
    before_head = expose_inputs("", start, *beside) if by_head else ()
    return ExplainedModel(
        layers=shown,
        score=expose("score", target.score, TensorProto.FLOAT, ["N"]) if scored else None,
        index=index,
        logits=expose("logits", classes, TensorProto.FLOAT, rows) if classes else None,
        probabilities=expose("probabilities", probabilities, TensorProto.FLOAT, rows) if probabilities else None,
        resolved={role: expose_role(role, value) for role, value in target.resolved.items()},
        model=context.op.model(outputs, base=graph),
        graph=graph,
        image=image,
        kind=kind,
        method=row,
        options=chosen.options,
        inputs=inputs,
        target_head=partial(head_after, *cut) if by_head else None,
        before_head=before_head,
        answers=answers,
        notes=tuple(_notes(chosen)),
    )


def _sums(
    op: Builder, layers: Sequence[Layer], maps: Sequence[tuple[str, str]], last: bool
) -> Iterator[tuple[str, list[str]]]:
    """Ways to sum over channels, the best first: the value that is summed, of the first layer, and the sum of each."""
    for channels_last in (True, False) if last else (False,):
        raws = [
            channel_sum(op, layer, *pair, rank=3, channels_last=channels_last)
            for layer, pair in zip(layers, maps, strict=True)
        ]
        yield op.Transpose(maps[0][0], perm=[0, 2, 3, 1]) if channels_last else layers[0].name, raws


_QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")

# One gradient per channel, whatever the place.
_CHANNEL_GRADIENTS = ("gradcam", "gradcam++", "xgradcam", "shapleycam")


def _notes(chosen: Plan) -> Iterator[str]:
    """What was decided for the user, and what the user should know of this model."""
    row = chosen.method
    if chosen.layer_rule is not None:
        yield f"layer `{chosen.layers[0].name}` chosen: {chosen.layer_rule}"
    yield from chosen.kind.notes
    if not row.gradients:
        return
    layers = [layer.name for layer in chosen.layers]
    path = [node for value in chosen.kind.reads for node in live_path(chosen.graph, value, layers)[1]]
    if any(node.kind in TWINS or node.op_type in _QUANTISERS for node in path):
        yield "gradients pass the quantisers straight through, 0 where they saturate"
    if row.name in _CHANNEL_GRADIENTS and any(_flattens_grid(chosen.graph, node) for node in path):
        yield "the head flattens the grid, so that places count: `hirescam` keeps them, one weight per channel does not"


def _flattens_grid(graph: Graph, node: Node) -> bool:
    before, after = graph.shape(node.inputs[0]), graph.shape(node.outputs[0])
    if node.op_type not in ("Flatten", "Reshape") or before is None or after is None:
        return False
    return len(before) >= 4 and len(after) == 2 and any(d != 1 for d in before[2:])


def _refuse_layers(row: Method, names: Sequence[str], image: str) -> None:
    if names:
        raise UsageError(
            f"method `{row.name}` explains the input `{image}` itself, not layer `{names[0]}`",
            "leave the layer out, or choose a method that has one (`onnxcam methods`)",
        )


def _refuse_planar(row: Method, image: ImageInput) -> None:
    if row.planar and image.sides == 3:
        names = ", ".join(m.name for m in METHODS.values() if not m.planar)
        raise UnsupportedError(
            f"method `{row.name}` works in the plane of a picture, not in volumes", f"use one of {names}"
        )


def _check_possible(
    graph: Graph, head: Head, row: Method, layers: Sequence[Layer], picture: Layer, found: Layers
) -> None:
    """Refuse a method that the model cannot carry at these layers, with the reason and the methods that would work."""
    if row.requires is None:
        return
    for chosen in layers:
        try:
            row.requires(graph, head, chosen)
        except UnsupportedError as error:
            other = found.automatic if row.at_input else chosen
            names = possible_methods(graph, head, other, picture, blockers(graph, head.logits))
            raise UnsupportedError(
                error.message, f"{error.hint}; methods that work here: {', '.join(names)}"
            ) from error


def input_layer(graph: Graph, image: ImageInput) -> Layer:
    """The picture input seen as a layer: its channels, and its height and width as the grid."""
    shape = graph.shape(image.name) or ()
    sides = [d if isinstance(d, int) else 1 for d in (shape[2:] if image.layout == "nchw" else shape[1:-1])]
    return Layer(image.name, "Input", image.name, image.channels, layout_of(image.layout, sides), 0)


def refuse_another_shape(graph: Graph, target: Target) -> None:
    """Raises: UsageError where the score is not one number per sample, as a function of one's own may be."""
    shape = graph.shape(target.score)
    if shape is not None and len(shape) != 1:
        raise UsageError(
            f"the target has the shape {list(shape)}, not one number per sample (N,)",
            "sum over the other axes: `op.ReduceSum(value, [1], keepdims=0)`",
        )


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, prefixed as often as it takes for the model not to have it already."""
    while name in taken:
        name = f"onnxcam_{name}"
    return name


def rewrite(
    model: ModelSource,
    *,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    layer: str | Sequence[str] | None = None,
    layer_layout: str | None = None,
    score: str = "logit",
    output: str | None = None,
    target: TargetSpec | None = None,
    size: Size | None = None,
    input_layout: str | None = None,
    input_name: str | None = None,
    feeds: Mapping[str, Any] | None = None,
) -> ModelProto:
    """The rewritten ModelProto, for one's own runtime: the model's inputs and outputs, and those of ExplainedModel.

    model: path, bytes or ModelProto. layer: a value or node name, or several; default the last spatial map.
    layer_layout: `nchw`, `nhwc` or `tokens[:PREFIX]` where the graph does not tell. score: a key of
    `onnxcam.targets.SCORES`. output: which output holds the class scores. target: one of `onnxcam.targets`, whose
    run-time inputs the model gets. size: (H, W), where the file leaves it open. input_name, feeds: of models with
    several inputs, as for Explainer. Methods that combine on the host (`eigencam`, ...) return the activations and
    alpha to be combined.

    Raises: the designed errors of `onnxcam.errors`; UnsupportedOperatorError names every operator without a rule;
    UnsupportedError for a method that runs the model many times.
    """
    row = find_method(method)
    if row.loop is not None:
        names = ", ".join(m.name for m in METHODS.values() if m.loop is None)
        raise UnsupportedError(
            f"method `{method}` finishes on the host: no single graph computes it",
            f"use an Explainer, or one of {names}",
        )
    file = read(model)
    graph, image, _ = open_graph(file, size=size, input_layout=input_layout, input_name=input_name, feeds=feeds)
    explained = explained_model(
        graph,
        image,
        method=method,
        layer=layer,
        layer_layout=layer_layout,
        score=score,
        output=output,
        target=target,
        options=method_options,
    )
    return explained.model
