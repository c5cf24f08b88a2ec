"""The score of one class of a classifier."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcam.autodiff.engine import INTEGERS
from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import Head, classifier_head
from onnxcam.graph.index import Graph
from onnxcam.targets.kind import CLASS_INDEX, Array, Question, Scene, Target, TargetInput, TargetKind


@dataclass(frozen=True)
class Scores:
    """What a score is made of: `logits` and `probabilities` (N, C), `one_hot` (N, C) of the class, `index` (N,)."""

    op: Builder
    logits: str
    probabilities: str
    one_hot: str
    index: str

    def of_class(self, rows: str) -> str:
        """The class's entry of (N, C) rows, (N,)."""
        return str(self.op.ReduceSum(self.op.Mul(rows, self.one_hot), [1], keepdims=0))


def _logit(s: Scores) -> str:
    """z_c."""
    return s.of_class(s.logits)


def _probability(s: Scores) -> str:
    """p_c."""
    return s.of_class(s.probabilities)


def _log_probability(s: Scores) -> str:
    """log p_c."""
    return str(s.op.Log(s.of_class(s.probabilities)))


def _rest(s: Scores) -> str:
    """z_c + log p_c, which keeps its gradient where the softmax saturates (pytorch-grad-cam, ReST)."""
    return str(s.op.Add(_logit(s), _log_probability(s)))


def _finer(s: Scores) -> str:
    """sum_j p_j (z_c - z_j) / (sum_j p_j + 1e-9) over the 3 classes with logits nearest to z_c.

    What tells the class from those it is mistaken for; p is differentiated too (Zhang et al., Finer-CAM, CVPR 2025,
    as pytorch-grad-cam with alpha = 1).
    """
    op = s.op
    own = op.Unsqueeze(_logit(s), [1])
    gap = op.Abs(op.Sub(s.logits, own))
    _, nearest = op.TopK(gap, [4], axis=1, largest=0, outputs=2)
    others = op.Slice(nearest, [1], [4], [1])
    p, z = (op.GatherElements(rows, others, axis=1) for rows in (s.probabilities, s.logits))
    weighted = op.ReduceSum(op.Mul(p, op.Sub(own, z)), [1], keepdims=0)
    return str(op.Div(weighted, op.Add(op.ReduceSum(p, [1], keepdims=0), 1e-9)))


def _counterfactual(s: Scores) -> str:
    """-z_c: what speaks against the class (Selvaraju et al., Grad-CAM, section 3.3)."""
    return str(s.op.Neg(_logit(s)))


SCORES: dict[str, Callable[[Scores], str]] = {
    "logit": _logit,
    "counterfactual": _counterfactual,
    "probability": _probability,
    "log-probability": _log_probability,
    "rest": _rest,
    "finer": _finer,
}


def class_kind(graph: Graph, output: str | None = None, score: str = "logit") -> "ClassKind":
    """The score of one class of a classifier.

    score: `logit`, `counterfactual`, `probability`, `log-probability`, `rest` or `finer` (see SCORES). Probabilities
    are those of the model's own Softmax or Sigmoid where it ends in one; else a Softmax over the logits (a Sigmoid for
    a single one) is appended.

    Raises: UsageError for another score or output, or where `finer` lacks the three other classes that it compares
    with; UnsupportedError where no output holds one score per class.
    """
    if score not in SCORES:
        raise UsageError(f"unknown score `{score}`", f"use one of {', '.join(SCORES)}")
    head = classifier_head(graph, output)
    if score == "finer" and head.classes < 4:
        raise UsageError(f"score `finer` compares with 3 other classes; the model has {head.classes}", "use `logit`")
    stepped = f"the final {head.activation} is stepped over: the class logit is explained"
    return ClassKind(
        head=head,
        reads=(head.logits,),
        inputs=(TargetInput(CLASS_INDEX, TensorProto.INT64, ("classes_asked",)),),
        notes=(stepped,) if head.activation and score in ("logit", "counterfactual") else (),
        score=score,
    )


_PREDICTED = Question({CLASS_INDEX: np.array([-1])}, None, "predicted")


# Integers of which ONNX Runtime's CPU provider finds the largest as they are.
_RANKED = (TensorProto.UINT8, TensorProto.INT8)


