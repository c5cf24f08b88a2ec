"""One network per family, nothing stated: the automatic layer, its layout and grid, and pytorch-grad-cam's map."""

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
