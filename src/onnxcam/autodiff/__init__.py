"""Symbolic reverse-mode differentiation of ONNX graphs: the engine, and one file of rules per family."""

from onnxcam.autodiff import conv, elementwise, layout, linear, norm, pooling, reduce
from onnxcam.autodiff.engine import differentiate

__all__ = ["conv", "differentiate", "elementwise", "layout", "linear", "norm", "pooling", "reduce"]
