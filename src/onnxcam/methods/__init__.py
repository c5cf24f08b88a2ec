"""Methods: how activations A and gradients G become the weights alpha of a saliency map."""

# The order of the table.
# isort: off
from onnxcam.methods import gradient, ablation, masked, attribution, fullgrad, baseline
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
    "attribution",
    "baseline",
    "explained_by",
    "find_method",
    "fullgrad",
    "gradient",
    "looped",
    "masked",
    "method",
    "possible_methods",
]
