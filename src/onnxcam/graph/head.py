"""The end of a classifier: which output holds the class scores, and where its logits are.

A Softmax, LogSoftmax or Sigmoid at the end is stepped over, quantised or not, through the reshapes, transposes, casts
and quantisers that converters put around it: gradients of a saturated probability vanish, those of the logit do not.
For the same reason the logits are the real values before their own quantisation: the winner often lies at the end of
its range.
"""

import math
from dataclasses import dataclass

from onnx import TensorProto

from onnxcam.errors import ModelError, UnsupportedError, UsageError
from onnxcam.graph.index import Graph, Node, Shape

ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")

# What may stand between the model's output and its last activation, or its logits, without changing the ranking.
_PASSIVE = frozenset(
    {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Dropout"}
    | {"QuantizeLinear", "DequantizeLinear"}
)
_DOMAINS = ("", "com.microsoft")
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})

MAX_CLASSES = 2**20
"""Most classes of a model: a limit, for models from elsewhere."""


@dataclass(frozen=True)
class Head:
    """Class scores: the model's `output`, the `logits` behind it, the activation between them (None: raw logits).

    The logits are floats, or the integers of a quantised operator.
    """

    output: str
    logits: str
    activation: str | None
    classes: int


def classifier_head(graph: Graph, output: str | None = None) -> Head:
    """The head of a classifier, at `output` (default: the first output with one score per class).

    Raises: UsageError for an unknown output, UnsupportedError where no output holds one score per class, ModelError
    for more than MAX_CLASSES.
    """
    if output is not None and output not in graph.outputs:
        raise UsageError(f"the model has no output `{output}`", f"its outputs: {output_listing(graph)}")
    heads = [h for o in ((output,) if output else graph.outputs) if (h := _head(graph, o)) is not None]
    if not heads:
        raise UnsupportedError(
            f"no output holds one score per class: {output_listing(graph)}",
            "classifiers have an output (N, classes); of others, `--element` or `--similar-to` says what to explain",
        )
    if heads[0].classes > MAX_CLASSES:
        raise ModelError(
            f"output `{heads[0].output}` holds {heads[0].classes:,} scores, more than {MAX_CLASSES:,} classes",
            "if it is a classifier that you trust, raise `onnxcam.graph.head.MAX_CLASSES`",
        )
    return heads[0]


@dataclass(frozen=True)
class DenseHead:
    """Scores per class and place: the model's `output`, the `logits` (rank 4) behind it, the activation between them.

    class_axis: of the logits, 1 or 3, where an ArgMax or a Softmax tells. decided: the output holds class numbers.
    """

    output: str
    logits: str
    activation: str | None
    class_axis: int | None
    decided: bool


def dense_head(graph: Graph, output: str) -> DenseHead | None:
    """The end of a segmenter at `output`, an ArgMax, a Softmax or Sigmoid and quantisers stepped over; None for others.

    What is only moved is not stepped over, but for what lies between an output and its ArgMax or activation.
    """
    if len(graph.shape(output) or ()) not in (3, 4):
        return None
    value, logits, activation, axis, decided = output, output, None, None, False
    while (node := graph.producer(value)) is not None and node.domain in _DOMAINS:
        ends = _activation(node) if activation is None else None
        argmax = node.op_type == "ArgMax" and not decided and activation is None
        if not (ends or argmax or node.op_type in _PASSIVE):
            break
        value = node.inputs[0]
        rank = len(graph.shape(value) or ())
        if ends or argmax:
            told = None if ends == "Sigmoid" else node.attrs["axis"] % rank if rank else None
            axis = told if axis is None else axis
        if ends or argmax or node.op_type == "QuantizeLinear" or graph.dtype(logits) not in _FLOATS:
            logits = value
        activation, decided = activation or ends, decided or argmax
    if len(graph.shape(logits) or ()) != 4 or graph.dtype(logits) not in _FLOATS:
        return None
    return DenseHead(output, logits, activation, axis, decided)


_OF_LENGTH = frozenset({"Clip", "Max", "Expand", "Add", "Sqrt", "Cast", "Identity", "Unsqueeze", "Reshape"})


