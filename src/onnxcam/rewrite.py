"""The explained model: the user's graph with the target, the gradient and alpha appended as ordinary nodes."""

from collections.abc import Mapping, Sequence
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
class ExplainedModel:
    """A rewritten model and the names in it.

    `model` has the original inputs and outputs, one more input and these outputs, called `onnxcam_...`:
    `activations` (N, K, h, w) float32, `alpha` (N, K, 1, 1) or (N, K, h, w) float32, `score` (N,) float32,
    `index` (N,) int64 the class explained, `logits` (N, C) float32 and, where the model ends in an activation,
    `probabilities` (N, C) float32. The input `class_index` (1,) or (N,) int64 chooses the class, -1 the predicted one.
    """

    model: ModelProto
    graph: Graph
    image: ImageInput
    head: Head
    layer: Layer
    method: Method
    class_index: str
    activations: str
    alpha: str
    score: str
    index: str
    logits: str
    probabilities: str | None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What one run asks for."""
        names = (self.activations, self.alpha, self.score, self.index, self.logits, self.probabilities)
        return tuple(n for n in names if n is not None)


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
    layer: str | None = None,
    score: str = "logit",
    output: str | None = None,
) -> ExplainedModel:
    """Append target, gradient and alpha to a loaded graph. Arguments as for `rewrite`."""
    row = find_method(method)
    head = classifier_head(graph, output)
    chosen = (
        named_layer(graph, layer, image.name, head.logits) if layer else automatic_layer(graph, image.name, head.logits)
    )
    names = _free_names(graph)
    targeted = Builder(graph)
    target = class_target(targeted, head, score, names["class_index"])
    kept = [v for v in (target.score, target.index, target.classes, target.probabilities) if v is not None]
    extended = targeted.extended(kept, [target.class_index])
    op = Builder(extended)
    op.prefix = targeted.prefix + "/" + method.replace("+", "p")
    context = MethodContext(op, extended, chosen, head, target)
    alpha = row.alpha(context)
    wanted = {
        "activations": context.activations,
        "alpha": alpha,
        "score": target.score,
        "index": target.index,
        "logits": target.classes,
        "probabilities": target.probabilities,
    }
    outputs = []
    for role, value in wanted.items():
        if value is not None:
            dtype = TensorProto.INT64 if role == "index" else TensorProto.FLOAT
            op.nodes.append(helper.make_node("Identity", [value], [names[role]], name=f"{op.prefix}/{role}"))
            outputs.append(tensor_info(names[role], dtype, _shape(role, chosen, head)))
    return ExplainedModel(
        model=op.model(outputs),
        graph=graph,
        image=image,
        head=head,
        layer=chosen,
        method=row,
        class_index=names["class_index"],
        activations=names["activations"],
        alpha=names["alpha"],
        score=names["score"],
        index=names["index"],
        logits=names["logits"],
        probabilities=names["probabilities"] if wanted["probabilities"] else None,
    )


_ROLES = ("activations", "alpha", "score", "index", "logits", "probabilities")


def _free_names(graph: Graph) -> Mapping[str, str]:
    """`class_index` and `onnxcam_<role>`, prefixed once more for every name that the model has already."""
    taken = {o for n in graph.nodes for o in n.outputs} | {*graph.inputs} | graph.initializers.keys()
    names = {}
    for role, name in {"class_index": "class_index", **{r: f"onnxcam_{r}" for r in _ROLES}}.items():
        while name in taken:
            name = f"onnxcam_{name}"
        names[role] = name
    return names


def _shape(role: str, layer: Layer, head: Head) -> list[Dim]:
    match role:
        case "activations":
            return ["N", layer.channels, *layer.grid]
        case "alpha":
            return ["N", layer.channels, None, None]
        case "score" | "index":
            return ["N"]
    return ["N", head.classes]


def rewrite(
    model: ModelSource,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    score: str = "logit",
    output: str | None = None,
    size: Size | None = None,
    input_layout: str | None = None,
) -> ModelProto:
    """The rewritten ModelProto, for one's own runtime: the model's inputs and outputs, and those of ExplainedModel.

    model: path, bytes or ModelProto. layer: a value or node name, default the last spatial map. score: `logit` or
    `probability`. output: which output holds the class scores. size: (H, W), where the file leaves it open.

    Raises: the designed errors of `onnxcam.errors`; UnsupportedOperatorError names every operator without a rule.
    """
    file = read(model)
    graph, image, _ = open_graph(file, size=size, input_layout=input_layout)
    return explained_model(graph, image, method=method, layer=layer, score=score, output=output).model
