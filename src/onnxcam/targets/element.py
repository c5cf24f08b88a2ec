"""Any element of any output, or the sum of a part of it: regression, coordinates, one row of many."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.kind import (
    Question,
    Scene,
    Target,
    TargetKind,
    TargetSpec,
    is_map,
    output_value,
    sample_shape,
)

Pick = int | tuple[int, int]


@dataclass(frozen=True)
class Element(TargetSpec):
    """score = one element of an output, or the sum of a part of it.

    text: `output[3]`, `output[0, 10:20]`, `output` for the whole; a minus in front for its negative. Indices are per
    sample, without the batch axis, from 0, negative ones from the end; what is left out is taken whole. Any value of
    the model may be named, such as the logits behind an activation.
    """

    text: str

    def bind(self, graph: Graph, image: ImageInput) -> "ElementKind":
        text = self.text.strip()
        negative = text.startswith("-") and text not in graph
        name, picks = _parsed(text[1:].strip() if negative else text, graph)
        batched, shape = sample_shape(graph, image, output_value(graph, name))
        if len(picks) > len(shape):
            raise UsageError(
                f"`{self.text}` has {len(picks)} indices, and `{name}` is {list(shape)} per sample",
                f"give {len(shape)} or fewer",
            )
        ranges = tuple(_range(pick, size, axis, name, shape) for axis, (pick, size) in
                       enumerate(zip(picks, shape, strict=False)))  # fmt: skip
        parts = ", ".join(str(a) if b == a + 1 and p.find(":") < 0 else f"{a}:{b}" for (a, b), p in
                          zip(ranges, picks, strict=True))  # fmt: skip
        label = f"{'-' if negative else ''}{name}[{parts}]" if parts else f"{'-' if negative else ''}sum of {name}"
        return ElementKind(
            head=Head(name, name, None, 0),
            reads=(name,),
            notes=(f"`{label}` is explained: per sample, `{name}` is {list(shape)}",),
            on_map=is_map(shape),
            default=self,
            batched=batched,
            rank=len(shape),
            ranges=ranges,
            negative=negative,
            words=label,
        )


@dataclass(frozen=True, kw_only=True)
class ElementKind(TargetKind):
    """`Element` bound to a model; nothing is left to the run time."""

    default: Element
    batched: bool
    rank: int
    ranges: tuple[tuple[int, int], ...]
    negative: bool
    words: str

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        with op.scope("target"):
            value = real_value(op, self.reads[0])
            if not self.batched:
                value = op.Unsqueeze(value, [0])
            axes = list(range(1, len(self.ranges) + 1))
            if axes:
                starts, ends = ([r[side] for r in self.ranges] for side in (0, 1))
                value = op.Slice(value, starts, ends, axes)
            if self.rank:
                value = op.ReduceSum(value, list(range(1, self.rank + 1)), keepdims=0)
            return Target(op.Neg(value) if self.negative else op.Identity(value))

    def question(self, asked: Any, scene: Scene) -> Question:
        if asked is not None and asked != self.default:
            raise UsageError(
                f"the Explainer was made for `{self.words}`, not for {asked!r}",
                "make another Explainer, or one with a `Linear` target, which chooses elements at run time",
            )
        return Question({}, self.words, self.words)

    def record(self) -> Mapping[str, Any]:
        return {"kind": "element", "element": self.words}


def _parsed(text: str, graph: Graph) -> tuple[str, list[str]]:
    """`name[a, b:c]` as name and indices; names may hold brackets themselves."""
    if text in graph:
        return text, []
    match = re.fullmatch(r"(.+)\[([^\[\]]*)\]", text, re.S)
    if match is None:
        return text, []
    return match[1].strip(), [part.strip() for part in match[2].split(",")]


def _range(pick: str, size: int, axis: int, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+)|(-?\d*)\s*:\s*(-?\d*)", pick)
    if match is None:
        raise UsageError(f"index `{pick}` of `{name}`", "give a number, or a range `a:b`")
    if match[1] is not None:
        number = int(match[1])
        start, end = (number % size, number % size + 1) if -size <= number < size else (0, 0)
    else:
        start, end, _ = slice(*(int(m) if m else None for m in match.group(2, 3))).indices(size)
    if start >= end:
        raise UsageError(
            f"`{name}` has no element {pick} along axis {axis}: it is {list(shape)} per sample",
            f"give 0 to {size - 1}, or a range within 0:{size}",
        )
    return start, end
