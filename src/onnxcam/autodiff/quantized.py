"""Rules of quantised operators: straight through the rounding, nothing where a value saturated.

Rounding has no useful derivative, so it is taken as the identity, and a value that was clipped to the integer type's
range lets nothing through (straight-through estimator: Bengio et al., 2013, arXiv:1308.3432; with the range, Jacob et
al., 2018, arXiv:1712.05877). Three conventions hold everywhere:

* The cotangent of a quantised tensor q (8 bits, 16, 4) is that of the real value it stands for, scale * (q - zero
  point), in the builder's float type. So DequantizeLinear passes its cotangent through, and MaxPool, Reshape, Concat
  and the like on integers need no rules of their own. A 32-bit accumulator, and any integer that no quantisation made
  (a uint8 picture), stands for itself.
* Saturation. QuantizeLinear sees the real value: it lets through where round(x / scale) + zero point is in the type's
  range, ends included. An operator with quantised output (QLinearConv) shows only that output, and a ReLU may be fused
  into its range: it lets through where q is strictly inside the range. The half step next to a ReLU's kink, which
  rounds to 0, is therefore closed here and open in the graph with QuantizeLinear and DequantizeLinear.
* The logits are never cut: the winner's often lies at the end of its range, and there is nothing fused into them.

Scales and zero points get no gradient, also where they depend on the input (DynamicQuantizeLinear).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnxcam.autodiff.compose import apply_rule
from onnxcam.autodiff.elementwise import mask
from onnxcam.autodiff.engine import INTEGERS, Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.errors import UnsupportedError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import logit_values
from onnxcam.graph.index import Graph, Node

_LARGEST = {"FLOAT8E4M3FN": 448.0, "FLOAT8E4M3FNUZ": 240.0, "FLOAT8E5M2": 57344.0, "FLOAT8E5M2FNUZ": 57344.0,
            "FLOAT4E2M1": 6.0}  # fmt: skip


def value_range(dtype: int) -> tuple[float, float]:
    """Smallest and largest value of a quantised type."""
    name = TensorProto.DataType.Name(dtype)
    if name in _LARGEST:
        return -_LARGEST[name], _LARGEST[name]
    integer = re.fullmatch(r"(U?)INT(\d+)", name)
    if integer is None:
        raise ValueError(f"{name} is not a quantised type")
    unsigned, bits = bool(integer[1]), int(integer[2])
    return (0.0, 2.0**bits - 1) if unsigned else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


@vjp("QuantizeLinear", "com.microsoft::QuantizeLinear", wrt=(0,))
def quantize_linear(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy where round(x / scale) + zero point is in the type's range, ends included."""
    dtype = node.dtype(2) if node.has(2) else node.attrs.get("output_dtype") or node.output_dtype()
    low, high = value_range(dtype or TensorProto.UINT8)
    if _never_saturates(node, low, high):
        return (dy,)
    x, scale = op.Cast(node.inputs[0], to=op.dtype), op.Cast(node.inputs[1], to=op.dtype)
    level = op.Div(x, _aligned(op, node, scale))
    if dtype is None or TensorProto.DataType.Name(dtype) not in _LARGEST:
        level = op.Round(level)
    if node.has(2):
        level = op.Add(level, _aligned(op, node, op.Cast(node.inputs[2], to=op.dtype)))
    return (op.Mul(dy, mask(op, op.Equal(op.Clip(level, op.floats(low), op.floats(high)), level))),)


def _never_saturates(node: Primal, low: float, high: float) -> bool:
    """Whether the range of what is quantised is known and fits: then no mask reads it, and runtimes fuse around it."""
    scale, zero = node.constant(1), node.constant(2) if node.has(2) else np.zeros(())
    bounds = _bounds(node.graph, node.node.inputs[0])
    if scale is None or zero is None or scale.size != 1 or bounds is None:
        return False
    levels = [round(bound / scale.item()) + float(zero.item()) for bound in bounds]
    return bool(low <= levels[0] and levels[1] <= high)


