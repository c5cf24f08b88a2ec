"""Where a LayerNorm follows the layer, HiResCAM's terms cancel (Euler's theorem) and the map is noise: it says so."""

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcam import Explainer

pytest.importorskip("onnxruntime")


def network(norm: bool):  # type: ignore[no-untyped-def]
    middle = "m = LayerNormalization<axis=-1, epsilon=1e-12>(t, one)" if norm else "m = Tanh(t)"
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[N,3,8,8] x) => (float[N,2] y) <float[6] one = {{1, 1, 1, 1, 1, 1}}, int64[2] hw = {{1, 2}}> {{
          a = Conv(x, w)
          t = Transpose<perm=[0,2,3,1]>(a)
          {middle}
          s = Softplus(m)
          p = ReduceMean<keepdims=0>(s, hw)
          y = MatMul(p, f)
        }}""")
    rng = np.random.default_rng(0)
    for name, shape in (("w", (6, 3, 1, 1)), ("f", (6, 2))):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


@pytest.mark.parametrize(("norm", "method", "noisy"),
                         [(True, "hirescam", True), (True, "gradcam", False), (False, "hirescam", False)])  # fmt: skip
def test_a_map_of_cancelled_terms_is_reported(norm: bool, method: str, noisy: bool) -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    for found in Explainer(network(norm), method=method, layer="a", threads=1).explain_tensor(x, 1):
        assert any("rounding noise" in warning for warning in found.warnings) == noisy
