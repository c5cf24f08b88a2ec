"""Damage of many kinds, drawn from a `random.Random`: to bytes, to protobuf messages field by field, to JSON values."""

import json
import math
from collections.abc import Iterator, MutableSequence
from copy import deepcopy
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper

_INTEGERS = (0, 1, -1, 2, 3, 7, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63), -2, 4096)
_FLOATS = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 3.4e38, 1e308)
_TEXTS = (
    "",
    "x",
    "\0",
    "a" * 100_000,
    "../../etc/passwd",
    "/dev/zero",
    "é𝕏‮",
    "<script>&\"'",
    "NaN",
    "-1",
    "%s{0}",
    "N",
)


def damaged(data: bytes, rng: Random) -> bytes:
    """Bytes with one to eight flips, cuts, insertions, repetitions; or cut short; or swapped parts."""
    array = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not array:
            break
        at = rng.randrange(len(array))
        length = min(rng.choice((1, 1, 2, 4, 16, 256)), len(array) - at)
        match rng.randrange(7):
            case 0:
                array[at] ^= 1 << rng.randrange(8)
            case 1:
                array[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del array[at : at + length]
            case 3:
                array[at:at] = rng.randbytes(length)
            case 4:
                array[at:at] = array[at : at + length] * rng.choice((1, 2, 50))
            case 5:
                array[at : at + length] = rng.choice((b"\0", b"\xff")) * length
            case 6:
                del array[at:]
    return bytes(array)


def damaged_model(data: bytes, rng: Random) -> bytes:
    """A model with damage to its fields: nodes lost, doubled and swapped, other types, sizes, names, numbers."""
    model = ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice((_damage_field, _damage_field, _damage_field, _swap, _rewire, _rewire, _deepen, _enlarge))(
            model, rng
        )
    return bytes(model.SerializeToString())


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if _repeated(field) else (value,):
                yield from _messages(inner)


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _damage_field(model: ModelProto, rng: Random) -> None:
    message = rng.choice(list(_messages(model)))
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.8 else message.DESCRIPTOR.fields)
    if _repeated(field):
        _damage_list(getattr(message, field.name), field, model, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE or rng.random() < 0.15:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), model, rng))


def _damage_list(values: Any, field: FieldDescriptor, model: ModelProto, rng: Random) -> None:
    is_message = field.type == FieldDescriptor.TYPE_MESSAGE
    action = rng.randrange(5)
    if not values or action == 0:
        values.add() if is_message else values.append(_scalar(field, None, model, rng))
    elif action == 1:
        del values[rng.randrange(len(values))]
    elif action == 2:
        values.append(values[rng.randrange(len(values))])
    elif action == 3:
        kept = list(values)
        rng.shuffle(kept)
        if is_message:
            kept = [type(v).FromString(v.SerializeToString()) for v in kept]
        del values[:]
        values.extend(kept)
    elif is_message:
        del values[:]
    else:
        at = rng.randrange(len(values))
        values[at] = _scalar(field, values[at], model, rng)


def _scalar(field: FieldDescriptor, value: Any, model: ModelProto, rng: Random) -> Any:
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return damaged(value, rng) if value else rng.choice(_TEXTS).encode()
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice((*_TEXTS, *_names(model))) if rng.random() < 0.8 else "Relu"
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }.get(kind, (-(2**63), 2**63 - 1))
    near = [value - 1, value + 1, value * 2] if value is not None else []
    return min(max(rng.choice((*_INTEGERS, *near)), low), high)


def _names(model: ModelProto) -> list[str]:
    return [*(name for node in model.graph.node for name in (*node.input, *node.output)), *_OPERATORS]


_OPERATORS = (
    "Conv Relu Gemm MatMul Softmax Reshape Transpose If Loop Scan Constant ConstantOfShape Expand Tile Pad "
    "Resize Where Gather GatherND ScatterND Slice Split Concat Identity Dropout BatchNormalization Cast TopK "
    "NonMaxSuppression LSTM OneHot Range Squeeze Unsqueeze Einsum MaxPool AveragePool ConvTranspose "
    "DequantizeLinear Clip CumSum Shape Size RandomNormal SequenceAt StringNormalizer Attention Gelu "
    "GroupNormalization Mod Pow Div"
).split()


