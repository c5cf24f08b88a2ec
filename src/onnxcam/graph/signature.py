"""What the model takes: which input is the picture, its layout, size, type and quantisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxcam.errors import ModelError, UsageError
from onnxcam.graph.index import Dim, value_type
from onnxcam.graph.load import declared_inputs

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class ImageInput:
    """The picture input: `layout` is nchw or nhwc; open sizes are None; `batch` None means any number of pictures.

    inside: where the graph starts by normalising a float picture, the factor on pixels 0..255 that it expects: 1 or
    1/255.
    """

    name: str
    dtype: str
    layout: str
    channels: int
    height: int | None
    width: int | None
    batch: int | None
    quantization: tuple[float, int] | None
    inside: float | None = None

    def bound(self, size: tuple[int, int]) -> list[Dim]:
        """The input's shape for pictures of `size` (H, W); an open batch stays symbolic, as `N`."""
        batch: Dim = self.batch if self.batch is not None else "N"
        return [batch, self.channels, *size] if self.layout == "nchw" else [batch, *size, self.channels]


def image_input(model: ModelProto, name: str, layout: str | None = None) -> ImageInput:
    """Find the input that takes the picture: rank 4, with 1 or 3 channels first or last.

    layout: `nchw` or `nhwc` where the shape does not tell. Channels last are recognised by a last axis of 1 or 3
    whose second axis is neither.

    Raises: ModelError where no input looks like a picture, or other inputs would have to be fed too.
    """
    inputs = {i.name: value_type(i) for i in declared_inputs(model)}
    found = [(n, t.shape, t.dtype) for n, t in inputs.items() if t.shape is not None and len(t.shape) == 4]
    listing = ", ".join(f"`{n}` {list(t.shape) if t.shape is not None else '?'}" for n, t in inputs.items())
    if not found:
        raise ModelError(
            f"{name} has no picture input: {listing or 'it has no inputs'}",
            "onnxcam explains models with one input of rank 4, (N, C, H, W) or (N, H, W, C)",
        )
    if len(inputs) > 1:
        raise ModelError(
            f"{name} needs {len(inputs)} inputs: {listing}",
            "onnxcam explains models with one input, the picture; give the others fixed values in the file",
        )
    value, shape, dtype = found[0]
    if layout is None:
        layout = "nhwc" if shape[3] in _CHANNELS and shape[1] not in _CHANNELS else "nchw"
    elif layout not in ("nchw", "nhwc"):
        raise UsageError(f"unknown input layout `{layout}`", "use `nchw` or `nhwc`")
    batch, *rest = (d if isinstance(d, int) and d > 0 else None for d in shape)
    channels, height, width = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(dtype)).name
    quantization, inside = _quantization(model, value), _inside(model, value, channels or 3)
    if np.dtype(kind).kind != "f":
        inside = None
    return ImageInput(value, kind, layout, channels or 3, height, width, batch, quantization, inside)


def _quantization(model: ModelProto, value: str) -> tuple[float, int] | None:
    """Scale and zero point of the DequantizeLinear that reads an integer input, through Transposes."""
    constants = _constants(model)
    reached = {value}
    for node in model.graph.node:
        if node.op_type in ("Transpose", "Identity") and node.input[0] in reached:
            reached.add(node.output[0])
        if node.op_type == "DequantizeLinear" and node.input[0] in reached:
            scale = _scalar(constants, node.input[1:2])
            zero = _scalar(constants, node.input[2:3])
            return None if scale is None else (scale, int(zero or 0))
    return None


_MOVES = ("Cast", "DequantizeLinear", "Gather", "Identity", "QuantizeLinear", "Resize", "Slice", "Transpose")


def _inside(model: ModelProto, value: str, channels: int) -> float | None:
    """What pixels a normalisation at the start of the graph expects, by where its mean lies and how wide it spreads.

    The picture's only reader, and so on, are followed while they move values or add, subtract, multiply or divide by
    constants per channel: y = a x + b, which is 0 at the mean. A mean within 0..1 under a factor of at least 1 is one
    of pixels in 0..1, a mean of 2 to 255 one of pixels 0..255; a factor alone is one of either where it makes them 0..1
    to 0..5, or 0..100 and more. Anything else, a BatchNorm included, may work on what was normalised before.
    """
    constants = _constants(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    a, b, steps = np.ones(1), np.zeros(1), 0
    while len(readers.get(value, ())) == 1:
        (node,) = readers[value]
        if node.op_type in ("Add", "Sub", "Mul", "Div") and len(node.input) == 2:
            first = node.input[0] == value
            tensor = constants.get(node.input[1 if first else 0])
            if tensor is None or (node.op_type == "Div" and not first):
                break
            number = numpy_helper.to_array(tensor).astype(np.float64).reshape(-1)
            if number.size not in (1, channels):
                break
            if node.op_type in ("Mul", "Div"):
                factor = number if node.op_type == "Mul" else 1 / number
                a, b = a * factor, b * factor
            elif node.op_type == "Add":
                b = b + number
            else:
                a, b = (a, b - number) if first else (-a, number - b)
            steps += 1
        elif node.op_type not in _MOVES or node.input[0] != value:
            break
        value = node.output[0]
    if not steps or not (np.isfinite(a).all() and (a > 0).all()):
        return None
    zero = -b / a
    if (((zero > 0) & (zero < 1) & (a >= 1)) | ((zero == 0) & (a >= 100))).all():
        return 1 / 255
    if (((zero >= 2) & (zero <= 255) & (a >= 0.99 / 255)) | ((zero == 0) & (a >= 0.99 / 255) & (a <= 0.02))).all():
        return 1.0
    return None


def _constants(model: ModelProto) -> dict[str, TensorProto]:
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _scalar(constants: Mapping[str, TensorProto], names: Sequence[str]) -> float | None:
    if not names or names[0] not in constants:
        return None
    array = numpy_helper.to_array(constants[names[0]])
    return float(array.reshape(-1)[0]) if array.size == 1 else None
