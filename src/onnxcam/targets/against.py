"""One class against another: what tells this from that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import classifier_head
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.classes import (
    class_number,
    matrix,
    number,
    one_hot_rows,
)
from onnxcam.targets.kind import CLASS_INDEX, Array, Question, Scene, Target, TargetInput, TargetKind, TargetSpec

RIVAL_INDEX = "rival_index"


@dataclass(frozen=True)
class Against(TargetSpec):
    """score = logit of one class - logit of another: evidence that both share cancels.

    of: class index or label; default the predicted class. rival: the other one; default the class with the highest
    logit besides. Per call. output: which output holds the class scores. Per model.
    """

    of: Any = None
    rival: Any = None
    output: str | None = None

    def bind(self, graph: Graph, image: ImageInput) -> "AgainstKind":
        head = classifier_head(graph, self.output)
        if head.classes < 2:
            raise UnsupportedError(f"`{head.output}` holds one class", "there is nothing to set it against")
        asked = ("classes_asked",)
        return AgainstKind(
            head=head,
            reads=(head.logits,),
            inputs=tuple(TargetInput(role, TensorProto.INT64, asked) for role in (CLASS_INDEX, RIVAL_INDEX)),
            notes=(f"the final {head.activation} is stepped over: logits are compared",) if head.activation else (),
            default=self,
        )


@dataclass(frozen=True, kw_only=True)
class AgainstKind(TargetKind):
    """`Against` bound to a model. Run-time inputs: `class_index`, -1 for the predicted class, and `rival_index`, -1 for
    the highest besides."""

    default: Against

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        head = self.head
        with op.scope("target"):
            logits = matrix(op, head.logits, real_value(op, head.logits))
            predicted = op.ArgMax(matrix(op, head.output, number(op, head.output)), axis=1, keepdims=0)
            index = op.Where(op.Less(names[CLASS_INDEX], 0), predicted, names[CLASS_INDEX])
            own = one_hot_rows(op, index, head.classes)
            others = op.Where(op.Greater(own, 0.5), float(np.finfo(np.float32).min), logits)
            rival = op.Where(op.Less(names[RIVAL_INDEX], 0), op.ArgMax(others, axis=1, keepdims=0), names[RIVAL_INDEX])
            cotangent = op.Sub(own, one_hot_rows(op, rival, head.classes))
            score = op.ReduceSum(op.Mul(logits, cotangent), [1], keepdims=0)
        decided = {CLASS_INDEX: index, RIVAL_INDEX: rival}
        return Target(score, logits, cotangent, index, logits, None, decided)

    def question(self, asked: Any, scene: Scene) -> Question:
        chosen = self.default if asked is None else asked
        if not isinstance(chosen, Against):
            chosen = Against(chosen, self.default.rival)
        pair = [class_number(c, scene.labels, self.head.classes) for c in (chosen.of, chosen.rival)]
        if pair[0] == pair[1] >= 0:
            raise UsageError(f"class {pair[0]} against itself", "give two classes")
        record = dict(zip(("class", "against"), ("predicted" if c == -1 else c for c in pair), strict=True))
        return Question({CLASS_INDEX: np.array(pair[:1]), RIVAL_INDEX: np.array(pair[1:])}, None, record)

    def label(
        self, question: Question, decided: Mapping[str, Array], sample: int, labels: tuple[str, ...] | None
    ) -> str:
        """`A against B`."""
        pair = [int(decided[role][sample]) for role in (CLASS_INDEX, RIVAL_INDEX)]
        return " against ".join(labels[c] if labels else f"class {c}" for c in pair)

    def probe(self, count: int) -> dict[str, Array]:
        """The first and the last class against each other, in turns."""
        ends = np.array([0, self.head.classes - 1])
        return {CLASS_INDEX: np.resize(ends, count), RIVAL_INDEX: np.resize(ends[::-1], count)}

    def record(self) -> Mapping[str, Any]:
        return {"kind": "against"}
