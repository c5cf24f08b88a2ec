"""The best box of a class as a target that is found in the graph, for files that explain a detector by themselves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcam.autodiff.quantized import real_value
from onnxcam.detection.decode import Array, HeadLayout, sigmoid
from onnxcam.detection.detector import class_terms
from onnxcam.detection.neck import shared_map
from onnxcam.detection.recognise import recognised
from onnxcam.errors import UnsupportedError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.classes import class_number, one_hot_rows
from onnxcam.targets.kind import CLASS_INDEX, Question, Scene, Target, TargetInput, TargetKind, TargetSpec


@dataclass(frozen=True)
class BestBox(TargetSpec):
    """score = the highest score of a class that any anchor has.

    of: class index or label; default the class of the best box. Per call. kind: a key of `onnxcam.detection.KINDS`,
    where the outputs do not tell. Per model. Anchors that score the same share the gradient. Nothing is suppressed: the
    best box never is.

    Raises: UnsupportedError for a head whose scores are no product of numbers that it puts out: behind a Softmax that
    is left to the host, or of boxes that the file has chosen.
    """

    of: Any = None
    kind: str | None = None

    def bind(self, graph: Graph, image: ImageInput) -> "BestBoxKind":
        shape = graph.shape(image.name) or ()
        height, width = (d if isinstance(d, int) else 0 for d in (shape[2:4] if image.layout == "nchw" else shape[1:3]))
        found = recognised(graph, (height, width), self.kind)
        layout = found.layout
        form = (
            _form(layout) if layout.is_batched and layout.classes and all(0 not in s for s in layout.shapes) else None
        )
        if form is None:
            raise UnsupportedError(
                f"the scores of a `{found.kind}` detector are no product of numbers that it puts out",
                "`onnxcam explain` explains its boxes; one number of its outputs exports: `--element OUTPUT[I,...]`",
            )
        reads = tuple(term.value for term in class_terms(graph, layout))
        return BestBoxKind(
            head=Head(reads[0], reads[0], None, layout.classes),
            reads=reads,
            inputs=(TargetInput(CLASS_INDEX, TensorProto.INT64, ("classes_asked",)),),
            notes=(f"detector `{found.kind}`: the box that scores highest in the class is explained",),
            layer=(shared := shared_map(graph, reads, image.name, (height, width))),
            layer_rule="the last map that all boxes come from" if shared else None,
            layout=layout,
            form=form,
            default=self,
        )


_FORMS = ("product", "root", "sigmoids")


def _form(layout: HeadLayout) -> str | None:
    """What the score of a class is of the numbers that `factors` names: their product, its square root, or the product
    of their sigmoids; tried on random rows."""
    rows = np.random.default_rng(0).random((4, layout.entries.shape[1]))
    factors = np.array([[rows[:, c] for c in layout.factors(label)] for label in range(layout.classes)])
    product = factors.prod(axis=1).T
    tried = (product, np.sqrt(product), sigmoid(factors).prod(axis=1).T)
    found = layout.scores(rows)
    return next((form for form, scores in zip(_FORMS, tried, strict=True) if np.allclose(scores, found)), None)


@dataclass(frozen=True, kw_only=True)
class BestBoxKind(TargetKind):
    """`BestBox` bound to a model. Run-time input: `class_index`, -1 for the class of the best box."""

    layout: HeadLayout
    form: str
    default: BestBox

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        layout, asked = self.layout, names[CLASS_INDEX]
        columns = np.array([layout.factors(label) for label in range(layout.classes)])
        with op.scope("target"):
            parts = [op.Reshape(real_value(op, value), [0, -1]) for value in layout.values]
            numbers = parts[0] if len(parts) == 1 else op.Concat(*parts, axis=1)
            factors = [op.Gather(numbers, _index(op, layout.entries[:, c]), axis=1) for c in columns.T]
            if self.form == "sigmoids":
                factors = [op.Sigmoid(factor) for factor in factors]
            scores = factors[0]
            for factor in factors[1:]:
                scores = op.Mul(scores, factor)
            best = op.ReduceMax(op.Sqrt(scores) if self.form == "root" else scores, [1], keepdims=0)
            index = op.Where(op.Less(asked, 0), op.ArgMax(best, axis=1, keepdims=0), asked)
            own = one_hot_rows(op, index, layout.classes)
            score = op.ReduceSum(op.Mul(best, own), [1], keepdims=0)
        return Target(score, best, own, index, best, None, {CLASS_INDEX: index})

    def question(self, asked: Any, scene: Scene) -> Question:
        chosen = asked.of if isinstance(asked, BestBox) else self.default.of if asked is None else asked
        index = class_number(chosen, scene.labels, self.head.classes)
        return Question({CLASS_INDEX: np.array([index])}, None, "predicted" if index == -1 else index)

    def probe(self, count: int) -> dict[str, Array]:
        """The first and the last class in turns."""
        return {CLASS_INDEX: np.resize(np.array([0, self.head.classes - 1]), count)}

    def record(self) -> Mapping[str, Any]:
        return {"kind": "best box"}


def _index(op: Builder, places: Array) -> str:
    """Places (A, C) as a value: (A, 1) where all classes read the same, a sum of (A, 1) and (1, C) where it is one."""
    rows, row = places[:, :1], places[:1] - places[0, 0]
    if not row.any():
        return op.constant(rows)
    return str(op.Add(rows, row)) if (places == rows + row).all() else op.constant(places)
