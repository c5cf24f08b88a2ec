"""The explained model: the user's graph with the target, the gradient and alpha appended as ordinary nodes."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxcam.errors import UsageError
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.head import Head, classifier_head
from onnxcam.graph.index import Dim, Graph
from onnxcam.graph.layers import Layer, automatic_layer, named_layer
from onnxcam.graph.load import Run, load
from onnxcam.graph.read import ModelFile, ModelSource, read
from onnxcam.graph.signature import ImageInput, image_input
from onnxcam.methods import Method, MethodContext, find_method
from onnxcam.runtime import Session
from onnxcam.targets import class_target

DEFAULT_SIZE = (224, 224)
Size = tuple[int, int]


@dataclass(frozen=True)
class LayerOutputs:
    """The outputs for one target layer: `activations` (N, K, h, w) and `alpha`, broadcastable to it, float32."""

    layer: Layer
    activations: str
    alpha: str


@dataclass(frozen=True)
class ExplainedModel:
    """A rewritten model and the names in it.

    `model` has the original inputs and outputs, one more input and these outputs, called `onnxcam_...`:
    `activations` (N, K, h, w) float32 and `alpha` (N, K, 1, 1) or (N, K, h, w) float32 (numbered from the second layer
    on), `score` (N,) float32, `index` (N,) int64 the class explained, `logits` (N, C) float32 and, where the model
    ends in an activation, `probabilities` (N, C) float32. The input `class_index` (1,) or (N,) int64 chooses the
    class, -1 the predicted one.
    """

    model: ModelProto
    graph: Graph
    image: ImageInput
    head: Head
    method: Method
    layers: tuple[LayerOutputs, ...]
    class_index: str
    score: str
    index: str
    logits: str
    probabilities: str | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What one run asks for."""
        maps = (name for outputs in self.layers for name in (outputs.activations, outputs.alpha))
        scores = (self.score, self.index, self.logits, self.probabilities)
        return (*maps, *(n for n in scores if n is not None))


def open_graph(
    file: ModelFile,
    *,
    size: Size | None = None,
    input_layout: str | None = None,
    run: Run | None = None,
) -> tuple[Graph, ImageInput, Size]:
    """Load a model with its picture input bound to `size` (H, W) where the file leaves it open (default 224 x 224).

    Raises: UsageError where `size` contradicts the file; what `load` and `image_input` raise.
    """
    image = image_input(file.model, file.name, input_layout)
    asked = size or DEFAULT_SIZE
    bound = (image.height or asked[0], image.width or asked[1])
    if size is not None and bound != size:
        raise UsageError(
            f"{file.name} takes pictures of {bound[0]}x{bound[1]}, not {size[0]}x{size[1]}",
            "leave the size out, or export the model with dynamic height and width",
        )
    return load(file, {image.name: image.bound(bound)}, run or run_once(file, image, bound)), image, bound


def run_once(file: ModelFile, image: ImageInput, size: Size) -> Run:
    """Runs a model on one seeded noise picture, to compare two versions of it."""
    rng = np.random.default_rng(0)
    shape = [d if isinstance(d, int) else 1 for d in image.bound(size)]
    noise = rng.uniform(0, 255, shape)
    feed = (noise if np.dtype(image.dtype).kind in "iu" else noise / 255).astype(image.dtype)

    def run(model: ModelProto) -> Sequence["np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]:
        return list(Session(model, folder=file.folder).run({image.name: feed}).values())

    return run


def explained_model(
    graph: Graph,
    image: ImageInput,
    *,
    method: str = "gradcam",
    layer: str | Sequence[str] | None = None,
    score: str = "logit",
    output: str | None = None,
) -> ExplainedModel:
    """Append target, gradient and alpha to a loaded graph. Arguments as for `rewrite`."""
    row = find_method(method)
    head = classifier_head(graph, output)
    names = [layer] if isinstance(layer, str) else list(layer or ())
    layers = [named_layer(graph, name, image.name, head.logits) for name in names]
    layers = layers or [automatic_layer(graph, image.name, head.logits)]
    taken = {o for n in graph.nodes for o in n.outputs} | {*graph.inputs} | graph.initializers.keys()
    class_index = _free("class_index", taken)
    op = Builder(graph)
    target = class_target(op, head, score, class_index)
    context = MethodContext(op, layers[0], head, target)
    context.settle(*target.values, inputs=(target.class_index,))
    maps: list[tuple[str, str]] = []
    for chosen in layers:
        context.layer = chosen
        maps.append((context.activations, row.alpha(context)))
        context.settle(*target.values, *(value for pair in maps for value in pair))
    outputs = []

    def expose(role: str, value: str, dtype: int, shape: list[Dim]) -> str:
        name = _free(f"onnxcam_{role}", taken)
        taken.add(name)
        context.op.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        outputs.append(tensor_info(name, dtype, shape))
        return name

    def expose_map(number: int, chosen: Layer, activations: str, alpha: str) -> LayerOutputs:
        suffix = f"_{number}" if number else ""
        shape: list[Dim] = ["N", chosen.channels, *chosen.grid]
        return LayerOutputs(
            chosen,
            expose(f"activations{suffix}", activations, TensorProto.FLOAT, shape),
            expose(f"alpha{suffix}", alpha, TensorProto.FLOAT, [None, chosen.channels, None, None]),
        )

    per_class: list[Dim] = ["N", head.classes]
    probabilities = target.probabilities
    return ExplainedModel(
        layers=tuple(expose_map(i, chosen, *pair) for i, (chosen, pair) in enumerate(zip(layers, maps, strict=True))),
        score=expose("score", target.score, TensorProto.FLOAT, ["N"]),
        index=expose("index", target.index, TensorProto.INT64, ["N"]),
        logits=expose("logits", target.classes, TensorProto.FLOAT, per_class),
        probabilities=expose("probabilities", probabilities, TensorProto.FLOAT, per_class) if probabilities else None,
        model=context.op.model(outputs),
        graph=graph,
        image=image,
        head=head,
        method=row,
        class_index=class_index,
    )


def _free(name: str, taken: Container[str]) -> str:
    """`name`, prefixed as often as it takes for the model not to have it already."""
    while name in taken:
        name = f"onnxcam_{name}"
    return name


def rewrite(
    model: ModelSource,
    *,
    method: str = "gradcam",
    layer: str | Sequence[str] | None = None,
    score: str = "logit",
    output: str | None = None,
    size: Size | None = None,
    input_layout: str | None = None,
) -> ModelProto:
    """The rewritten ModelProto, for one's own runtime: the model's inputs and outputs, and those of ExplainedModel.

    model: path, bytes or ModelProto. layer: a value or node name, or several; default the last spatial map. score: a
    key of `onnxcam.targets.SCORES`. output: which output holds the class scores. size: (H, W), where the file leaves
    it open. Methods that combine on the host (`eigencam`, ...) return the activations and alpha to be combined.

    Raises: the designed errors of `onnxcam.errors`; UnsupportedOperatorError names every operator without a rule.
    """
    file = read(model)
    graph, image, _ = open_graph(file, size=size, input_layout=input_layout)
    return explained_model(graph, image, method=method, layer=layer, score=score, output=output).model