def is_normalised(graph: Graph, value: str) -> bool:
    """Whether rows end with being scaled to length 1, as embeddings do and logits do not."""
    while (node := graph.producer(value)) is not None and node.op_type in _PASSIVE:
        value = node.inputs[0]
    if node is None or node.domain:
        return False
    if node.op_type == "LpNormalization":
        return True
    length = graph.producer(node.inputs[1]) if node.op_type == "Div" else None
    squared = False
    while length is not None and length.op_type in _OF_LENGTH:
        squared = squared or length.op_type == "Sqrt"
        length = graph.producer(length.inputs[0])
    if length is None:
        return False
    if length.op_type == "ReduceL2":
        return length.inputs[0] == node.inputs[0]
    if squared and length.op_type == "ReduceSumSquare":
        return length.inputs[0] == node.inputs[0]
    power = graph.producer(length.inputs[0]) if squared and length.op_type == "ReduceSum" else None
    return power is not None and power.op_type in ("Mul", "Pow") and power.inputs[0] == node.inputs[0]


def before_activation(graph: Graph, output: str) -> str | None:
    """What goes into the Softmax, LogSoftmax or Sigmoid that `output` ends in, types unknown; None without one."""
    value = output
    while (node := graph.producer(value)) is not None and node.domain in _DOMAINS:
        if _activation(node):
            return node.inputs[0]
        if node.op_type not in _PASSIVE:
            break
        value = node.inputs[0]
    return None


def logit_values(graph: Graph) -> set[str]:
    """The logits of every output that holds class scores, and what was only moved or resized since they were made."""
    found: set[str] = set()
    for value in (head.logits for o in graph.outputs if (head := _head(graph, o)) is not None):
        found.add(value)
        while (node := graph.producer(value)) is not None and node.op_type in _PASSIVE:
            value = node.inputs[0]
            found.add(value)
    for dense in (end for o in graph.outputs if (end := dense_head(graph, o)) is not None):
        value = dense.logits
        while (node := graph.producer(value)) is not None and node.op_type in (*_PASSIVE, "Resize"):
            found.add(value)
            value = node.inputs[0]
        found.add(value)
    return found


def output_listing(graph: Graph) -> str:
    """The outputs with their shapes, for messages."""
    return ", ".join(f"`{o}` {list(graph.shape(o) or ['?'])}" for o in graph.outputs)


def _classes(shape: Shape | None) -> int | None:
    """Number of classes of a score tensor: (N, C) with any number of axes of size 1, or (C,)."""
    if shape is None or not shape:
        return None
    sizes = shape[1:] if len(shape) > 1 else shape
    if not all(isinstance(d, int) for d in sizes):
        return None
    total = math.prod(int(d) for d in sizes if isinstance(d, int))
    return total if max((int(d) for d in sizes if isinstance(d, int)), default=0) == total else None


def _activation(node: Node) -> str | None:
    """`Softmax` of a Softmax and of a QLinearSoftmax; None for operators that are no activation of a head."""
    name = node.op_type.removeprefix("QLinear")
    return name if name in ACTIVATIONS else None


def _head(graph: Graph, output: str) -> Head | None:
    classes = _classes(graph.shape(output))
    if classes is None:
        return None
    value, logits, activation = output, output, None
    while (node := graph.producer(value)) is not None and node.domain in _DOMAINS:
        ends = _activation(node) if activation is None else None
        if ends is None and node.op_type not in _PASSIVE:
            break
        if _classes(graph.shape(node.inputs[0])) != classes:
            if ends is not None:
                return None
            break
        value = node.inputs[0]
        if ends is not None or node.op_type == "QuantizeLinear" or graph.dtype(logits) not in _FLOATS:
            logits = value
        activation = activation or ends
    maker = graph.producer(logits)
    quantised = maker is not None and maker.op_type.startswith(("QLinear", "QGemm"))
    return Head(output, logits, activation, classes) if quantised or graph.dtype(logits) in _FLOATS else None
