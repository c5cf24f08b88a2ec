"""One network per family, nothing stated: the automatic layer, its layout and grid, and pytorch-grad-cam's map.

Of signals and volumes: the map that autograd makes, before it is enlarged.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import Explainer
from onnxcam.check import check
from onnxcam.graph.layout import Layout

pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
NETWORKS = json.loads((HERE / "goldens" / "goldens.json").read_text())["networks"]
# Network -> how its automatic layer lies. The picture is 24 x 36.
FAMILIES = {
    "residual": ("CNN", Layout("nchw", (3, 5))),
    "vit": ("ViT with a class token", Layout("tokens", (6, 9), 1)),
    "vit_gap": ("ViT with global pooling", Layout("tokens", (6, 9))),
    "swin": ("Swin", Layout("nhwc", (6, 9))),
    "convnext": ("ConvNeXt", Layout("nchw", (6, 9))),
    "hybrid": ("hybrid", Layout("tokens", (6, 9))),
    "mixer": ("MLP-Mixer", Layout("tokens", (6, 9))),
    "nhwc": ("TensorFlow export", Layout("nhwc", (6, 9))),
}


@cache
def family(name: str) -> tuple[Path, np.ndarray, Any, np.ndarray]:
    """A network's file, pictures, classes and the peer's maps (N, H, W)."""
    with np.load(HERE / "goldens_more" / "families.npz") as more:
        if name == "nhwc":
            return HERE / "goldens_more" / "nhwc.onnx", more["nhwc.x"], [3, 5], more["nhwc"]
        entry = NETWORKS[name]
        with np.load(HERE / "goldens" / entry["arrays"]) as arrays:
            x, golden = arrays["x"], None if name == "hybrid" else arrays["gradcam.last.explicit"]
        file = HERE / "goldens" / entry["onnx"]
        return (file, x, [3, 5], more["hybrid"]) if golden is None else (file, x, entry["classes"]["explicit"], golden)


@pytest.mark.parametrize("name", FAMILIES, ids=[what for what, _ in FAMILIES.values()])
def test_the_map_at_the_automatic_layer_equals_pytorch_grad_cams(name: str) -> None:
    file, x, classes, golden = family(name)
    size = (24, 36)
    chosen = check(file, size=size).automatic
    assert chosen is not None and chosen.layer.layout == FAMILIES[name][1]
    explanations = Explainer(file, size=size, threads=1).explain_tensor(x, classes)
    for explanation, wanted in zip(explanations, golden, strict=True):
        assert wanted.max() > 0.9
        np.testing.assert_allclose(explanation.values, wanted, rtol=0, atol=2e-5)
        assert explanation.provenance["grids"] == [list(FAMILIES[name][1].grid)]


OTHER_SIDES = {
    "signal": Layout("ncl", (1, 50), 0, (50,)),
    "signal_transformer": Layout("nlc", (1, 25), 1, (25,)),
    "volume": Layout("ncdhw", (12, 5), 0, (3, 4, 5)),
}


@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
@pytest.mark.parametrize("name", OTHER_SIDES)
def test_the_raw_map_of_a_signal_or_a_volume_equals_autograds(name: str, exporter: str) -> None:
    file = HERE / "goldens_more" / f"{name}.{exporter}.onnx"
    with np.load(HERE / "goldens_more" / "sides.npz") as stored:
        x, logits, A, raw = (stored[f"{name}.{key}"] for key in ("x", "logits", "A", "raw"))
    chosen = check(file).automatic
    assert chosen is not None and chosen.layer.layout == OTHER_SIDES[name] and chosen.layer.channels == A.shape[1]
    explanations = Explainer(file, threads=1).explain_tensor(x, [3, 5])
    for i, explanation in enumerate(explanations):
        np.testing.assert_allclose(explanation.score, logits[i, [3, 5][i]], atol=1e-5)
        np.testing.assert_allclose(explanation.raw, raw[i], rtol=1e-4, atol=1e-5 * np.abs(raw).max())
        assert explanation.values.shape == x.shape[2:] and explanation.raw.shape == OTHER_SIDES[name].sides
    assert np.abs(raw[0] - raw[1]).max() > 0.1 * np.abs(raw).max()
