"""Any linear function of any outputs: score = sum of outputs times weights, the weights chosen at run time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.kind import (
    Array,
    Question,
    Scene,
    Target,
    TargetInput,
    TargetKind,
    TargetSpec,
    is_map,
    output_value,
    sample_shape,
)


@dataclass(frozen=True, eq=False)
class Linear(TargetSpec):
    """score = sum over outputs of sum(output * weights): any element, sum, difference or region of any outputs.

    weights: per output (or any other value of the model, such as logits behind an activation), an array of its shape
    without the batch. outputs: what the model is prepared for, where several Linear targets are to be asked of one
    Explainer; default those of the weights. label: in words.
    """

    weights: Mapping[str, Any]
    outputs: tuple[str, ...] = ()
    label: str = "a weighted sum of outputs"

    def bind(self, graph: Graph, image: ImageInput) -> "LinearKind":
        names = tuple(dict.fromkeys((*self.outputs, *self.weights)))
        if not names:
            raise UsageError("a linear target without outputs", "give `outputs` or `weights` of at least one")
        shapes = tuple(sample_shape(graph, image, output_value(graph, name)) for name in names)
        inputs = (TargetInput(_role(i), TensorProto.FLOAT, ("weights_asked", *s)) for i, (_, s) in enumerate(shapes))
        head = Head(names[0], names[0], None, 0)
        on_map = any(is_map(s) for _, s in shapes)
        return LinearKind(head=head, reads=names, inputs=tuple(inputs), on_map=on_map, shapes=shapes, default=self)


@dataclass(frozen=True, kw_only=True)
class LinearKind(TargetKind):
    """`Linear` bound to a model. The gradient of a single output is started with the weights themselves."""

    shapes: tuple[tuple[bool, tuple[int, ...]], ...]
    default: Linear

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        terms, ends = [], []
        with op.scope("target"):
            for i, (value, (batched, shape)) in enumerate(zip(self.reads, self.shapes, strict=True)):
                real = real_value(op, value)
                ends.append(real if batched else op.Unsqueeze(real, [0]))
                product = op.Mul(ends[-1], names[_role(i)])
                axes = list(range(1, len(shape) + 1))
                terms.append(op.ReduceSum(product, axes, keepdims=0) if axes else product)
            score = terms[0] if len(terms) == 1 else op.Sum(*terms)
        if len(terms) > 1:
            return Target(score)
        return Target(score, ends[0], names[_role(0)])

    def question(self, asked: Any, scene: Scene) -> Question:
        chosen = self.default if asked is None else asked
        if not isinstance(chosen, Linear):
            raise UsageError(f"`{asked}` is no linear target", "pass `onnxcam.targets.Linear({output: weights})`")
        unknown = [name for name in chosen.weights if name not in self.reads]
        if unknown:
            known = ", ".join(f"`{v}`" for v in self.reads)
            raise UsageError(
                f"the Explainer was not prepared for output `{unknown[0]}`, but for {known}",
                "name it in the `outputs` of the Linear target that the Explainer is made with",
            )
        feeds = {}
        for i, (value, (_, shape)) in enumerate(zip(self.reads, self.shapes, strict=True)):
            rows = np.asarray(chosen.weights.get(value, np.zeros(shape, np.float32)), np.float32)
            if rows.shape not in (shape, (1, *shape)):
                raise UsageError(
                    f"weights of shape {rows.shape} for output `{value}`, which is {shape} per sample",
                    "give one weight per element of the output",
                )
            feeds[_role(i)] = rows.reshape(1, *shape)
        return Question(feeds, chosen.label, chosen.label)

    def built_in(self, scene: Scene) -> tuple[dict[str, Array], tuple[str, ...]]:
        """The weights; without any they stay inputs."""
        return super().built_in(scene) if self.default.weights else ({}, tuple(i.role for i in self.inputs))

    def asked(self, feeds: Mapping[str, Array]) -> Linear:
        """The sum with these weights."""
        return Linear({value: feeds[_role(i)][0] for i, value in enumerate(self.reads)})

    def probe(self, count: int) -> dict[str, Array]:
        """Seeded random weights."""
        rng = np.random.default_rng(0)
        return {
            _role(i): rng.standard_normal((count, *shape)).astype(np.float32)
            for i, (_, shape) in enumerate(self.shapes)
        }

    def record(self) -> Mapping[str, Any]:
        return {"kind": "linear", "outputs": list(self.reads)}


def _role(number: int) -> str:
    return f"target_weights_{number}" if number else "target_weights"
