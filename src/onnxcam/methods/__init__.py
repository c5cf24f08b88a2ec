"""Methods: how activations A and gradients G become the weights alpha of a saliency map."""

from onnxcam.methods import ablation, gradient
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
    "explained_by",
    "find_method",
    "gradient",
    "looped",
    "method",
    "possible_methods",
]
