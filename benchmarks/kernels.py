"""The step after the run, activations and weights to saliency maps: C++ kernels against the NumPy chain.

The chain has the steps of pytorch-grad-cam 1.5.7: weighted sum, ReLU, min-max and resize of one map after the other
(OpenCV where it is installed, else Pillow in mode F); then what joins several layers, also where there is one: ReLU,
mean, min-max.
"""

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import Row, Rows, Settings, milliseconds, ratio_row
from onnxcam import _core
from onnxcam.preprocess import View
from onnxcam.saliency import saliency_maps

Floats = np.ndarray[Any, np.dtype[np.float32]]

CASES = (
    ((1, 2048, 7, 7), (224, 224)),
    ((32, 2048, 7, 7), (224, 224)),
    ((1, 256, 56, 56), (1080, 1920)),
    ((32, 256, 56, 56), (1080, 1920)),
)


def kernels(settings: Settings) -> Rows:
    resize, library = _resize()
    rng = np.random.default_rng(0)
    for shape, size in CASES[: 2 if settings.quick else None]:
        activations = np.maximum(rng.standard_normal(shape, np.float32), 0)
        alpha = rng.standard_normal((*shape[:2], 1, 1), np.float32)
        views = [View.identity(size)] * shape[0]

        def ours(a: Floats = activations, w: Floats = alpha, v: list[View] = views) -> Any:
            return saliency_maps([_core.weighted_sum(a, w, relu=False)], v)

        def theirs(a: Floats = activations, w: Floats = alpha, s: tuple[int, int] = size) -> Any:
            return chain(a, w, s, resize)

        gap = max(float(np.abs(m - t).max()) for m, t in zip(ours(), theirs(), strict=True))
        case = f"{shape[0]} x {shape[1:]} to {size[0]}x{size[1]}"
        yield ratio_row("kernels", case, ours, f"NumPy + {library}", theirs, settings, target=10.0, better="higher",
                        budget=6.0, note=f"largest difference {gap:.0e}")  # fmt: skip
    yield _bandwidth(settings, rng)


def chain(
    activations: Floats, alpha: Floats, size: tuple[int, int], resize: Callable[[Floats, tuple[int, int]], Floats]
) -> Floats:
    """Maps (N, H, W) of one layer."""
    positive = np.maximum((alpha * activations).sum(axis=1), 0)
    layers = [np.array([resize(_scaled(cam), size) for cam in positive], np.float32)[:, None]]
    mean = np.maximum(np.concatenate(layers, axis=1), 0).mean(axis=1)
    return np.array([_scaled(cam) for cam in mean], np.float32)


def _scaled(cam: Floats) -> Floats:
    cam = cam - cam.min()
    return cam / (1e-7 + cam.max())


def _resize() -> tuple[Callable[[Floats, tuple[int, int]], Floats], str]:
    if importlib.util.find_spec("cv2"):
        import cv2

        return (lambda cam, size: cv2.resize(cam, size[::-1])), "OpenCV"
    bilinear = Image.Resampling.BILINEAR
    return (lambda cam, size: np.asarray(Image.fromarray(cam).resize(size[::-1], bilinear))), "Pillow (no OpenCV here)"


def _bandwidth(settings: Settings, rng: np.random.Generator) -> Row:
    """The weighted sum on 103 MB of activations as a share of what the same threads can read from memory."""
    activations = rng.standard_normal((32, 256, 56, 56), np.float32)
    alpha = rng.standard_normal((32, 256, 1, 1), np.float32)
    parts = np.array_split(activations.ravel(), settings.threads)
    with ThreadPoolExecutor(settings.threads) as pool:
        row = ratio_row(
            "kernels", "weighted sum of 32 x (256, 56, 56), share of memory bandwidth",
            lambda: _core.weighted_sum(activations, alpha, relu=False),
            f"maximum of the same array, {settings.threads} threads",
            lambda: list(pool.map(np.max, parts)),
            settings, target=0.6, better="higher", budget=4.0,
        )  # fmt: skip
        rate = activations.nbytes / min(milliseconds(lambda: list(pool.map(np.max, parts))) for _ in range(5)) / 1e6
    return Row(**{**row.__dict__, "note": f"read {rate:.1f} GB/s"})
