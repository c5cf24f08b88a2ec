import numpy as np
import pytest
from onnx import TensorProto, parser
from onnx.reference.op_run import OpRun

from onnxcam.autodiff import differentiate
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from support.vjp import Case, run

POSITIONS = np.array([[0, 2, 5], [1, 1, 4]])


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, scale: float, bias: np.ndarray | None):
    n, length, width = q.shape
    y = np.empty((n, length, v.shape[-1]))
    a, c = width // heads, v.shape[-1] // heads
    for i in range(n):
        for h in range(heads):
            scores = q[i, :, h * a : (h + 1) * a] @ k[i, :, h * a : (h + 1) * a].T * (scale or a**-0.5)
            scores = scores if bias is None else scores + np.broadcast_to(bias, (n, heads, *scores.shape))[i, h]
            y[i, :, h * c : (h + 1) * c] = softmax(scores) @ v[i, :, h * c : (h + 1) * c]
    return y


class Attention(OpRun):
    op_domain = "com.microsoft"
    op_schema = None

    def _run(self, x, w, b=None, mask=None, past=None, bias=None, num_heads=1, scale=0.0):
        q, k, v = np.split(x @ w + (0 if b is None else b), 3, axis=-1)
        return (attend(q, k, v, num_heads, scale, bias),)


class MultiHeadAttention(OpRun):
    op_domain = "com.microsoft"
    op_schema = None

    def _run(self, q, k, v, b=None, mask=None, bias=None, num_heads=1, scale=0.0):
        if b is not None:
            bq, bk, bv = np.split(b, [q.shape[-1], 2 * q.shape[-1]])
            q, k, v = q + bq, k + bk, v + bv
        return (attend(q, k, v, num_heads, scale, bias),)


def microsoft(kind: str, inputs: str, body: str, output: str, op: type[OpRun], **options: object) -> Case:
    return Case(f"com.microsoft::{kind}", inputs, body, output=output, new_ops=(op,), until=18, **options)


CASES = [
    *(
        microsoft("Attention", f"double[2,3,4] x, double[4,12] w, double[12] b{given}",
                  f"y = com.microsoft.Attention<num_heads=2{attributes}>(x, w, b{names})", "double[2,3,4] y", Attention)
        for given, names, attributes in [
            ("", "", ""),
            ("", "", ", scale=0.7"),
            (", double[2,2,3,3] r", ", , , r", ""),
            (", double[1,2,3,3] r", ", , , r", ""),
        ]
    ),
    *(
        microsoft("MultiHeadAttention", f"double[2,3,4] q, double[2,5,4] k, double[2,5,4] v{given}",
                  f"y = com.microsoft.MultiHeadAttention<num_heads=2{attributes}>(q, k, v{names})",
                  "double[2,3,4] y", MultiHeadAttention)
        for given, names, attributes in [
            ("", "", ""),
            (", double[12] b", ", b", ", scale=0.7"),
            (", double[2,2,3,5] r", ", , , r", ""),
        ]
    ),
]  # fmt: skip


PROVEN = ("RotaryEmbedding",)  # its schema refuses float64


def rotated(x, cos, sin, positions=None, interleaved=0, num_heads=0, rotary_embedding_dim=0):
    """The definition by complex numbers: each pair of features times exp(i * angle)."""
    shape = x.shape
    x = x.reshape(*shape[:2], num_heads, -1).swapaxes(1, 2) if x.ndim == 3 else x
    turned = rotary_embedding_dim or x.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    turn = (cos + 1j * sin)[:, None]
    first, second = (slice(0, turned, 2), slice(1, turned, 2)) if interleaved else (
        slice(0, turned // 2), slice(turned // 2, turned))  # fmt: skip
    z = (x[..., first] + 1j * x[..., second]) * turn
    y = x.copy()
    y[..., first], y[..., second] = z.real, z.imag
    return (y.swapaxes(1, 2) if len(shape) == 3 else y).reshape(shape)


@pytest.mark.parametrize(
    ("x", "angles", "positions", "attributes"),
    [
        ((2, 2, 3, 8), (6, 4), True, {}),
        ((2, 2, 3, 8), (6, 4), True, {"interleaved": 1}),
        ((2, 3, 16), (6, 4), True, {"num_heads": 2}),
        ((2, 3, 16), (2, 3, 4), False, {"num_heads": 2, "interleaved": 1}),
        ((2, 2, 3, 8), (2, 3, 2), False, {"rotary_embedding_dim": 4}),
        ((2, 3, 16), (6, 2), True, {"num_heads": 2, "rotary_embedding_dim": 4, "interleaved": 1}),
    ],
)
def test_rotary_embedding_is_linear_in_everything(x, angles, positions, attributes) -> None:
    """<u, f(.., v, ..)> = <J^T u, v> for x, and the same for both caches together, as f is linear in each."""
    rng = np.random.default_rng(1)
    given = {"x": rng.normal(size=x), "c": rng.normal(size=angles), "s": rng.normal(size=angles)}
    feeds = {k: v.astype(np.float32) for k, v in given.items()} | ({"p": POSITIONS} if positions else {})
    u = rng.normal(size=x).astype(np.float32)
    shapes = ", ".join(f"float{list(v.shape)} {k}" for k, v in feeds.items() if k != "p")
    text = ", ".join(f"{k}={v}" for k, v in attributes.items())
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 23]> g ({shapes}{", int64[2,3] p" if positions else ""})
        => (float{list(x)} y) {{ y = RotaryEmbedding{f"<{text}>" if text else ""}({", ".join(feeds)}) }}"""
    )
    graph = Graph(model)
    op = Builder(graph)
    names = [str(g) for g in differentiate(graph, op, "y", ["x", "c", "s"], cotangent="u").values()]
    rewritten = op.model([tensor_info(n, 1, None) for n in names], [tensor_info("u", TensorProto.FLOAT, x)])
    dx, dc, ds = run(rewritten, {**feeds, "u": u}, names)
    y = rotated(given["x"], given["c"], given["s"], POSITIONS if positions else None, **attributes)
    v = rng.normal(size=x)
    along = rotated(v, given["c"], given["s"], POSITIONS if positions else None, **attributes)
    np.testing.assert_allclose((dx * v).sum(), (u * along).sum(), rtol=1e-4, atol=1e-5)
    turned = attributes.get("rotary_embedding_dim", 0)
    if not turned:
        both = (dc * given["c"]).sum() + (ds * given["s"]).sum()
        np.testing.assert_allclose(both, (u * y).sum(), rtol=1e-4, atol=1e-5)
