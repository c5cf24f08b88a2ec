"""What of a box is explained, as a linear function of the detector's outputs with weights chosen at run time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.kind import Array, Question, Scene, Target, TargetInput, TargetKind, TargetSpec

_ACTIVATIONS = ("Sigmoid", "Softmax", "LogSoftmax")
_MOVES = ("Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Cast")


@dataclass(frozen=True)
class Term:
    """A value of the model that a score reads, of `shape` per sample; `bare`: without the activations that it ends in;
    `edges`: for the edges of a box, not its class; `batched`: it has the batch in front."""

    value: str
    shape: tuple[int, ...]
    bare: bool
    edges: bool
    batched: bool = True


@dataclass(frozen=True, eq=False)
class BoxTarget(TargetSpec):
    """score = sum over terms of sum(value * weights); weights: an array per term, None for what an Explainer is
    prepared for. classes: how many the detector has. label, record: what is asked, in words and as JSON values."""

    terms: tuple[Term, ...]
    classes: int
    weights: Sequence[Array] | None = None
    label: str | None = None
    record: Any = None

    def bind(self, graph: Graph, image: ImageInput) -> "BoxKind":
        first = self.terms[0].value
        reads = tuple(dict.fromkeys(term.value for term in self.terms))
        inputs = (
            TargetInput(_role(i), TensorProto.FLOAT, ("boxes_asked", *(d or f"rows_{i}" for d in term.shape)))
            for i, term in enumerate(self.terms)
        )
        return BoxKind(head=Head(first, first, None, self.classes), reads=reads, inputs=tuple(inputs), terms=self.terms)


@dataclass(frozen=True, kw_only=True)
class BoxKind(TargetKind):
    """`BoxTarget` bound to a model."""

    terms: tuple[Term, ...]

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        ends, sums = [], []
        with op.scope("target"):
            for i, term in enumerate(self.terms):
                value = without_activations(op, term.value) if term.bare else term.value
                end = op.as_float(value) if value != term.value else real_value(op, value)
                ends.append(end if term.batched else op.Unsqueeze(end, [0]))
                sums.append(op.ReduceSum(op.Mul(ends[-1], names[_role(i)]), _axes(term), keepdims=0))
            score = sums[0] if len(sums) == 1 else op.Sum(*sums)
        if len(sums) > 1 or not self.terms[0].batched:
            return Target(score)
        return Target(score, ends[0], names[_role(0)])

    def question(self, asked: Any, scene: Scene) -> Question:
        if not isinstance(asked, BoxTarget) or asked.weights is None:
            raise UsageError(f"`{asked}` is no box", "ask a Detector: `Detector(model).explain_boxes(picture)`")
        feeds = {_role(i): np.asarray(w, np.float32)[np.newaxis] for i, w in enumerate(asked.weights)}
        return Question(feeds, asked.label, asked.record)

    def probe(self, count: int) -> dict[str, Array]:
        """Seeded random weights."""
        rng = np.random.default_rng(0)
        return {
            _role(i): rng.standard_normal((count, *(d or 1 for d in term.shape))).astype(np.float32)
            for i, term in enumerate(self.terms)
        }

    def record(self) -> Mapping[str, Any]:
        return {"kind": "box", "outputs": list(self.reads)}


def _role(number: int) -> str:
    return f"box_weights_{number}" if number else "box_weights"


def _axes(term: Term) -> list[int]:
    return list(range(1, len(term.shape) + 1))


def ends_in_activation(graph: Graph, value: str) -> bool:
    """Whether a value is, in part at least, a Sigmoid or Softmax that was only moved since."""
    node = graph.producer(value)
    if node is None or node.domain:
        return False
    if node.op_type in _ACTIVATIONS:
        return True
    moved = node.inputs if node.op_type == "Concat" else node.inputs[:1] if node.op_type in _MOVES else ()
    return any(ends_in_activation(graph, name) for name in moved)


def without_activations(op: Builder, value: str) -> str:
    """A copy of `value` in which what is a Sigmoid or Softmax, moved since, is what went into it; the rest as it is.

    Gradients of a saturated probability vanish, those of its logit do not.
    """
    node = op.graph.producer(value)
    if node is None or not ends_in_activation(op.graph, value):
        return value
    if node.op_type in _ACTIVATIONS:
        return node.inputs[0]
    moved = len(node.inputs) if node.op_type == "Concat" else 1
    bare = NodeProto()
    bare.CopyFrom(node.proto)
    bare.name = op.fresh(node.op_type)
    bare.input[:] = [without_activations(op, name) if i < moved else name for i, name in enumerate(node.inputs)]
    bare.output[:] = [op.fresh(node.op_type) if name else "" for name in node.outputs]
    op.nodes.append(bare)
    return str(bare.output[list(node.outputs).index(value)])