def _swap(model: ModelProto, rng: Random) -> None:
    """A message takes the content of another of its kind."""
    by_kind: dict[str, list[Message]] = {}
    for message in _messages(model):
        by_kind.setdefault(message.DESCRIPTOR.name, []).append(message)
    kinds = [messages for messages in by_kind.values() if len(messages) > 1]
    if kinds:
        to, source = rng.sample(rng.choice(kinds), 2)
        copy = type(source)()
        copy.CopyFrom(source)  # one may hold the other
        to.CopyFrom(copy)


def _rewire(model: ModelProto, rng: Random) -> None:
    """An input or output, of a node or the graph, becomes another value: cycles, orphans, two producers."""
    nodes = model.graph.node
    if not nodes:
        return
    names = [n for node in nodes for n in (*node.input, *node.output)] + [t.name for t in model.graph.initializer]
    node = rng.choice(nodes)
    ends: MutableSequence[str] = rng.choice((node.input, node.output))
    if rng.random() < 0.3:
        node.op_type = rng.choice(_OPERATORS)
    elif ends and names:
        ends[rng.randrange(len(ends))] = rng.choice(names)


def _deepen(model: ModelProto, rng: Random) -> None:
    """An If in an If in an If."""
    depth = rng.choice((1, 3, 20, 30))  # protobuf parses no more than 100 messages in one another
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["deep"])], "deep", [], [])
    inner.output.add().name = "deep"
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["deep"])
        for name in ("then_branch", "else_branch")[: rng.choice((1, 2)) if depth <= 3 else 1]:
            node.attribute.append(helper.make_attribute(name, inner))
        outer = helper.make_graph([condition, node], "deep", [], [])
        outer.output.add().name = "deep"
        inner = outer
    model.graph.node.insert(rng.randrange(len(model.graph.node) + 1), inner.node[1])
    model.graph.node.insert(0, condition)


def _enlarge(model: ModelProto, rng: Random) -> None:
    """A value that is computed as very large, or a size of the input that is."""
    side = rng.choice((0, 1, 2**10, 2**15, 2**20, 2**31, 2**40, -1))
    if rng.random() < 0.5 and model.graph.input and model.graph.node:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        if dims:
            rng.choice(dims).dim_value = side
        return
    shape = helper.make_tensor("large", TensorProto.INT64, [2], [side, rng.choice((1, side))])
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["large"], ["zeros"]))
    if len(model.graph.node) > 1 and model.graph.node[1].output:
        made = model.graph.node[1].output[0]
        model.graph.node[1].output[0] = "before"
        model.graph.node.insert(2, helper.make_node("ReduceMax", ["zeros"], ["top"], keepdims=0))
        model.graph.node.insert(3, helper.make_node("Add", ["before", "top"], [made]))


_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 224, 10**6, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, math.nan, math.inf, "", "0",
    "nan", "\0", "\ud800", "x" * 10_000, [], {}, [[]], [None], [1, 2, 3, 4], [224, 224], {"": None}, [0, 0],
    {"height": 0, "width": -3}, {"shortest_edge": 10**9}, ["a", 1],
)  # fmt: skip


def damaged_json(value: Any, rng: Random) -> Any:
    """A JSON value with a part replaced, lost, doubled, or renamed."""
    places = [None, *_places(value)]
    place = rng.choice(places)
    if place is None:
        return deepcopy(rng.choice(_VALUES)) if rng.random() < 0.2 else value
    holder, key = place
    action = rng.random()
    if action < 0.6:
        holder[key] = deepcopy(rng.choice(_VALUES))
    elif action < 0.75:
        del holder[key]
    elif isinstance(holder, dict):
        other = rng.choice(("", "x", *holder))
        holder[other] = holder.pop(key)
    else:
        holder.insert(rng.randrange(len(holder) + 1), deepcopy(holder[key]))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


def damaged_text(value: Any, rng: Random) -> bytes:
    """JSON text of a value: with values replaced, bytes damaged, or nested beyond any use."""
    kind = rng.random()
    if kind < 0.1:
        depth = rng.choice((100, 900, 5_000, 200_000))
        left, right = rng.choice((("[", "]"), ('{"a":', "}"), ('{"size":', "}")))
        return ((left * depth + "1") + right * rng.choice((depth, 0))).encode()
    copy = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 4))):
        copy = damaged_json(copy, rng)
    text = json.dumps(copy, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged(text, rng) if kind < 0.4 else text
