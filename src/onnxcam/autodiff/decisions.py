"""What becomes of every operator: a rule, its function body, a gradient of zero on purpose, or a reasoned refusal."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import onnx

from onnxcam.autodiff.registry import INDEPENDENT, NON_DIFFERENTIABLE, RULES

# Function bodies that ONNX's own node test cases prove against numerical differentiation (tests/onnx_cases).
EXPANDED: frozenset[str] = frozenset(
    {"Attention", "CausalConvWithState", "CenterCropPad", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss",
     "SwiGLU"}
)  # fmt: skip

_SEQUENCE = "a sequence of tensors has no cotangent; export the model without sequences"
_LOOP = "its derivative needs every step's intermediate values; export the model with the loop unrolled"
_RECURRENT = "a recurrent layer's derivative is a loop backwards in time, which is not written"
_LAYOUT = "a layout for this machine only, written by ONNX Runtime at level ALL; save the model at level EXTENDED"
_LIFTED = "replaced when the model is lifted to opset 18"
_OPTIONAL = "an optional value has no cotangent; export the model without it"
_BITS = "its weights are packed bits, which language models use"

REFUSED: dict[str, str] = {
    "ConcatFromSequence": _SEQUENCE,
    "SequenceAt": _SEQUENCE,
    "SequenceConstruct": _SEQUENCE,
    "SequenceErase": _SEQUENCE,
    "SequenceInsert": _SEQUENCE,
    "SequenceMap": _SEQUENCE,
    "SplitToSequence": _SEQUENCE,
    "Optional": _OPTIONAL,
    "OptionalGetElement": _OPTIONAL,
    "If": "which branch ran is known only when the model runs; export it with a constant condition",
    "Loop": _LOOP,
    "Scan": _LOOP,
    "LinearAttention": "its body is a Scan; " + _LOOP,
    "GRU": _RECURRENT,
    "LSTM": _RECURRENT,
    "RNN": _RECURRENT,
    "DFT": "complex spectra have no rule",
    "STFT": "complex spectra have no rule",
    "Det": "its derivative is the inverse of a matrix, which ONNX has no operator for",
    "DeformConv": "sampling at learned offsets has no rule",
    "MaxRoiPool": "the operator does not say where its maxima lie",
    "TensorScatter": "it updates the cache of a language model",
    "Unique": "where its values end up depends on the input",
    "Scatter": f"{_LIFTED}: there it is ScatterElements",
    "Upsample": f"{_LIFTED}: there it is Resize",
    "com.microsoft::NhwcFusedConv": _LAYOUT,
    "com.microsoft::NhwcMaxPool": _LAYOUT,
    "com.microsoft.nchwc::AveragePool": _LAYOUT,
    "com.microsoft.nchwc::Conv": _LAYOUT,
    "com.microsoft.nchwc::GlobalAveragePool": _LAYOUT,
    "com.microsoft.nchwc::GlobalMaxPool": _LAYOUT,
    "com.microsoft.nchwc::MaxPool": _LAYOUT,
    "com.microsoft.nchwc::ReorderInput": _LAYOUT,
    "com.microsoft.nchwc::ReorderOutput": _LAYOUT,
    "com.microsoft.nchwc::Upsample": _LAYOUT,
    "com.microsoft::MatMulNBits": _BITS,
    "com.microsoft::MatMulBnb4": _BITS,
    "com.microsoft::QAttention": "a mask and a past may hide in it; quantise the model without fusing attention",
}

Verdict = Literal["rule", "expanded", "non-differentiable", "refused"]


@dataclass(frozen=True)
class Decision:
    """What differentiation does with an operator, why (for a rule: its formula), and the file that holds the rule."""

    op: str
    domain: str
    decision: Verdict
    reason: str
    source: str


def decisions() -> list[Decision]:
    """One decision per operator: everything in the installed onnx's default domain, then other domains; sorted.

    Raises: LookupError for an operator of the default domain that nobody has decided about.
    """
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    kinds = known | RULES.keys() | EXPANDED | REFUSED.keys() | NON_DIFFERENTIABLE | INDEPENDENT
    return sorted(map(decide, kinds), key=lambda d: (d.domain, d.op))


def decide(kind: str) -> Decision:
    """The decision about `Conv`, or `com.microsoft::FusedConv`; LookupError where there is none."""
    found = [*_verdicts(kind)]
    if len(found) != 1:
        raise LookupError(f"{kind} has {len(found)} decisions")
    domain, _, op = kind.rpartition("::")
    return Decision(op, domain, *found[0])


def _verdicts(kind: str) -> Iterator[tuple[Verdict, str, str]]:
    if kind in RULES:
        function = RULES[kind].function
        yield "rule", (function.__doc__ or "").partition("\n")[0], f"{function.__module__.rpartition('.')[2]}.py"
    if kind in EXPANDED:
        yield "expanded", "the function body in its schema is differentiated", "engine.py"
    if kind in NON_DIFFERENTIABLE:
        yield "non-differentiable", "its output does not change, or only in jumps, when an input moves", "registry.py"
    if kind in INDEPENDENT:
        yield "non-differentiable", "its output holds no value of a differentiable input", "registry.py"
    if kind in REFUSED:
        yield "refused", REFUSED[kind], "decisions.py"


def markdown(table: list[Decision]) -> str:
    """docs/operators.md: how many operators have which decision, and the whole table."""
    counts = Counter(d.decision for d in table)
    summary = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
    rows = (f"| {f'{d.domain}::{d.op}' if d.domain else d.op} | {d.decision} | {d.reason} |" for d in table)
    return (
        f"""# What becomes of every operator's derivative

Made by `onnxcam ops --markdown` with onnx {metadata.version("onnx")}: {len(table)} operators, {summary}.
`expanded` differentiates the function body in the operator's schema; `non-differentiable` is a gradient of zero on
purpose; `refused` is the designed error, naming the operator and this reason.

| operator | decision | why, or the rule |
|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )
