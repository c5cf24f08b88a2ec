"""Keeps values in blocks of channels between the convolutions that ONNX Runtime computes in that layout.

On CPUs its optimiser holds what convolutions make as (N, C/b, H, W, b), declared as (N, C, H, W), and turns it back for
every operator that it has no such form of: for all the masks and slopes of a backward pass. But an operator that goes
element by element does not care for the order of its elements as long as all its operands have the same; one that moves
whole cells of the picture has the same form one axis further left. This is a pass over the model that the optimiser
leaves behind. The result runs with optimisation switched off.

Values are named as in the model before, where they are (N, C, H, W); their shapes are known from there. No arithmetic
is changed, but that a convolution that adds what it makes to something does so in another order.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxcam.graph.build import tensor_info
from onnxcam.graph.index import Graph, Node, Shape

DOMAIN = "com.microsoft.nchwc"

_COMPARISONS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"})
# Finite where their operands are, as the zeros are that fill up the last block.
_ELEMENTWISE = _COMPARISONS | frozenset(
    {"Add", "Cast", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min", "Mul", "Neg",
     "QuickGelu", "Relu", "Sigmoid", "Sign", "Softplus", "Sub", "Sum", "Tanh", "Where"}
)  # fmt: skip
# What only copies or enlarges a value.
_LATE = frozenset({"Cast", "ReorderInput", "ReorderOutput"})


def uses_blocks(optimised: ModelProto) -> bool:
    """Whether the optimiser holds anything in blocks of channels."""
    return any(node.domain == DOMAIN for node in optimised.graph.node)


def keep_in_blocks(optimised: ModelProto, before: Graph, block: int) -> ModelProto:
    """What ONNX Runtime's optimiser made of `before`, with fewer turns between layouts and masks made early.

    block: b, the channels that lie side by side. The nodes are in the order in which they are best run.
    """
    model = ModelProto()
    model.CopyFrom(optimised)
    blocks = _Blocks(optimised, before, block)
    nodes = list(blocks.rewritten())
    constants = [constant for _, made in nodes for constant in made]
    del model.graph.node[:]
    made = masks_early(_sums_in_convolutions([node for node, _ in nodes], blocks.sums))
    model.graph.node.extend(made)
    model.graph.initializer.extend(constants)
    summed = {
        v for node in made if node.domain == DOMAIN and len(node.input) == 4 for v in (node.input[3], node.output[0])
    }
    model.graph.value_info.extend(v for v in blocks.declared if v.name in summed)
    return model


class _Blocks:
    """Which nodes can work on blocks, which do so with profit, and what they become."""

    def __init__(self, optimised: ModelProto, before: Graph, block: int) -> None:
        self._nodes = list(optimised.graph.node)
        self._constants = {t.name: t for t in optimised.graph.initializer}
        self._outputs = {o.name for o in optimised.graph.output}
        self._shape: Callable[[str], Shape | None] = before.shape
        self._dtype: Callable[[str], int] = before.dtype
        self._b = block
        self._producer = {o: i for i, node in enumerate(self._nodes) for o in node.output if o}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for i, node in enumerate(self._nodes):
            for value in dict.fromkeys(_reads(node)):
                self._readers[value].append(i)
        suffixes = ("/blocks" + "_" * n for n in range(len(self._producer) + 1))
        self._suffix = next(s for s in suffixes if not any(value.endswith(s) for value in self._producer))
        # The names under which values of (N, C, H, W) lie in blocks.
        self._turned_back = {n.output[0]: n for n in self._nodes if _turns(n, "ReorderOutput")}
        self._held = self._profitable()
        # By what it makes, what is put together of one phase and zeros, with the Pad that makes the zeros.
        self._spaced = {
            n.output[0]: pad for i, n in enumerate(self._nodes) if (pad := self._first_phase(i)) is not None
        }
        self.sums: set[str] = set()  # what two values of one shape add up to, in blocks
        # Values made in blocks, in whole ones: ONNX Runtime reuses memory only where it knows that sizes are the same.
        self.declared: list[ValueInfoProto] = []

    def _data(self, node: NodeProto) -> list[str]:
        """The operands that have more than one element, but for constants that say how."""
        operands = node.input[:1] if node.op_type in ("Expand", "Pad", "ReduceSum", "Slice") else node.input
        return [v for v in dict.fromkeys(operands) if v and not self._is_scalar(v)]

    def _is_scalar(self, value: str) -> bool:
        known = self._constants.get(value)
        shape = known.dims if known is not None else self._shape(value)
        return shape is not None and all(d == 1 for d in shape)

    def _map(self, value: str) -> tuple[int, int, int] | None:
        """C, H and W of a (N, C, H, W) value that can be turned into blocks."""
        shape = self._shape(value) or ()
        sizes = [d for d in shape[1:] if isinstance(d, int)]
        if len(shape) != 4 or len(sizes) != 3 or sizes[0] % 4 or value in self._constants:
            return None
        return sizes[0], sizes[1], sizes[2]

    def _lies_the_same(self, value: str) -> bool:
        """Whether a value, of one cell in whole blocks, is the same in both layouts."""
        c, h, w = self._map(value) or (1, 1, 1)
        return h == w == 1 and c % self._b == 0

    def _is_spread(self, value: str, over: str) -> bool:
        """Whether a value has one cell, which stands for all of another's."""
        return self._lies_the_same(value) and (self._map(value) or (0,))[0] == (self._map(over) or (1,))[0]

    def _can(self, node: NodeProto) -> bool:
        if node.domain not in ("", "com.microsoft") or len(node.output) != 1:
            return False
        made = node.output[0]
        data, maps = self._data(node), [self._map(v) for v in (*self._data(node), made)]
        if not data or None in maps or (self._lies_the_same(made) and node.op_type != "ReduceSum"):
            return False
        if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") not in (
            TensorProto.FLOAT,
            TensorProto.BOOL,
        ):
            return False
        if node.op_type in _ELEMENTWISE:
            return all(self._map(v) == self._map(made) or self._is_spread(v, made) for v in data)
        # Whole blocks only: cells are moved with all of their channels.
        if any(found and found[0] % self._b for found in maps):
            return False
        if node.op_type == "Pad":
            constant = all(a.s == b"constant" for a in node.attribute)
            pads = self._numbers(node, 1) if constant and not "".join(node.input[3:]) else None
            return pads is not None and not any((pads[0], pads[4], pads[1] % self._b, pads[5] % self._b))
        if node.op_type == "Slice":
            numbers = [self._numbers(node, i) for i in range(1, len(node.input))]
            return len(numbers) > 2 and None not in numbers and {2, 3}.issuperset(numbers[2] or ())
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "ReduceSum":
            axes = self._numbers(node, 1) if len(node.input) == 2 else None
            return axes is not None and {a % 4 for a in axes} == {2, 3} and self._is_spread(made, data[0])
        if node.op_type == "Expand":
            return self._is_spread(data[0], made)
        if node.op_type == "DepthToSpace":
            return bool(attributes.get("mode", b"DCR") == b"DCR")
        return node.op_type == "Concat" and bool(attributes["axis"] == 1)

    def _first_phase(self, i: int) -> NodeProto | None:
        """The Pad that makes of one phase, and of zeros, all that a DepthToSpace which is held puts together."""
        node = self._nodes[i]
        if node.op_type != "DepthToSpace" or i not in self._held:
            return None
        made = self._producer.get(node.input[0], -1)
        pad = self._nodes[made]
        if made not in self._held or pad.op_type != "Pad" or len(self._readers[node.input[0]]) > 1:
            return None
        pads, (phase, _, _) = self._numbers(pad, 1) or [], self._map(pad.input[0]) or (0, 0, 0)
        s, value = helper.get_node_attr_value(node, "blocksize"), "".join(pad.input[2:3])
        zeros = not value or (value in self._constants and not numpy_helper.to_array(self._constants[value]).any())
        return pad if zeros and pads[:4] == [0] * 4 and pads[5] == (s * s - 1) * phase else None

    def _numbers(self, node: NodeProto, position: int) -> list[int] | None:
        """A constant operand that says how, of 4 x 2 sizes at most; None where it is none."""
        known = self._constants.get(node.input[position])
        return None if known is None or math.prod(known.dims) > 8 else [*map(int, numpy_helper.to_array(known).flat)]

    def _profitable(self) -> set[int]:
        """Nodes to hold in blocks: those that can and read such values, less those that would cost more turns."""
        held: set[int] = set()
        for i, node in enumerate(self._nodes):
            read = (v in self._turned_back or self._producer.get(v) in held for v in self._data(node))
            if self._can(node) and (node.op_type == "Expand" or any(read)):
                held.add(i)
        pending = sorted(held)
        while pending:
            i = pending.pop()
            if i in held and (self._cut_off(i, held) or self._gain(i, held) < 0):
                held.discard(i)
                around = [self._producer.get(v) for v in self._data(self._nodes[i])]
                around += self._readers[self._nodes[i].output[0]]
                pending += [n for n in around if n is not None and n in held]
        for part in self._connected(held):
            values = {v for i in part for v in (*self._data(self._nodes[i]), self._nodes[i].output[0])}
            together = sum(self._turns(v, held) for v in values)
            held -= part
            if together < sum(self._turns(v, held) for v in values):
                held |= part
        return held

    def _connected(self, held: set[int]) -> Iterator[set[int]]:
        """The nodes in parts that share no value."""
        left = set(held)
        while left:
            part, pending = set[int](), [left.pop()]
            while pending:
                i = pending.pop()
                part.add(i)
                for value in (*self._data(self._nodes[i]), self._nodes[i].output[0]):
                    near = left.intersection((*self._readers[value], self._producer.get(value, -1)))
                    left -= near
                    pending += near
            yield part

    def _cut_off(self, i: int, held: set[int]) -> bool:
        """Whether a value that is no float would have to be turned, which only floats can be."""
        node, made = self._nodes[i], self._nodes[i].output[0]
        turned = [v for v in self._data(node) if v not in self._turned_back and self._producer.get(v) not in held]
        if made in self._outputs or any(r not in held for r in self._readers[made]):
            turned.append(made)
        return any(self._dtype(v) != TensorProto.FLOAT and not self._lies_the_same(v) for v in turned)

    def _turns(self, value: str, held: set[int]) -> bool:
        """Whether a value has to be turned, if some nodes are held in blocks."""
        if self._lies_the_same(value):
            return False
        readers = [self._nodes[r] for r in self._readers[value] if r not in held]
        plain = value in self._outputs or any(not _turns(node, "ReorderInput") for node in readers)
        if value in self._turned_back or self._producer.get(value) in held:
            return plain
        return len(readers) < len(self._readers[value]) or any(_turns(node, "ReorderInput") for node in readers)

    def _gain(self, i: int, held: set[int]) -> int:
        """Turns saved by holding a node in blocks beside the others."""
        around = (*self._data(self._nodes[i]), self._nodes[i].output[0])
        with_it = sum(self._turns(v, held) for v in around)
        held.discard(i)
        without = sum(self._turns(v, held) for v in around)
        held.add(i)
        return without - with_it

    def rewritten(self) -> Iterator[tuple[NodeProto, list[TensorProto]]]:
        """The nodes in an order that runs, each with the constants that it brings."""
        blocked: dict[str, str] = {}  # (N, C, H, W) value -> its name in blocks, once there
        renamed: dict[str, str] = {}  # what a dropped turn made -> what it is now
        turned: set[str] = set()  # values in blocks that are there as (N, C, H, W) too

        def plain(value: str) -> Iterator[tuple[NodeProto, list[TensorProto]]]:
            if value in blocked and value not in turned:
                turned.add(value)
                back = NodeProto()
                back.CopyFrom(self._turned_back.get(value) or self._turn_back(value))
                back.input[:] = [blocked[value]]
                yield back, []

        def named(value: str) -> str:
            return blocked.get(value, value) if self._lies_the_same(value) else renamed.get(value, value)

        inside = {pad.output[0] for pad in self._spaced.values()}
        for i, node in enumerate(self._nodes):
            if node.output[0] in inside:
                continue
            if _turns(node, "ReorderOutput"):
                blocked[node.output[0]] = renamed.get(node.input[0], node.input[0])
            elif _turns(node, "ReorderInput") and (node.input[0] in blocked or self._lies_the_same(node.input[0])):
                renamed[node.output[0]] = blocked.get(node.input[0], node.input[0])
            elif i in self._held:
                for value in self._data(self._spaced.get(node.output[0], node)):
                    if value not in blocked and not self._lies_the_same(value):
                        blocked[value] = value + self._suffix
                        turned.add(value)
                        turn = helper.make_node("ReorderInput", [value], [blocked[value]], domain=DOMAIN)
                        yield turn, []
                made = node.output[0]
                if not self._lies_the_same(made):
                    blocked[made] = made + self._suffix
                    batch, (c, h, w) = (self._shape(made) or (None,))[0], self._map(made) or (0, 0, 0)
                    whole = [batch, -(-c // self._b) * self._b, h, w]
                    self.declared.append(tensor_info(blocked[made], self._dtype(made), whole))
                yield from self._in_blocks(node, blocked)
            else:
                for value in _reads(node):
                    if value not in node.input or not self._lies_the_same(value):
                        yield from plain(value)
                moved = NodeProto()
                moved.CopyFrom(node)
                moved.input[:] = [named(v) for v in node.input]
                yield moved, []
                if _turns(node, "ReorderInput"):
                    blocked[node.input[0]] = node.output[0]
                    turned.add(node.input[0])
        for value in self._outputs:
            yield from plain(value)

    def _turn_back(self, value: str) -> NodeProto:
        channels, _, _ = self._map(value) or (0, 0, 0)
        return helper.make_node("ReorderOutput", [""], [value], domain=DOMAIN, channels=channels)

    def _in_blocks(self, node: NodeProto, blocked: Mapping[str, str]) -> Iterator[tuple[NodeProto, list[TensorProto]]]:
        made = node.output[0]
        x = self._spaced.get(made, node).input[0]
        y, b = blocked.get(made, made), self._b
        c, h, w = self._map(made) or (0, 0, 0)
        before, below, right = self._map(x) or (0, 0, 0)

        def view(value: str, name: str, shape: Sequence[int]) -> tuple[NodeProto, list[TensorProto]]:
            sizes = numpy_helper.from_array(np.asarray(shape, np.int64), f"{name}/shape")
            return helper.make_node("Reshape", [value, sizes.name], [name]), [sizes]

        def spread(value: str, name: str) -> Iterator[tuple[NodeProto, list[TensorProto]]]:
            everywhere = numpy_helper.from_array(np.asarray([1, c // b, h * w, b], np.int64), f"{name}/cells")
            yield view(blocked.get(value, value), f"{name}/cell", [-1, c // b, 1, b])
            yield helper.make_node("Expand", [f"{name}/cell", everywhere.name], [f"{name}/spread"]), [everywhere]
            yield view(f"{name}/spread", name, [-1, c, h, w])

        # One node on a view of the cells.
        kind, operands, more, attributes = node.op_type, list[str](), list[TensorProto](), dict[str, Any]()
        cells = [-1, before // b, below, right, b]
        if kind == "Pad":
            pads = self._numbers(node, 1) or []
            around = np.asarray([*pads[:4], 0, *pads[4:], 0], np.int64) // ([1, b, 1, 1, 1] * 2)
            more = [numpy_helper.from_array(around, f"{y}/pads")]
            operands = [more[0].name, *node.input[2:3]]
        elif kind == "Slice":
            operands = [*node.input[1:]]
        elif made in self._spaced:
            s, pads = helper.get_node_attr_value(node, "blocksize") - 1, self._numbers(self._spaced[made], 1) or []
            kind, cells = "Pad", [-1, before // b, below, 1, right, 1, b]
            more = [numpy_helper.from_array(np.asarray([0] * 9 + [pads[6], s, pads[7], s, 0], np.int64), f"{y}/pads")]
            operands = [more[0].name]
        elif kind == "DepthToSpace":
            s = helper.get_node_attr_value(node, "blocksize")
            kind, cells = "Transpose", [-1, s, s, c // b, below, right, b]
            attributes = {"perm": [0, 3, 4, 1, 5, 2, 6]}
        elif kind == "ReduceSum":
            cells = [-1, before // b, below * right, b]
            more = [numpy_helper.from_array(np.asarray([2], np.int64), f"{y}/axis")]
            operands = [more[0].name]
        elif kind == "Expand":
            yield from spread(x, y)
            return
        else:
            same = NodeProto()
            same.CopyFrom(node)
            same.output[:] = [y]
            for position, value in enumerate(node.input):
                if value in self._data(node):
                    same.input[position] = blocked.get(value, value)
                    if self._is_spread(value, made):
                        same.input[position] = f"{y}/spread_{position}"
                        yield from spread(value, same.input[position])
            if node.op_type == "Add" and len(self._data(node)) == 2 and len({*map(self._shape, node.input)}) == 1:
                self.sums.add(y)
            yield same, []
            return
        yield view(blocked[x], f"{y}/cells", cells)
        yield helper.make_node(kind, [f"{y}/cells", *operands], [f"{y}/moved"], **attributes), more
        yield view(f"{y}/moved", y, [-1, c, h, w])


def _sums_in_convolutions(nodes: Sequence[NodeProto], sums: Set[str]) -> list[NodeProto]:
    """The nodes that make `sums` left to the convolutions that make a summand, if nothing else reads it."""
    producer = {o: i for i, node in enumerate(nodes) for o in node.output}
    reads = Counter(v for node in nodes for v in _reads(node))
    summed: dict[int, NodeProto | None] = {}
    for i, node in enumerate(nodes):
        if node.output[0] not in sums:
            continue
        for value, other in (node.input, reversed(node.input)):
            made = producer.get(value)
            conv = nodes[made] if made is not None and reads[value] == 1 else None
            plain = conv is not None and conv.domain == DOMAIN and conv.op_type == "Conv" and len(conv.input) < 4
            if conv is not None and plain and all(a.name != "activation" for a in conv.attribute):
                both = NodeProto()
                both.CopyFrom(conv)
                both.input[:] = [*conv.input, *[""] * (3 - len(conv.input)), other]
                both.output[:] = node.output
                summed |= {producer[value]: None, i: both}
                break
    return [kept for i, node in enumerate(nodes) if (kept := summed.get(i, node)) is not None]


def _reads(node: NodeProto) -> tuple[str, ...]:
    return Node(node, 0).reads


def _turns(node: NodeProto, op_type: str) -> bool:
    """Whether a node turns (N, C, H, W) into blocks, or back."""
    last = any(a.name == "channels_last" and a.i for a in node.attribute)
    return bool(node.domain == DOMAIN and node.op_type == op_type and not last)


def masks_early(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes of a graph in another order that runs: truth values at once, copies and casts when they are needed.

    A mask is then made while the activations that it is made of are in the cache, and these are not kept for it, only
    a byte for each of them. All other nodes stay as they are ordered. Linear in the nodes.
    """
    producer = {o: node for node in nodes for o in node.output if o}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    masks: set[str] = set()  # truth values, and what nothing but they are made of
    for node in reversed(nodes):
        read = [reader for value in node.output for reader in readers[value]]
        if node.op_type in _COMPARISONS or (read and all(reader.output[0] in masks for reader in read)):
            masks.add(node.output[0])
        for value in dict.fromkeys(_reads(node)):
            readers[value].append(node)
    ordered: list[NodeProto] = []
    made: set[str] = set()

    def place(node: NodeProto) -> None:
        pending = [node]
        while pending:
            last = pending[-1]
            missing = [producer[v] for v in _reads(last) if v in producer and v not in made]
            if missing and not made.issuperset(last.output):
                pending += missing
                continue
            pending.pop()
            if made.issuperset(last.output):
                continue
            ordered.append(last)
            made.update(last.output)
            following = (reader for value in last.output for reader in readers[value] if reader.output[0] in masks)
            pending += [mask for mask in following if all(v in made for v in _reads(mask) if v in producer)]

    for node in nodes:
        if node.op_type not in _LATE and node.output[0] not in masks:
            place(node)
    for node in nodes:
        place(node)
    return ordered
