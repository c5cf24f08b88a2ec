"""From activations and alpha to saliency maps, with the C++ kernels.

The order and the constants are pytorch-grad-cam's, so that the numbers are: ReLU, min-max with 1e-7 at low
resolution, half-pixel bilinear resize, min-max once more.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcam import _core
from onnxcam.errors import UsageError
from onnxcam.preprocess import View

Floats = npt.NDArray[np.float32]

NORMALIZATIONS = ("minmax", "max", "none")


def check_normalization(normalize: str) -> None:
    """Raises: UsageError for a normalisation that does not exist."""
    if normalize not in NORMALIZATIONS:
        raise UsageError(f"unknown normalisation `{normalize}`", f"use one of {', '.join(NORMALIZATIONS)}")


def raw_maps(activations: npt.NDArray[Any], alpha: npt.NDArray[Any], threads: int = 0) -> Floats:
    """sum_k alpha_k A_k (N, h, w), signed, in units of the score: A (N, K, h, w), alpha (N, K, 1, 1) or like A."""
    return _core.weighted_sum(activations, alpha, relu=False, threads=threads)


def saliency_maps(raw: Floats, views: Sequence[View], normalize: str = "minmax", threads: int = 0) -> list[Floats]:
    """Raw maps (N, h, w) as saliency maps (H, W) in picture coordinates, one view per map; 0 outside the region seen.

    normalize: `minmax` to [0, 1] as pytorch-grad-cam; `max` divides by the maximum, so that 0 stays the score's 0;
    `none` keeps the units of the score, comparable between pictures. A map without positive values is 0 everywhere;
    one with NaN is NaN everywhere, so that it is seen.
    """
    positive = np.maximum(raw, np.float32(0))
    if normalize == "minmax":
        positive = _core.min_max(positive)
    if len(set(views)) == 1 and len(views) > 1:
        return list(_placed(positive, views[0], normalize, threads))
    return [_placed(positive[i : i + 1], view, normalize, threads)[0] for i, view in enumerate(views)]


def _placed(maps: Floats, view: View, normalize: str, threads: int) -> Floats:
    x0, y0, x1, y1 = view.region
    y_scale, y_offset, x_scale, x_offset = view.map_grid(*maps.shape[1:])
    seen = _core.resize_bilinear(
        maps,
        y1 - y0,
        x1 - x0,
        y_scale=y_scale,
        y_offset=y_offset + y0 * y_scale,
        x_scale=x_scale,
        x_offset=x_offset + x0 * x_scale,
        threads=threads,
    )
    if normalize == "minmax":
        seen = _core.min_max(seen)
    elif normalize == "max":
        peak = seen.max(axis=(1, 2), keepdims=True)
        seen = np.divide(seen, peak, out=np.where(np.isnan(seen), seen, 0), where=peak != 0)
    if (y1 - y0, x1 - x0) == view.picture_size:
        return seen
    whole = np.zeros((len(maps), *view.picture_size), np.float32)
    whole[:, y0:y1, x0:x1] = seen
    return whole
