"""The table of vector-Jacobian products, and what has none on purpose.

A rule is a function `rule(op, node, *cotangents)` that emits nodes and returns one cotangent, or None, per
differentiable input. Cotangents arrive one per output of the node (None where nothing flows back) and, like every
float a rule handles, have the builder's float type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcam.autodiff.engine import Primal
    from onnxcam.graph.build import Builder

Cotangents = tuple[str | None, ...]
RuleFunction = Callable[..., Cotangents]


@dataclass(frozen=True)
class Rule:
    """One vjp: differentiable input positions (None: all), inputs that the engine un-broadcasts, live outputs."""

    function: RuleFunction
    wrt: tuple[int, ...] | None
    broadcast: tuple[int, ...]
    outputs: tuple[int, ...] | None

    def __call__(self, op: "Builder", node: "Primal", *dys: str | None) -> Cotangents:
        return self.function(op, node, *dys)


RULES: dict[str, Rule] = {}

ALL = -1  # in `broadcast`: every input


def vjp(
    *kinds: str,
    wrt: tuple[int, ...] | None = None,
    broadcast: tuple[int, ...] = (),
    outputs: tuple[int, ...] | None = (0,),
) -> Callable[[RuleFunction], RuleFunction]:
    """Register the rule of an operator (`Conv`, or `com.microsoft::FusedConv`), or of several that share one.

    `wrt`: the input positions that have a derivative; None means all. The rule still returns one entry per input
    up to the last of them. `broadcast`: inputs (or ALL) whose cotangents may keep the output's shape; the engine sums
    them back to the input's. `outputs`: the output positions through which a cotangent can flow; None means all.
    """

    def register(function: RuleFunction) -> RuleFunction:
        for kind in kinds:
            if kind in RULES:
                raise ValueError(f"{kind} has two rules")
            RULES[kind] = Rule(function, wrt, broadcast, outputs)
        return function

    return register


# The gradient of these is zero on purpose: their outputs do not change, or only in jumps, when an input moves.
# A test holds the first group equal to what ONNX's schemas tag wholly non-differentiable, minus MISTAGGED.
NON_DIFFERENTIABLE: frozenset[str] = frozenset(
    """And ArgMax ArgMin BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Ceil
    Equal Floor Greater GreaterOrEqual HammingWindow HannWindow ImageDecoder IsInf IsNaN Less LessOrEqual
    MelWeightMatrix NonZero Not OneHot Or RegexFullMatch Round Shape Sign Size StringConcat StringSplit
    TfIdfVectorizer Xor""".split()
)

# Untagged in the schemas: outputs that hold no value of a differentiable input (shapes, indices, random draws, marks).
INDEPENDENT: frozenset[str] = frozenset(
    """Bernoulli Constant ConstantOfShape EyeLike Hardmax Multinomial NonMaxSuppression OptionalHasElement
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range SequenceEmpty SequenceLength
    StringNormalizer""".split()
)

# Tagged wholly non-differentiable by the schemas although a derivative exists: stopping there would be silently wrong.
MISTAGGED: frozenset[str] = frozenset({"MatMulInteger", "QLinearMatMul", "STFT", "Unique"})
