"""Methods: how activations A and gradients G become the weights alpha of a saliency map."""

from onnxcam.methods import ablation, baseline, gradient, masked
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
    "baseline",
    "explained_by",
    "find_method",
    "gradient",
    "looped",
    "masked",
    "method",
    "possible_methods",
]
