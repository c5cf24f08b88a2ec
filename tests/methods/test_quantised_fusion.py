"""Explaining a quantised model reads values behind the quantisers, so that runtimes fuse these as without it."""

import numpy as np
import pytest
from onnx import ModelProto, parser

import onnxcam
from onnxcam import Explainer

pytest.importorskip("onnxruntime")

WEIGHTS = np.array([[1, -2, 3], [0.5, 4, -1]], np.float32)


def network(pooled_scale: float, pool: str = "GlobalAveragePool(d)") -> ModelProto:
    """A ReLU map `a` quantised by 1/16 from 0 on, pooled, quantised again, and a linear head."""
    return parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[N,3,4,4] x) => (float[N,2] y)
        <float s = {{0.0625}}, uint8 z = {{0}}, float t = {{{pooled_scale}}},
         float[2,3] f = {{1, -2, 3, 0.5, 4, -1}}> {{
          a = Relu(x)
          i = QuantizeLinear(a, s, z)
          d = DequantizeLinear(i, s, z)
          p = {pool}
          j = QuantizeLinear(p, t, z)
          e = DequantizeLinear(j, t, z)
          g = Flatten(e)
          y = Gemm<transB=1>(g, f)
        }}""")


def drawn() -> np.ndarray:
    return np.random.default_rng(0).uniform(-4, 12, (2, 3, 4, 4)).astype(np.float32)


def raws(model: ModelProto, target: int) -> np.ndarray:
    return np.stack([e.raw for e in Explainer(model, layer="a", threads=1).explain_tensor(drawn(), target)])


def by_hand(alpha: np.ndarray, target: int) -> np.ndarray:
    a = np.minimum(np.rint(np.maximum(drawn(), 0) * 16), 255) / 16
    return np.einsum("k,nk,nkhw->nhw", WEIGHTS[target], alpha, a) / 16


@pytest.mark.parametrize("pool", ["GlobalAveragePool(d)", "AveragePool<kernel_shape=[4,4]>(d)"])
def test_nothing_between_an_operator_and_its_quantiser_is_read(pool: str) -> None:
    model = network(0.0625, pool)
    added = onnxcam.rewrite(model, layer="a").graph.node[len(model.graph.node) :]
    assert not {"a", "p"} & {value for node in added for value in node.input}
    np.testing.assert_allclose(raws(model, 1), by_hand(np.ones((2, 3)), 1), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.015, 0.02])
def test_a_pooled_value_that_may_saturate_is_still_masked(scale: float) -> None:
    """255 steps of 0.015 are 3.8: channels with a higher mean let nothing through."""
    a = np.minimum(np.rint(np.maximum(drawn(), 0) * 16), 255) / 16
    passed = (np.rint(a.mean((2, 3)) / scale) <= 255).astype(float)
    assert 0 < passed.sum() < passed.size
    np.testing.assert_allclose(raws(network(scale), 0), by_hand(passed, 0), rtol=1e-5)


def test_a_value_that_something_else_reads_too_is_explained_as_it_is() -> None:
    """Two ways from `a` to the score: behind the quantiser lies only one of them."""
    model = network(0.0625)
    model.graph.node[-1].output[0] = "half"
    other = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[N,3,4,4] a, float[N,2] half) => (float[N,2] y) <float[2] axes = {2, 3}> {
          m = GlobalAveragePool(a)
          n = Flatten(m)
          o = Mul(n, n)
          r = ReduceSum(o)
          y = Add(half, r)
        }""")
    model.graph.node.extend(other.graph.node)
    a = np.maximum(drawn(), 0)
    (got,) = Explainer(model, layer="a", threads=1).explain_tensor(drawn()[:1], 1)
    alpha = (WEIGHTS[1] + 2 * a[0].mean((1, 2))) / 16
    np.testing.assert_allclose(got.raw, np.einsum("k,khw->hw", alpha, a[0]), rtol=1e-5)