@dataclass(frozen=True, kw_only=True)
class ClassKind(TargetKind):
    """One class per sample, chosen at run time by an int64 input of length 1 or N, -1 = predicted."""

    score: str

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        head, chosen = self.head, names[CLASS_INDEX]
        with op.scope("target"):
            logits = matrix(op, head.logits, real_value(op, head.logits))
            probabilities = class_probabilities(op, head)
            normalized = probabilities or (op.Softmax(logits, axis=1) if head.classes > 1 else op.Sigmoid(logits))
            # The model's own choice: logits before their quantisation may rank otherwise.
            ranked = head.output if op.graph.dtype(head.output) in _RANKED else number(op, head.output)
            predicted = op.ArgMax(matrix(op, head.output, ranked), axis=1, keepdims=0)
            index = op.Where(op.Less(chosen, 0), predicted, chosen)
            one_hot = one_hot_rows(op, index, head.classes)
            op.one_hots[one_hot] = index
            score = SCORES[self.score](Scores(op, logits, normalized, one_hot, index))
        linear = self.score == "logit"
        y, cotangent = (logits, one_hot) if linear else (None, None)
        return Target(score, y, cotangent, index, logits, probabilities, {CLASS_INDEX: index}, entry=linear)

    def question(self, asked: Any, scene: Scene) -> Question:
        index = class_number(asked, scene.labels, self.head.classes)
        return _PREDICTED if index == -1 else Question({CLASS_INDEX: np.array([index])}, None, index)

    def probe(self, count: int) -> dict[str, Array]:
        """The first and the last class in turns."""
        return {CLASS_INDEX: np.resize(np.array([0, self.head.classes - 1]), count)}


def one_hot_rows(op: Builder, index: str, classes: int) -> str:
    """(N, C) floats, 1 at the class `index` (N,)."""
    same = op.Equal(op.Unsqueeze(index, [1]), np.arange(classes, dtype=np.int64))
    return str(op.Cast(same, to=op.dtype))


def class_probabilities(op: Builder, head: Head) -> str | None:
    """(N, C) where the model ends in an activation."""
    if head.activation is None:
        return None
    if op.graph.dtype(head.output) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
        rows = matrix(op, head.output, op.as_float(head.output))
        return str(op.Exp(rows)) if head.activation == "LogSoftmax" else rows
    logits = matrix(op, head.logits, real_value(op, head.logits))
    return str(op.Sigmoid(logits) if head.activation == "Sigmoid" else op.Softmax(logits, axis=1))


def number(op: Builder, value: str) -> str:
    """A value in floats, integers as the numbers they are."""
    return str(op.Cast(value, to=op.dtype)) if op.graph.dtype(value) in INTEGERS else op.as_float(value)


def matrix(op: Builder, value: str, rows: str) -> str:
    """A score tensor, in floats `rows`, as (N, C)."""
    shape = op.graph.shape(value) or ()
    if len(shape) == 2:
        return rows
    return str(op.Reshape(rows, [1, -1]) if len(shape) == 1 else op.Flatten(rows, axis=1))


def class_number(target: str | int | np.integer | None, labels: tuple[str, ...] | None, classes: int) -> int:
    """A class index from an index, a label, or None (-1, the predicted class).

    A label matches exactly, else without regard to case, else without its WordNet number (`n02123045 tabby, tabby
    cat`), else as one of its comma-separated synonyms; a string of digits that is no label is an index.

    Raises: UsageError (exit code 2) for an index out of range or a label that is unknown or ambiguous.
    """
    if target is None:
        return -1
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        return _in_range(int(target), classes)
    text = str(target).strip()
    if labels:
        if text in labels:
            return labels.index(text)
        folded = text.casefold()
        for spoken in (
            [{label.casefold()} for label in labels],
            [{_unnumbered(label)} for label in labels],
            [_synonyms(label) for label in labels],
        ):
            hits = [i for i, names in enumerate(spoken) if folded in names]
            if len(hits) == 1:
                return hits[0]
            if hits:
                listing = ", ".join(f"{i} `{labels[i]}`" for i in hits[:5])
                raise UsageError(f"label `{text}` fits {len(hits)} classes: {listing}", "give the index instead")
    if text.lstrip("-").isdigit():
        return _in_range(int(text), classes)
    if not labels:
        raise UsageError(f"label `{text}`: the model names no classes", "give an index, or `--labels FILE`")
    known = {name: label for label in labels for name in (label, *_synonyms(label))}
    close = dict.fromkeys(known[c] for c in get_close_matches(text, known, 5, 0.5))
    near = [label for label in labels if text.casefold() in label.casefold()]
    shown = list(dict.fromkeys([*near, *close]))[:3]
    hint = (
        f"did you mean {' or '.join(f'`{s}`' for s in shown)}?"
        if shown
        else f"{len(labels)} labels, such as `{labels[0]}`"
    )
    raise UsageError(f"no class is called `{text}`", hint)


def _unnumbered(label: str) -> str:
    return re.sub(r"^n\d{8}[\s:_]+", "", label).casefold()


def _synonyms(label: str) -> set[str]:
    return {part.strip() for part in _unnumbered(label).split(",")}


def _in_range(index: int, classes: int) -> int:
    if not -1 <= index < classes:
        raise UsageError(
            f"class {index} does not exist: the model has {classes} classes",
            f"give 0 to {classes - 1}, or -1 for the predicted class",
        )
    return index
