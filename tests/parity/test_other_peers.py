"""onnxcam against TorchCAM and Captum, on the networks of `goldens` (see make_goldens_torchcam.py, ..._captum.py)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcam import Explainer
from onnxcam.explanation import Explanation

pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
NETWORKS = json.loads((HERE / "goldens" / "goldens.json").read_text())["networks"]


@cache
def stored(name: str) -> dict[str, np.ndarray]:
    with np.load(HERE / "goldens_more" / f"{name}.npz") as arrays:
        return dict(arrays)


def explained(network: str, **options: Any) -> list[Explanation]:
    entry = NETWORKS[network]
    with np.load(HERE / "goldens" / entry["arrays"]) as arrays:
        x = arrays["x"]
    explainer = Explainer(HERE / "goldens" / entry["onnx"], size=x.shape[2:], threads=1, **options)
    return explainer.explain_tensor(x, entry["classes"]["explicit"])


@pytest.mark.parametrize("key", stored("captum"))
def test_input_attributions_equal_captums(key: str) -> None:
    network, method = key.split(".")
    options = {"steps": 20} if method == "integratedgradients" else {}
    golden = stored("captum")[key]
    for explanation, wanted in zip(explained(network, method=method, method_options=options), golden, strict=True):
        np.testing.assert_allclose(explanation.raw, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_cam_before_its_relu_equals_torchcams() -> None:
    golden = stored("torchcam")["residual.cam"]
    assert golden.min() < 0
    for explanation, wanted in zip(explained("residual", method="cam"), golden, strict=True):
        np.testing.assert_allclose(explanation.raw, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("base", ["gradcam", "layercam"])
def test_the_product_of_two_layers_equals_torchcams_refinecam(base: str) -> None:
    layers = [NETWORKS["plain"]["layers"][where]["value"] for where in ("middle", "last")]
    found = explained("plain", method=base, layer=layers, fuse="product")
    for explanation, wanted in zip(found, stored("torchcam")[f"plain.refinecam.{base}"], strict=True):
        assert wanted.max() > 0.99
        np.testing.assert_allclose(explanation.values, wanted, rtol=0, atol=1e-5)