_AVERAGES = ("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
_MOVED = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")


def _bounds(graph: Graph, value: str) -> tuple[float, float] | None:
    """The least and largest value that a value can have, of those that a quantised one was averaged or moved to."""
    node = graph.producer(value)
    if node is not None and node.kind in (*_AVERAGES, *_MOVED):
        found = _bounds(graph, node.inputs[0])
        if found is not None and node.kind == "AveragePool":  # padding may count
            return min(found[0], 0.0), max(found[1], 0.0)
        return found
    if node is None or node.kind != "DequantizeLinear":
        return None
    scale, zero_point = (graph.constant(v) if v else np.zeros(()) for v in (node.inputs[1], _at(node, 2)))
    if scale is None or zero_point is None or scale.size != 1 or zero_point.size != 1 or scale.item() <= 0:
        return None
    step, zero = float(scale.item()), float(zero_point.item())
    low, high = value_range(graph.dtype(node.inputs[0]))
    return step * (low - zero), step * (high - zero)


def _aligned(op: Builder, node: Primal, value: str) -> str:
    """A scale or zero point, per tensor, per axis or per block, broadcastable against the node's input."""
    shape = node.shape(1)
    if shape is None:
        raise node.unsupported("the rank of its scale is unknown")
    if shape in ((), (1,)):
        return value
    rank = node.rank(0)
    axis = node.attrs.get("axis", 1) % rank
    if len(shape) == 1 and not node.attrs.get("block_size"):
        return str(op.Reshape(value, [-1 if a == axis else 1 for a in range(rank)]))
    (size,), block = node.static(0, [axis]), node.attrs["block_size"]
    return str(op.Gather(value, op.constant(np.arange(size) // block), axis=axis))


@vjp("DequantizeLinear", "com.microsoft::DequantizeLinear", wrt=(0,))
def dequantize_linear(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy, for dx is the cotangent of the real value already; times the scale for a 32-bit accumulator."""
    if node.dtype(0) == TensorProto.INT32:
        return (op.Mul(dy, _aligned(op, node, op.Cast(node.inputs[1], to=op.dtype))),)
    return (dy,)


@vjp("Cast", "CastLike", wrt=(0,))
def cast(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy; divided by the scale where a quantised tensor is taken for numbers; None towards integers."""
    if node.output_dtype() in INTEGERS:
        return (None,)
    return (_per_real(op, node, 0, dy) if node.dtype(0) in INTEGERS else dy,)


@vjp("DynamicQuantizeLinear")
def dynamic_quantize_linear(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy: the range is chosen so that nothing saturates."""
    return (dy,)


@dataclass(frozen=True)
class Quantization:
    """What an integer tensor stands for: scale * (q - zero point), as value names; "" is a zero point of 0."""

    scale: str
    zero_point: str
    axis: int


def quantization(graph: Graph, value: str) -> Quantization | None:
    """The quantisation of an integer tensor, from the node that made it or one that reads it; None if there is none.

    Operators that only move or choose values (MaxPool, Reshape, ...) are looked through.
    """
    seen = {value}
    pending = [value]
    while pending:
        name = pending.pop(0)
        producer = graph.producer(name)
        if producer is not None and (found := _declared(producer, name)) is not None:
            return found
        for node in graph.consumers(name):
            if node.op_type == "DequantizeLinear" and node.inputs[0] == name and graph.dtype(name) != TensorProto.INT32:
                return Quantization(node.inputs[1], _at(node, 2), node.attrs.get("axis", 1))
        near = [producer.inputs[0]] if producer is not None and producer.kind in _MOVERS else []
        near += [n.outputs[0] for n in graph.consumers(name) if n.kind in _MOVERS and n.inputs[0] == name]
        fresh = [n for n in near if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return None


def real_value(op: Builder, value: str) -> str:
    """A value in the builder's float type: other floats are cast, quantised integers dequantised.

    Raises: UnsupportedError for integers whose scale the graph does not tell.
    """
    if op.graph.dtype(value) not in INTEGERS:
        return op.as_float(value)
    found = quantization(op.graph, value)
    if found is None:
        raise UnsupportedError(
            f"`{value}` holds integers whose scale the graph does not tell",
            "choose a float layer; `onnxcam layers MODEL` lists them",
        )
    return op.as_float(str(op.DequantizeLinear(value, found.scale, found.zero_point, axis=found.axis)))


_MOVERS = frozenset(
    [
        "MaxPool",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Identity",
        "Slice",
        "Gather",
        "Pad",
        "Expand",
        "Tile",
        "Concat",
        "Split",
        "Resize",
        "GlobalMaxPool",
        "ReduceMax",
        "DepthToSpace",
        "SpaceToDepth",
        "Dropout",
    ]
)


def _at(node: Node, position: int) -> str:
    return node.inputs[position] if position < len(node.inputs) else ""


def _declared(node: Node, output: str) -> Quantization | None:
    if node.op_type == "QuantizeLinear":
        return Quantization(node.inputs[1], _at(node, 2), node.attrs.get("axis", 1))
    if node.op_type == "DynamicQuantizeLinear" and output == node.outputs[0]:
        return Quantization(node.outputs[1], node.outputs[2], 0)
    twin = TWINS.get(node.kind)
    if twin is not None and twin.result and _at(node, twin.result[0]):
        return Quantization(node.inputs[twin.result[0]], _at(node, twin.result[1]), 0)
    return None


@dataclass(frozen=True)
class Twin:
    """The float operator that a quantised one stands for.

    operands: per operand of the float operator the positions of its value, scale (-1: none, the integers themselves)
    and zero point, and the axis of per-channel ones; a float or 32-bit operand is (position,). result: positions of
    the output's scale and zero point; () where the output is a float or an accumulator.
    """

    float_kind: str
    operands: tuple[tuple[int, ...], ...]
    result: tuple[int, ...]


_UNARY = ((0, 1, 2),)
_BINARY = ((0, 1, 2), (3, 4, 5))

TWINS: dict[str, Twin] = {
    "QLinearConv": Twin("Conv", ((0, 1, 2), (3, 4, 5, 0), (8,)), (6, 7)),
    "com.microsoft::QLinearConv": Twin("Conv", ((0, 1, 2), (3, 4, 5, 0), (8,)), (6, 7)),
    "QLinearMatMul": Twin("MatMul", ((0, 1, 2, -2), (3, 4, 5, -1)), (6, 7)),
    "com.microsoft::QGemm": Twin("Gemm", ((0, 1, 2), (3, 4, 5, -1), (6,)), (7, 8)),
    "com.microsoft::QLinearAdd": Twin("Add", _BINARY, (6, 7)),
    "com.microsoft::QLinearMul": Twin("Mul", _BINARY, (6, 7)),
    "com.microsoft::QLinearWhere": Twin("Where", ((0,), (1, 2, 3), (4, 5, 6)), (7, 8)),
    "com.microsoft::QLinearAveragePool": Twin("AveragePool", _UNARY, (3, 4)),
    "com.microsoft::QLinearGlobalAveragePool": Twin("GlobalAveragePool", _UNARY, (3, 4)),
    "com.microsoft::QLinearSigmoid": Twin("Sigmoid", _UNARY, (3, 4)),
    "com.microsoft::QLinearLeakyRelu": Twin("LeakyRelu", _UNARY, (3, 4)),
    "com.microsoft::QLinearSoftmax": Twin("Softmax", _UNARY, (3, 4)),
    "MatMulInteger": Twin("MatMul", ((0, -1, 2, -2), (1, -1, 3, -1)), ()),
    "ConvInteger": Twin("Conv", ((0, -1, 2), (1, -1, 3, 0)), ()),
    "com.microsoft::DynamicQuantizeMatMul": Twin("MatMul", ((0,), (1, 2, 3, -1)), ()),
    "com.microsoft::MatMulIntegerToFloat": Twin("MatMul", ((0, 2, 4, -2), (1, 3, 5, -1)), ()),
}


class Real(Primal):
    """The node as its float twin: operands and output are the real values that the integers stand for."""

    def __init__(self, op: Builder, node: Primal, twin: Twin, operands: Sequence[tuple[int, ...]]) -> None:
        self._outer, self._twin, self._operands = node, twin, operands
        proto = helper.make_node(twin.float_kind, [node.node.inputs[o[0]] for o in operands], node.node.outputs[:1],
                                 name=node.node.name)  # fmt: skip
        known = node.node.proto.attribute
        proto.attribute.extend(a for a in known if a.name not in ("channels_last", "opset"))
        super().__init__(op, node.graph, Node(proto, node.graph.opset), node.live_values)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self._real(i) for i in range(len(self._operands)))

    @property
    def outputs(self) -> tuple[str, ...]:
        if not self._twin.result:
            return super().outputs
        scale, zero = (self._outer.input(p) for p in self._twin.result)
        return (dequantized(self._op, self.node.outputs[0], scale, zero),)

    def position(self, i: int) -> int:
        """Where the quantised node has the twin's i-th operand."""
        return self._operands[i][0]

    def _real(self, i: int) -> str:
        value, *parameters = self._operands[i]
        q = self._outer.input(value)
        if not parameters:
            return q
        scale, zero, *axis = parameters
        column: list[int] = []
        if axis and any(self._outer.has(p) and self._outer.shape(p) not in ((), (1,)) for p in (scale, zero) if p >= 0):
            column = [1] * self._outer.rank(value)
            column[axis[0]] = -1
        factor = self._outer.input(scale) if scale >= 0 else ""
        return dequantized(self._op, q, factor, self._outer.input(zero), column)

    def constant(self, position: int) -> npt.NDArray[Any] | None:
        value, *parameters = self._operands[position]
        q = self._outer.constant(value)
        if not parameters or q is None:
            return q
        scale, zero, *axis = parameters
        one, none = np.ones(()), np.zeros(())
        s = self._outer.constant(scale) if scale >= 0 else one
        z = self._outer.constant(zero) if self._outer.has(zero) else none
        if s is None or z is None:
            return None
        column = [1] * q.ndim
        if axis:
            column[axis[0]] = -1
        s, z = (a.astype(np.float64).reshape(column if a.size > 1 else ()) for a in (s, z))
        return np.asarray((q.astype(np.float64) - z) * s)


def dequantized(op: Builder, value: str, scale: str, zero_point: str, column: Sequence[int] = ()) -> str:
    """scale * (value - zero point) in the builder's float type; `column` reshapes per-channel parameters.

    Written out instead of as DequantizeLinear, so that a runtime folds it where the value is a weight.
    """
    real = op.Cast(value, to=op.dtype)
    if zero_point:
        zero = op.Cast(zero_point, to=op.dtype)
        real = op.Sub(real, op.Reshape(zero, [*column]) if column else zero)
    if not scale:
        return str(real)
    factor = op.Cast(scale, to=op.dtype)
    return str(op.Mul(real, op.Reshape(factor, [*column]) if column else factor))


def _unsaturated(op: Builder, node: Primal, dy: str, zero_point: int) -> str:
    """dy where the quantised output is strictly inside its type's range; everywhere at the logits."""
    if node.node.outputs[0] in logit_values(node.graph):
        return dy
    low, high = value_range(
        node.dtype(zero_point) if node.has(zero_point) else node.output_dtype() or TensorProto.UINT8
    )
    q = op.Cast(node.node.outputs[0], to=op.dtype)
    return str(op.Mul(dy, mask(op, op.Equal(op.Clip(q, op.floats(low + 1), op.floats(high - 1)), q))))


def _per_real(op: Builder, node: Primal, position: int, dx: str) -> str:
    """From the cotangent of the integers themselves to that of the real values they stand for."""
    found = quantization(node.graph, node.node.inputs[position])
    if found is None:
        return dx
    scale, shape = str(op.Cast(found.scale, to=op.dtype)), node.graph.shape(found.scale)
    if shape not in ((), (1,)):
        rank = node.rank(position)
        scale = str(op.Reshape(scale, [-1 if a == found.axis % rank else 1 for a in range(rank)]))
    return str(op.Div(dx, scale))


def _through_twin(twin: Twin) -> Callable[..., Cotangents]:
    def rule(op: Builder, node: Primal, dy: str) -> Cotangents:
        if node.attrs.get("channels_last"):
            raise node.unsupported("its layout is NHWC, written by ONNX Runtime's optimiser at level ALL",
                                   "save the optimised model at level EXTENDED")  # fmt: skip
        operands = [o for o in twin.operands if node.has(o[0])]
        real = Real(op, node, twin, operands)
        quantised = bool(twin.result) and node.has(twin.result[0])
        dx = _unsaturated(op, node, dy, twin.result[1]) if quantised else dy
        return _placed(op, node, real, twin, dx)

    rule.__doc__ = f"The derivative of {twin.float_kind} at the real values; 0 where the output saturated."
    return rule


def _placed(op: Builder, node: Primal, real: Real, twin: Twin, dy: str) -> Cotangents:
    """The float rule's cotangents at the positions of the quantised operands."""
    placed: dict[int, str | None] = {}
    for i, dx in enumerate(apply_rule(op, real, dy)):
        if dx is not None and real.live(i):
            integers = len(twin.operands[i]) > 1 and twin.operands[i][1] < 0
            placed[real.position(i)] = _per_real(op, node, real.position(i), dx) if integers else dx
    return tuple(placed.get(p) for p in range(max(placed, default=-1) + 1))


for _kind, _twin in TWINS.items():
    vjp(_kind, wrt=tuple(o[0] for o in _twin.operands))(_through_twin(_twin))


@vjp("com.microsoft::QLinearConcat", wrt=tuple(range(2, 2 + 3 * 128, 3)))
def qlinear_concat(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx_i = its part of dy along the axis, 0 where the output saturated."""
    count = (len(node.node.inputs) - 2) // 3
    operands = [(2 + 3 * i, 3 + 3 * i, 4 + 3 * i) for i in range(count)]
    twin = Twin("Concat", tuple(operands), (0, 1))
    return _placed(op, node, Real(op, node, twin, operands), twin, _unsaturated(op, node, dy, 1))
