"""A trained network, its int8 twin and its scrambled twin, on photographs. Skipped where `shared/` is not there."""

from pathlib import Path

import onnx
import pytest

from onnxcam import compare
from onnxcam.metrics import randomised_models

SHARED = Path(__file__).parents[3] / "shared"
FLOAT, INT8 = (SHARED / "models" / f"mobilenet_v1_025_128_{kind}_nhwc.onnx" for kind in ("fp32", "qdq"))
PHOTOGRAPHS = [SHARED / "images" / name for name in ("tract_elephants.jpg", "darknet_giraffe.jpg", "winml_cat.jpg")]

pytestmark = pytest.mark.skipif(not FLOAT.is_file(), reason="no ../shared/models")


def test_explanations_survive_quantisation_and_do_not_survive_scrambled_weights() -> None:
    settings = {"crop_pct": 0.875, "scale": 1 / 127.5, "mean": [1.0], "std": [1.0]}
    labels = SHARED / "labels" / "imagenet1001_coral.txt"
    twin = compare(FLOAT, INT8, PHOTOGRAPHS, preprocess=settings, labels=labels, threads=1)
    assert [p.name for p in twin.changed] == ["darknet_giraffe.jpg"]  # which ImageNet has no class for
    assert twin.statistics["least"] > 0.99 and twin.statistics_of("pearson")["least"] > 0.99
    *_, (_, scrambled) = randomised_models(onnx.load(FLOAT))
    other = compare(FLOAT, scrambled, PHOTOGRAPHS, preprocess=settings, labels=labels, threads=1)
    assert len(other.changed) == 3 and other.failures({"mean": 0.9})
