"""Rules of attention and what belongs to it; the default domain's Attention is expanded into its function body."""

import math

from onnxcam.autodiff.compose import composed
from onnxcam.autodiff.engine import Primal
from onnxcam.graph.build import Builder


@composed("RotaryEmbedding", wrt=(0, 1, 2))
def rotary_embedding(b: Builder, node: Primal) -> str:
    """Pairs of features rotate by the angle of their position: (x1 cos - x2 sin, x1 sin + x2 cos)."""
    x, heads_last = node.inputs[0], node.rank(0) == 3
    x = b.Reshape(x, [0, 0, node.attrs["num_heads"], -1]) if heads_last else b.Transpose(x, perm=[0, 2, 1, 3])
    size = node.static(0, [-1])[0] // (node.attrs["num_heads"] if heads_last else 1)
    turned = node.attrs["rotary_embedding_dim"] or size
    rest = None
    if turned < size:
        x, rest = b.Split(x, [turned, size - turned], axis=3, outputs=2)
    cos, sin = (b.Gather(v, node.inputs[3], axis=0) if node.has(3) else v for v in node.inputs[1:3])
    cos, sin = b.Unsqueeze(cos, [2]), b.Unsqueeze(sin, [2])
    if node.attrs["interleaved"]:
        x1, x2 = (b.Slice(x, [i], [turned], [3], [2]) for i in (0, 1))
    else:
        x1, x2 = b.Split(x, [turned // 2, turned // 2], axis=3, outputs=2)
    parts = [b.Sub(b.Mul(x1, cos), b.Mul(x2, sin)), b.Add(b.Mul(x1, sin), b.Mul(x2, cos))]
    if node.attrs["interleaved"]:
        y = b.Reshape(b.Concat(*(b.Unsqueeze(p, [4]) for p in parts), axis=4), [0, 0, 0, -1])
    else:
        y = b.Concat(*parts, axis=3)
    y = y if rest is None else b.Concat(y, rest, axis=3)
    return str(b.Reshape(y, [0, 0, -1]) if heads_last else b.Transpose(y, perm=[0, 2, 1, 3]))


@composed("com.microsoft::Attention", wrt=(0, 1, 2, 5))
def packed_attention(b: Builder, node: Primal) -> str:
    """Projection to query, key and value, then softmax(q k^T scale + bias) v per head."""
    _refuse(node, {3: "a mask", 4: "a past"})
    if node.attrs.get("unidirectional") or node.attrs.get("do_rotary"):
        raise node.unsupported("it is causal or rotary", "save the optimised model at level BASIC")
    qkv = b.MatMul(node.inputs[0], node.inputs[1])
    qkv = b.Add(qkv, node.inputs[2]) if node.has(2) else qkv
    sizes = node.attrs.get("qkv_hidden_sizes") or [node.static(1, [1])[0] // 3] * 3
    q, k, v = b.Split(qkv, [int(s) for s in sizes], axis=2, outputs=3)
    return _heads(b, node, q, k, v, node.input(5))


@composed("com.microsoft::MultiHeadAttention", wrt=(0, 1, 2, 3, 5))
def multi_head_attention(b: Builder, node: Primal) -> str:
    """softmax(q k^T scale + bias) v per head, of (N, sequence, heads * size) inputs."""
    _refuse(node, {4: "a mask", 6: "a past", 7: "a past"})
    if node.attrs.get("unidirectional") or not (node.has(1) and node.has(2)):
        raise node.unsupported("it is causal or its inputs are packed", "save the optimised model at level BASIC")
    q, k, v = node.inputs[:3]
    if node.has(3):
        sizes = [node.static(0, [2])[0], node.static(0, [2])[0], node.static(2, [2])[0]]
        biases = b.Split(node.inputs[3], sizes, axis=0, outputs=3)
        q, k, v = (b.Add(x, bias) for x, bias in zip((q, k, v), biases, strict=True))
    return _heads(b, node, q, k, v, node.input(5))


def _refuse(node: Primal, positions: dict[int, str]) -> None:
    for position, what in positions.items():
        if node.has(position):
            raise node.unsupported(f"it has {what}", "save the optimised model at level BASIC")


def _heads(b: Builder, node: Primal, q: str, k: str, v: str, bias: str) -> str:
    heads = node.attrs["num_heads"]
    q, k, v = (_split_heads(b, node, x, i, heads) for i, x in enumerate((q, k, v)))
    scale = node.attrs.get("scale") or 1.0 / math.sqrt(_head_size(node, heads))
    scores = b.Mul(b.MatMul(q, b.Transpose(k, perm=[0, 1, 3, 2])), scale)
    scores = b.Add(scores, bias) if bias else scores
    y = b.MatMul(b.Softmax(scores, axis=-1), v)
    return str(b.Reshape(b.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]))


def _split_heads(b: Builder, node: Primal, x: str, i: int, heads: int) -> str:
    if node.op_type == "MultiHeadAttention" and node.rank(i) == 4:
        return x
    return str(b.Transpose(b.Reshape(x, [0, 0, heads, -1]), perm=[0, 2, 1, 3]))


def _head_size(node: Primal, heads: int) -> int:
    if node.op_type == "MultiHeadAttention":
        return node.static(0, [2])[0] // heads
    return int((node.attrs.get("qkv_hidden_sizes") or [node.static(1, [1])[0] // 3])[0]) // heads
