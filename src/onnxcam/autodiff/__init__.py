"""Symbolic reverse-mode differentiation of ONNX graphs: the engine, and one file of rules per family."""

from onnxcam.autodiff import attention as attention
from onnxcam.autodiff import composite as composite
from onnxcam.autodiff import contrib as contrib
from onnxcam.autodiff import conv as conv
from onnxcam.autodiff import elementwise as elementwise
from onnxcam.autodiff import indexing as indexing
from onnxcam.autodiff import layout as layout
from onnxcam.autodiff import linear as linear
from onnxcam.autodiff import norm as norm
from onnxcam.autodiff import pooling as pooling
from onnxcam.autodiff import quantized as quantized
from onnxcam.autodiff import reduce as reduce
from onnxcam.autodiff import resize as resize
from onnxcam.autodiff.engine import differentiate as differentiate
