"""Methods: how activations A and gradients G become the weights alpha of a saliency map."""

from onnxcam.methods import gradient
from onnxcam.methods.registry import METHODS, Method, MethodContext, explained_by, find_method, method

__all__ = ["METHODS", "Method", "MethodContext", "explained_by", "find_method", "gradient", "method"]
