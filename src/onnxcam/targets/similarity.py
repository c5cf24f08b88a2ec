"""Embeddings: likeness to a reference vector, or to another picture."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head, output_listing
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.npy import read_npy
from onnxcam.picture import Picture
from onnxcam.targets.kind import (
    Array,
    Question,
    Scene,
    Target,
    TargetInput,
    TargetKind,
    TargetSpec,
    float_outputs,
    output_value,
    sample_shape,
)

REFERENCE = "reference"


@dataclass(frozen=True, eq=False)
class Similarity(TargetSpec):
    """score = cosine of the angle between the picture's embedding and a reference's, in [-1, 1].

    to: a vector (D,), a .npy file that holds one (a text's embedding, say), or a picture, which is embedded by the
    model itself. Per call. output: which output is the embedding, default the only one with a vector per sample.
    unlike: 1 - cosine in its place, in [0, 2]: what sets the picture apart. Per model.
    """

    to: Any = None
    output: str | None = None
    unlike: bool = False

    def bind(self, graph: Graph, image: ImageInput) -> "SimilarityKind":
        if self.output is not None:
            output_value(graph, self.output)
        wanted = [self.output] if self.output is not None else float_outputs(graph)
        found = [(o, d) for o in wanted if (d := _length(graph, o)) is not None]
        if len(found) != 1:
            state = "several outputs hold" if found else "no output holds"
            raise UnsupportedError(
                f"{state} a vector per sample: {output_listing(graph)}",
                "name the embedding (`--class-output`, `output=`)",
            )
        output, length = found[0]
        sample_shape(graph, image, output)
        return SimilarityKind(
            head=Head(output, output, None, 0),
            reads=(output,),
            inputs=(TargetInput(REFERENCE, TensorProto.FLOAT, ("references_asked", length)),),
            notes=(f"`{output}` taken for an embedding of length {length}",),
            default=self,
            length=length,
            unlike=self.unlike,
        )


@dataclass(frozen=True, kw_only=True)
class SimilarityKind(TargetKind):
    """`Similarity` bound to a model. Run-time input: `reference` (1|N, D), of any length of arrow."""

    default: Similarity
    length: int
    unlike: bool

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        with op.scope("target"):
            own, other = op.Flatten(real_value(op, self.reads[0]), axis=1), names[REFERENCE]
            dot = op.ReduceSum(op.Mul(own, other), [1], keepdims=0)
            squares = [op.ReduceSum(op.Mul(v, v), [1], keepdims=0) for v in (own, other)]
            cosine = op.Div(dot, op.Add(op.Mul(*map(op.Sqrt, squares)), 1e-12))
            return Target(op.Sub(1.0, cosine) if self.unlike else cosine)

    def question(self, asked: Any, scene: Scene) -> Question:
        chosen = self.default if asked is None else asked
        if not isinstance(chosen, Similarity):
            chosen = replace(self.default, to=chosen)
        if chosen.unlike != self.unlike:
            raise UsageError("the Explainer was made for the other of likeness and unlikeness", "make another one")
        if chosen.to is None:
            raise UsageError(
                "there is no reference to compare with",
                f"give a vector of length {self.length}, a .npy file that holds one, or a picture",
            )
        vector, name = self._vector(chosen.to, scene)
        label = f"{'unlike' if self.unlike else 'like'} {name}"
        return Question({REFERENCE: vector.astype(np.float32)[np.newaxis]}, label, label)

    def _vector(self, given: Any, scene: Scene) -> tuple[npt.NDArray[Any], str]:
        name = "a vector"
        if isinstance(given, str | os.PathLike):
            name = Path(given).name
            if name.endswith(".npy"):
                given = _loaded(Path(given))
        vector = None if isinstance(given, str | os.PathLike | Picture) else np.asarray(given)
        if vector is None or (vector.ndim > 1 and vector.dtype == np.uint8):
            embedded = scene.outputs(given)[self.reads[0]]
            return embedded.reshape(-1), name if vector is None else "a picture"
        flat = vector.reshape(-1)
        if flat.size != self.length:
            raise UsageError(
                f"a reference of length {flat.size}{'' if vector.ndim < 2 else f' {vector.shape}'}, but the embedding "
                f"`{self.reads[0]}` has length {self.length}",
                "give a vector that the same model, or the tower beside it, made",
            )
        if not np.isfinite(flat.astype(np.float64)).all() or not np.any(flat):
            raise UsageError("the reference is zero, or holds what is not a number", "it has no direction")
        return flat, name

    def built_in(self, scene: Scene) -> tuple[dict[str, Array], tuple[str, ...]]:
        """The reference; without one it stays an input."""
        return ({}, (REFERENCE,)) if self.default.to is None else super().built_in(scene)

    def asked(self, feeds: Mapping[str, Array]) -> Similarity:
        """Likeness to that reference."""
        return replace(self.default, to=feeds[REFERENCE][0])

    def probe(self, count: int) -> dict[str, Array]:
        """Seeded random vectors."""
        return {REFERENCE: np.random.default_rng(0).standard_normal((count, self.length)).astype(np.float32)}

    def record(self) -> Mapping[str, Any]:
        return {"kind": "similarity", "unlike": self.unlike, "output": self.reads[0]}


def _length(graph: Graph, output: str) -> int | None:
    """D of a vector per sample, with any axes of size 1; None for another shape, or a single number."""
    sizes = (graph.shape(output) or ())[1:]
    numbers = [d for d in sizes if isinstance(d, int)]
    total = math.prod(numbers)
    return total if len(numbers) == len(sizes) and total > 1 and max(numbers) == total else None


def _loaded(path: Path) -> npt.NDArray[Any]:
    try:
        return read_npy(path)
    except ValueError as error:
        raise UsageError(f"{path} is no .npy file: {error}", "write one with `numpy.save`") from error
