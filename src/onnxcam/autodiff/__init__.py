"""Symbolic reverse-mode differentiation of ONNX graphs: the engine, and one file of rules per family."""

from onnxcam.autodiff import composite, conv, elementwise, indexing, layout, linear, norm, pooling, reduce, resize
from onnxcam.autodiff.engine import differentiate

__all__ = ["composite", "conv", "differentiate", "elementwise", "indexing", "layout", "linear", "norm", "pooling", "reduce", "resize"]
