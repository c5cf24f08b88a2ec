"""Scale and zero point of integer values: what real numbers a quantised tensor stands for."""

from onnx import TensorProto

from onnxcam.errors import UnsupportedError
from onnxcam.graph.build import Builder
from onnxcam.graph.index import Graph, Node

INTEGERS = frozenset(
    {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32}
    | {TensorProto.INT4, TensorProto.UINT4}
)

# Positions of the output's scale and zero point among the inputs.
_OUTPUT_SCALES = {
    "QuantizeLinear": (1, 2),
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "com.microsoft::QuantizeLinear": (1, 2),
    "com.microsoft::QLinearAdd": (6, 7),
    "com.microsoft::QLinearMul": (6, 7),
    "com.microsoft::QLinearAveragePool": (3, 4),
    "com.microsoft::QLinearGlobalAveragePool": (3, 4),
    "com.microsoft::QLinearLeakyRelu": (3, 4),
    "com.microsoft::QLinearSigmoid": (3, 4),
    "com.microsoft::QLinearSoftmax": (3, 4),
    "com.microsoft::QLinearConcat": (0, 1),
    "com.microsoft::QGemm": (7, 8),
}

# These move integers without changing what they stand for.
_MOVES = frozenset("MaxPool Relu Clip Reshape Transpose Pad Identity Flatten Squeeze Slice".split())


def is_quantised(node: Node) -> bool:
    """Whether a node quantises, dequantises or computes on quantised integers."""
    return node.kind in _OUTPUT_SCALES or "Integer" in node.op_type or node.op_type.startswith(("Deq", "DynamicQ"))


def scale_of(graph: Graph, value: str) -> tuple[str, str] | None:
    """Value names of scale and zero point ("" where omitted) of an integer value; None where the graph has none."""
    maker = graph.producer(value)
    if maker is not None and maker.kind in _OUTPUT_SCALES:
        return _pair(maker, *_OUTPUT_SCALES[maker.kind])
    for reader in graph.consumers(value):
        if reader.op_type == "DequantizeLinear" and reader.inputs[0] == value:
            return _pair(reader, 1, 2)
    if maker is not None and maker.op_type in _MOVES:
        return scale_of(graph, maker.inputs[0])
    return None


def _pair(node: Node, scale: int, zero: int) -> tuple[str, str]:
    return node.inputs[scale], node.inputs[zero] if zero < len(node.inputs) else ""


def real_value(op: Builder, value: str) -> str:
    """A value in the builder's float type: other floats are cast, quantised integers dequantised.

    Raises: UnsupportedError for integers whose scale the graph does not tell.
    """
    if op.graph.dtype(value) not in INTEGERS:
        return op.as_float(value)
    found = scale_of(op.graph, value)
    if found is None:
        raise UnsupportedError(
            f"layer `{value}` holds integers whose scale the graph does not tell",
            "choose a float layer; `onnxcam layers MODEL` lists them",
        )
    return op.as_float(str(op.DequantizeLinear(value, *(v for v in found if v))))
