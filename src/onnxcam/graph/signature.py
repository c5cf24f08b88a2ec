"""What the model takes: which input is the picture, its layout, size, type and quantisation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxcam.errors import ModelError, UnsupportedError, UsageError
from onnxcam.graph.beside import Beside
from onnxcam.graph.index import Dim, Shape, value_type
from onnxcam.graph.load import declared_inputs

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class ImageInput:
    """The picture input: `layout` is nchw or nhwc; open sizes are None; `batch` None means any number of pictures.

    sides: 2 of a picture (H, W), 1 of a signal (L,), 3 of a volume (D, H, W). A signal counts as a picture of one row,
    a volume as its slices one below the other, of `height` D H; there `layout` says channels first or last.
    others: the inputs beside it, with what they are fed.
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
    sides: int = 2
    depth: int | None = None
    others: Mapping[str, Beside] = field(default_factory=dict)

    def feeds(self, x: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """What the model is fed for samples x (n, ...): those, and the values of the other inputs."""
        return {self.name: x, **{name: other.rows(len(x)) for name, other in self.others.items()}}

    def shapes(self, size: tuple[int, int]) -> dict[str, list[Dim]]:
        """The shapes of all inputs for pictures of `size` (H, W)."""
        return {self.name: self.bound(size), **{name: other.bound for name, other in self.others.items()}}

    def bound(self, size: tuple[int, int]) -> list[Dim]:
        """The input's shape for pictures of `size` (H, W); an open batch stays symbolic, as `N`."""
        batch: Dim = self.batch if self.batch is not None else "N"
        sides = self.spatial(size)
        return [batch, self.channels, *sides] if self.layout == "nchw" else [batch, *sides, self.channels]

    def spatial(self, size: tuple[int, int]) -> tuple[int, ...]:
        """`size` (H, W) as the input has it: (H, W), (L,) or (D, H, W)."""
        if self.sides == 2:
            return size
        return (size[1],) if self.sides == 1 else (self.depth or 1, size[0] // (self.depth or 1), size[1])

    def asked(self, size: Sequence[int]) -> tuple["ImageInput", tuple[int, int]]:
        """The input and (H, W) where (H, W), (L,) or (1, L), or (D, H, W) is asked for.

        Raises: UsageError for another number of sides.
        """
        size = size[1:] if self.sides == 1 and len(size) == 2 and size[0] == 1 else size
        if len(size) != self.sides:
            names = {1: "(L,)", 2: "(H, W)", 3: "(D, H, W)"}[self.sides]
            raise UsageError(f"`{self.name}` takes sizes {names}, not {tuple(size)}", f"give {self.sides} numbers")
        depth = size[0] if self.sides == 3 else None
        return replace(self, depth=depth), (math.prod(size[:-1]), size[-1])

    @property
    def lies(self) -> str:
        """The layout with its own sides: nchw, nhwc, ncl, nlc, ncdhw or ndhwc."""
        return _LAYOUTS[self.sides][self.layout == "nhwc"]

    @property
    def plane(self) -> str:
        """What it takes, in words."""
        return {1: "signals", 2: "pictures", 3: "volumes"}[self.sides]


def image_input(model: ModelProto, name: str, layout: str | None = None, wanted: str | None = None) -> ImageInput:
    """Find the input that takes the picture: rank 4; else a volume, rank 5, or a signal, rank 3.

    layout: `nchw` or `nhwc` where the shape does not tell; `ncl`, `nlc`, `ncdhw`, `ndhwc` of signals and volumes.
    Channels last are recognised by a last axis of 1 or 3 whose second axis is neither, or by what reads the input.

    wanted: the input's name where several could be the picture.

    Raises: ModelError where no input looks like a picture, or several do; UsageError for an unknown name.
    """
    inputs = {i.name: value_type(i) for i in declared_inputs(model)}
    if wanted is not None and wanted not in inputs:
        raise UsageError(f"the model has no input `{wanted}`", f"its inputs: {', '.join(f'`{n}`' for n in inputs)}")
    shapes = {
        n: t.shape
        for n, t in inputs.items()
        if t.shape is not None and len(t.shape) in (3, 4, 5) and wanted in (None, n)
    }
    listing = ", ".join(f"`{n}` {list(t.shape) if t.shape is not None else '?'}" for n, t in inputs.items())
    if not shapes:
        raise ModelError(
            f"{name} has no picture input: {listing or 'it has no inputs'}",
            "onnxcam explains models with one input: a picture (N, C, H, W) or (N, H, W, C), a signal (N, C, L), or a "
            "volume (N, C, D, H, W)",
        )
    ranked = {n: s for rank in (4, 5, 3) for n, s in shapes.items() if len(s) == rank}
    likely = [n for n, s in ranked.items() if len(s) == 4 and {s[1], s[-1]} & {*_CHANNELS}] or list(ranked)
    if len(likely) > 1 and len(ranked[likely[1]]) == len(ranked[likely[0]]):
        raise ModelError(f"{name} has several inputs that could be the picture: {listing}", "say which: `--input NAME`")
    value, shape = likely[0], ranked[likely[0]]
    sides = len(shape) - 2
    if layout is None:
        layout = _channels_last(model, value, shape)
    elif layout not in _LAYOUTS[sides]:
        expected = " or ".join(f"`{known}`" for known in _LAYOUTS[sides])
        raise UsageError(f"unknown input layout `{layout}`", f"use {expected}")
    last = layout in ("nhwc", "nlc", "ndhwc")
    batch, *rest = (d if isinstance(d, int) and d > 0 else None for d in shape)
    channels, *lengths = rest if not last else (rest[-1], *rest[:-1])
    depth = lengths[0] if sides == 3 else None
    above = [d for d in lengths[:-1] if d is not None]
    height = math.prod(above) if len(above) == sides - 1 else None
    if inputs[value].dtype not in TensorProto.DataType.values()[1:]:
        raise ModelError(f"{name}: input `{value}` has the unknown type {inputs[value].dtype}", "export it again")
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(inputs[value].dtype)).name
    inside = _inside(model, value, channels or 3) if np.dtype(kind).kind == "f" and sides == 2 else None
    where = "nhwc" if last else "nchw"
    of_color = channels or (3 if sides == 2 else 1)
    quantization = _quantization(model, value)
    return ImageInput(value, kind, where, of_color, height, lengths[-1], batch, quantization, inside, sides, depth)


_LAYOUTS = {1: ("ncl", "nlc"), 2: ("nchw", "nhwc"), 3: ("ncdhw", "ndhwc")}


def _channels_last(model: ModelProto, value: str, shape: Shape) -> str:
    """The input's layout by its shape, or, of signals, by what reads it first."""
    first, last = _LAYOUTS[len(shape) - 2]
    if len(shape) == 5 and shape[2] in _CHANNELS and not {shape[1], shape[4]} & {*_CHANNELS}:
        raise UnsupportedError(
            f"`{value}` {list(shape)} seems to take frames before channels, (N, T, C, H, W)",
            "export the model with channels first (N, C, T, H, W); where it is so, say `--input-layout ncdhw`",
        )
    if len(shape) > 3:
        return last if shape[-1] in _CHANNELS and shape[1] not in _CHANNELS else first
    reader = next((n for n in model.graph.node if value in n.input), None)
    if reader is not None and reader.op_type == "Unsqueeze" and len(reader.input) > 1:
        axes = _constants(model).get(reader.input[1])
        return last if axes is not None and numpy_helper.to_array(axes).reshape(-1).tolist() == [1] else first
    return last if reader is not None and reader.op_type in ("Transpose", "MatMul") else first


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
