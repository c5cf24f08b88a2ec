"""`python -m benchmarks.quantised`: heat maps of int8 models against those of the float models they were made from.

Same picture, same class (the float model's prediction), same layer; Pearson correlation over the cells of the raw map
and over the pixels of the saliency map that the model saw.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxcam import Explainer

SHARED = Path(__file__).parents[2] / "shared"


@dataclass(frozen=True)
class Pair:
    """A float model, the quantised one with the same weights, how both want their pictures, and which pictures."""

    real: str
    quantised: str
    preprocess: Mapping[str, Any]
    pictures: tuple[str, ...]


ANIMALS = (
    "captum_elephant.jpg", "captum_zebra.jpg", "coral_bird.bmp", "coral_cat.bmp", "coral_dog_test_0.bmp",
    "coral_dragonfly.bmp", "coral_hot_dog.jpg", "coral_parrot.jpg", "darknet_dog.jpg", "kerasvis_goldfish.jpg",
    "skimage_motorcycle_left.png", "winml_kitten.png",
)  # fmt: skip
PEOPLE = ("skimage_astronaut.png", "coral_grace_hopper.bmp", "darknet_person.jpg", "coral_cat.bmp", "darknet_dog.jpg")
TF = {"scale": 1 / 127.5, "mean": [1.0], "std": [1.0], "crop_pct": 0.875}

PAIRS = (
    Pair("mobilenet_v1_025_128_fp32_nhwc", "mobilenet_v1_025_128_qdq_nhwc", TF, ANIMALS),
    Pair("mobilenet_v2_torch_fp32_nchw", "mobilenet_v2_torch_qdq_int8io_nchw", {}, ANIMALS),
    Pair("vww96_mlperf_fp32_nhwc", "vww96_mlperf_int8_qdq", {"mean": [0.0], "std": [1.0]}, PEOPLE),
)


def correlations(pair: Pair) -> Iterator[tuple[str, float, float]]:
    """Per picture: its name, and the correlation of the raw maps and of the saliency maps of the pair."""
    real, quantised = (
        Explainer(SHARED / "models" / f"{name}.onnx", preprocess=pair.preprocess, threads=2)
        for name in (pair.real, pair.quantised)
    )
    assert real.layer == quantised.layer
    for name in pair.pictures:
        a = real(SHARED / "images" / name)
        b = quantised(SHARED / "images" / name, target=a.class_index)
        x0, y0, x1, y1 = a.region
        maps = (m.values[y0:y1, x0:x1].ravel() for m in (a, b))
        yield name, *(float(np.corrcoef(*two)[0, 1]) for two in ((a.raw.ravel(), b.raw.ravel()), tuple(maps)))


def main() -> int:
    print("| pair | pictures | raw map: mean, least | saliency map: mean, least |\n|---|---|---|---|")
    for pair in PAIRS:
        raw, values = np.array([found[1:] for found in correlations(pair)]).T
        print(f"| {pair.real} / {pair.quantised} | {len(raw)} | {raw.mean():.3f}, {raw.min():.3f} "
              f"| {values.mean():.3f}, {values.min():.3f} |")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
