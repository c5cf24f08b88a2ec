"""Methods: how activations A and gradients G become the weights alpha of a saliency map."""

# The order of the table.
# isort: off
from onnxcam.methods import gradient, ablation, attention, factorization, masked, attribution, smooth
from onnxcam.methods import fullgrad, baseline

# isort: on
from onnxcam.methods.loop import Loop
from onnxcam.methods.registry import (
    METHODS,
    Method,
    MethodContext,
    Option,
    explained_by,
    find_method,
    looped,
    method,
    possible_methods,
)

__all__ = [
    "METHODS",
    "Loop",
    "Method",
    "MethodContext",
    "Option",
    "ablation",
    "attention",
    "attribution",
    "baseline",
    "explained_by",
    "factorization",
    "find_method",
    "fullgrad",
    "gradient",
    "looped",
    "masked",
    "method",
    "possible_methods",
    "smooth",
]
