"""Output types of operators that ONNX's shape inference does not know.

Each such node is replaced, for inference only, by standard nodes whose outputs have the same types: what ONNX
Runtime's optimiser and quantiser write, for their files carry no intermediate shapes.
"""

from collections.abc import Callable, Iterable, Sequence

from onnx import NodeProto, helper

StandIn = Callable[[NodeProto], list[NodeProto]]

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def stand_ins(node: NodeProto) -> list[NodeProto]:
    """Standard nodes with the same output types; the node itself where it is standard or nothing is known of it."""
    known = _STAND_INS.get((node.domain, node.op_type))
    if known is None or any(a.name == "channels_last" and a.i for a in node.attribute):
        return [node]
    return known(node)


def _node(kind: str, inputs: Sequence[str], output: str, source: NodeProto, keep: Iterable[str] = ()) -> NodeProto:
    made = helper.make_node(kind, inputs, [output])
    made.attribute.extend(a for a in source.attribute if a.name in keep)
    return made


def _as(kind: str, positions: Sequence[int], keep: Iterable[str] = (), like: int | None = None) -> StandIn:
    """The standard operator on some of the inputs; `like`: the input with the output's element type, else the first."""

    def nodes(node: NodeProto) -> list[NodeProto]:
        inputs = [node.input[p] for p in positions if p < len(node.input)]
        if like is None or like >= len(node.input) or not node.input[like]:
            return [_node(kind, inputs, node.output[0], node, keep)]
        raw = f"{node.output[0]}/untyped"
        return [
            _node(kind, inputs, raw, node, keep),
            helper.make_node("CastLike", [raw, node.input[like]], node.output[:1]),
        ]

    return nodes


def _same(*outputs: int) -> StandIn:
    """These outputs have the type of the first input."""

    def nodes(node: NodeProto) -> list[NodeProto]:
        present = [node.output[o] for o in outputs if o < len(node.output) and node.output[o]]
        return [helper.make_node("Identity", node.input[:1], [o]) for o in present]

    return nodes


def _fused_matmul(node: NodeProto) -> list[NodeProto]:
    flags = {a.name for a in node.attribute if a.name.startswith("trans") and a.i}
    if flags & {"transBatchA", "transBatchB"}:
        return [node]
    nodes, operands = [], list(node.input[:2])
    for i, side in enumerate("AB"):
        if f"trans{side}" in flags:
            turned = f"{node.output[0]}/{side}"
            nodes.append(helper.make_node("Einsum", [operands[i]], [turned], equation="...ij->...ji"))
            operands[i] = turned
    return [*nodes, helper.make_node("MatMul", operands, node.output[:1])]


def _packed_attention(node: NodeProto) -> list[NodeProto]:
    if any(a.name == "qkv_hidden_sizes" for a in node.attribute):
        return [node]
    parts = [f"{node.output[0]}/{part}" for part in "qkv"]
    split = helper.make_node("Split", node.input[1:2], parts, axis=1, num_outputs=3)
    return [split, helper.make_node("MatMul", [node.input[0], parts[2]], node.output[:1])]


def _qgemm(node: NodeProto) -> list[NodeProto]:
    """Quantised like the output's zero point; without one a float, like A's scale."""
    quantised = len(node.input) > 8 and node.input[8] != ""
    return _as("Gemm", (0, 3), ("transA", "transB"), like=8 if quantised else 1)(node)


def _qlinear_concat(node: NodeProto) -> list[NodeProto]:
    return [_node("Concat", node.input[2::3], node.output[0], node, ("axis",))]


_MICROSOFT: dict[str, StandIn] = {
    "FusedConv": _as("Conv", (0, 1), _CONV),
    "FusedGemm": _as("Gemm", (0, 1), ("transA", "transB")),
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "Gelu": _same(0),
    "FastGelu": _same(0),
    "QuickGelu": _same(0),
    "BiasGelu": _same(0),
    "BiasSoftmax": _same(0),
    "BiasAdd": _same(0),
    "SkipLayerNormalization": _same(0, 3),
    "SkipSimplifiedLayerNormalization": _same(0, 3),
    "GroupNorm": _same(0),
    "Attention": _packed_attention,
    "MultiHeadAttention": _same(0),
    "QuantizeLinear": _as("QuantizeLinear", (0, 1, 2), ("axis",)),
    "DequantizeLinear": _as("DequantizeLinear", (0, 1, 2), ("axis",)),
    "QLinearConv": _as("QLinearConv", range(9), _CONV),
    "QLinearAdd": _as("Add", (0, 3), like=7),
    "QLinearMul": _as("Mul", (0, 3), like=7),
    "QLinearWhere": _as("Where", (0, 1, 4)),
    "QLinearConcat": _qlinear_concat,
    "QLinearAveragePool": _as("AveragePool", (0,), _POOL),
    "QLinearGlobalAveragePool": _as("GlobalAveragePool", (0,)),
    "QLinearSigmoid": _same(0),
    "QLinearLeakyRelu": _same(0),
    "QLinearSoftmax": _same(0),
    "QGemm": _qgemm,
    "DynamicQuantizeMatMul": _as("MatMul", (0, 1)),
    "MatMulIntegerToFloat": _as("MatMul", (0, 1), like=2),
}
_STAND_INS: dict[tuple[str, str], StandIn] = {("com.microsoft", k): v for k, v in _MICROSOFT.items()}
# Not in ONNX's schemas; in them, but without inference.
for _kind in ("SimplifiedLayerNormalization", "GroupNormalization", "MeanVarianceNormalization"):
    _STAND_INS["", _kind] = _same(0)
