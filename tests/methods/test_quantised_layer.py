"""A target layer that holds integers is explained by the real numbers that it stands for."""

import numpy as np
import pytest
from onnx import ModelProto, parser

from onnxcam import Explainer
from onnxcam.errors import UnsupportedError

pytest.importorskip("onnxruntime")


def network(kind: str) -> ModelProto:
    """A quantised map `i` = round(x / 0.5) + 10, and GAP + linear on what it stands for."""
    quantised = "i = QuantizeLinear(x, s, z)"
    if kind == "qoperator":
        quantised = "q = QuantizeLinear(x, s, z) i = QLinearConv(q, s, z, w, one, none, s, z)"
    return parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[N,2,4,4] x) => (float[N,2] y)
        <float s = {{0.5}}, int8 z = {{10}}, float one = {{1.0}}, int8 none = {{0}}, int8[2,2,1,1] w = {{1, 0, 0, 1}},
         float[2,2] f = {{1, -2, 3, 0.5}}> {{
          {quantised}
          r = DequantizeLinear(i, s, z)
          p = GlobalAveragePool(r)
          q2 = Flatten(p)
          y = Gemm<transB=1>(q2, f)
        }}""")


@pytest.mark.parametrize("kind", ["qdq", "qoperator"])
def test_an_integer_layer_is_dequantised(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.integers(-20, 20, (1, 2, 4, 4)) * 0.5).astype(np.float32)  # exactly representable: i stands for x
    (got,) = Explainer(network(kind), layer="i", threads=1).explain_tensor(x, 1)
    # alpha_k = f[1, k] / 16, by hand.
    np.testing.assert_allclose(got.raw, (3 * x[0, 0] + 0.5 * x[0, 1]) / 16, rtol=1e-5, atol=1e-6)
    assert any("straight through" in note for note in got.provenance["notes"])


def test_integers_without_a_scale_are_refused() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[N,2,4,4] x) => (float[N,2] y)
        <float[2,2] f = {1, -2, 3, 0.5}> {
          i = Cast<to=6>(x)
          j = Add(i, i)
          r = Cast<to=1>(j)
          p = GlobalAveragePool(r)
          q = Flatten(p)
          y = Gemm<transB=1>(q, f)
        }""")
    with pytest.raises(UnsupportedError, match="holds integers whose scale"):
        Explainer(model, layer="j", method="eigencam")
