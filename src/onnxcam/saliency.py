"""From activations and alpha to saliency maps, with the C++ kernels.

The order and the constants are pytorch-grad-cam's, so that the numbers are: ReLU, min-max with 1e-7 at low
resolution, half-pixel bilinear resize, min-max once more.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxcam import _core
from onnxcam.errors import UsageError
from onnxcam.preprocess import View
from onnxcam.profiling import stage

Floats = npt.NDArray[np.float32]

NORMALIZATIONS = ("minmax", "max", "none")

MAX_CELLS = 2**31
"""Most values that the maps made at once may hold, 8 GiB; a limit, for models and pictures from elsewhere."""


def check_options(normalize: str, fuse: str) -> None:
    """Raises: UsageError for a normalisation or a fusion that does not exist."""
    if normalize not in NORMALIZATIONS:
        raise UsageError(f"unknown normalisation `{normalize}`", f"use one of {', '.join(NORMALIZATIONS)}")
    if fuse not in FUSIONS:
        raise UsageError(f"unknown fusion of layers `{fuse}`", f"use one of {', '.join(FUSIONS)}")


# Layers are averaged before they are scaled to [0, 1] again, as pytorch-grad-cam does; products and maxima compare
# maps that are (RefineCAM, 2026; TorchCAM).
FUSIONS: dict[str, Callable[[Floats], Floats]] = {
    "mean": lambda maps: maps.mean(axis=0, dtype=np.float32),
    "product": lambda maps: maps.prod(axis=0),
    "max": lambda maps: maps.max(axis=0),
}


@stage("kernels")
def saliency_maps(
    raws: Sequence[Floats], views: Sequence[View], normalize: str = "minmax", fuse: str = "mean", threads: int = 0
) -> Floats | list[Floats]:
    """Raw maps (N, h, w) of each layer as N saliency maps (H, W) in picture coordinates; 0 outside the region seen.

    One array (N, H, W) where all pictures are seen alike.

    views: one per sample. normalize: `minmax` to [0, 1] as pytorch-grad-cam; `max` divides by the maximum, so that 0
    stays the score's 0; `none` keeps the units of the score, comparable between pictures. fuse: how several layers
    become one map, a key of FUSIONS. A map without positive values is 0 everywhere; one with NaN is NaN everywhere,
    so that it is seen.

    Raises: UsageError for more than MAX_CELLS values at once.
    """
    alike = bool(views) and views.count(views[0]) == len(views)
    cells = len(views) * math.prod(views[0].picture_size) if alike else sum(math.prod(v.picture_size) for v in views)
    if cells > MAX_CELLS:
        raise UsageError(
            f"{len(views)} maps hold {cells:,} values at once, more than {MAX_CELLS:,}",
            "explain fewer classes or smaller pictures at once, or raise `onnxcam.saliency.MAX_CELLS`",
        )
    if alike:
        return _placed(raws, views[0], normalize, fuse, threads)
    samples = ([maps[i : i + 1] for maps in raws] for i in range(len(views)))
    return [_placed(sample, view, normalize, fuse, threads)[0] for sample, view in zip(samples, views, strict=True)]


def volume_maps(
    raws: Sequence[Floats], size: tuple[int, int, int], normalize: str = "minmax", fuse: str = "mean", threads: int = 0
) -> Floats:
    """Raw maps (N, d, h, w) of each layer as saliency maps (N, D, H, W): `saliency_maps` with a trilinear resize."""
    flat = [np.maximum(raw, np.float32(0)).reshape(len(raw), -1, raw.shape[3]) for raw in raws]
    scaled = [_core.min_max(maps) if normalize == "minmax" else maps for maps in flat]
    seen = [_trilinear(maps.reshape(raw.shape), size, threads) for maps, raw in zip(scaled, raws, strict=True)]
    if len(seen) == 1 or fuse != "mean":
        seen = [_normalized(maps, normalize) for maps in seen]
    whole = seen[0] if len(seen) == 1 else _normalized(FUSIONS[fuse](np.stack(seen)), normalize)
    return whole.reshape(-1, *size)


def _trilinear(maps: Floats, size: tuple[int, int, int], threads: int) -> Floats:
    """(N, d, h, w) -> (N, D H, W), slice by slice and then across them."""
    (n, d, h, w), (D, H, W) = maps.shape, size
    slices = _core.resize_bilinear(maps.reshape(n * d, h, w), H, W, threads=threads)
    return _core.resize_bilinear(slices.reshape(n, d, H * W), D, H * W, threads=threads).reshape(n, D * H, W)


def _placed(raws: Sequence[Floats], view: View, normalize: str, fuse: str, threads: int) -> Floats:
    """(N, H, W) on the whole picture: one resize, from the map's grid to the region that the model saw."""
    if len(raws) == 1 and normalize == "minmax":
        values = _resized(_core.saliency_maps, raws[0], view, threads)
    else:
        values = _fused(raws, view, normalize, fuse, threads)
    if view.sees_all:
        return values
    x0, y0, x1, y1 = view.region
    whole = np.zeros((len(values), *view.picture_size), np.float32)
    whole[:, y0:y1, x0:x1] = values
    return whole


def _fused(raws: Sequence[Floats], view: View, normalize: str, fuse: str, threads: int) -> Floats:
    """The maps on the region of the picture that the model saw, of one layer or of several."""
    if normalize == "minmax" and fuse != "mean":
        seen = [_resized(_core.saliency_maps, raw, view, threads) for raw in raws]
    else:
        positive = [np.maximum(raw, np.float32(0)) for raw in raws]
        scaled = [_core.min_max(maps) if normalize == "minmax" else maps for maps in positive]
        seen = [_resized(_core.resize_bilinear, maps, view, threads) for maps in scaled]
        if len(seen) == 1 or fuse != "mean":
            seen = [_normalized(maps, normalize) for maps in seen]
    return seen[0] if len(seen) == 1 else _normalized(FUSIONS[fuse](np.stack(seen)), normalize)


def _resized(kernel: Callable[..., Floats], maps: Floats, view: View, threads: int) -> Floats:
    """By one of the kernels that resize, on the region of the picture that the model saw."""
    _, h, w = maps.shape
    return kernel(maps, *view.resize(h, w), threads)


def _normalized(seen: Floats, normalize: str) -> Floats:
    if normalize == "minmax":
        return _core.min_max(seen)
    if normalize == "max":
        peak = seen.max(axis=(1, 2), keepdims=True)
        zeros = np.where(np.isnan(seen), seen, np.float32(0))
        return np.asarray(np.divide(seen, peak, out=zeros, where=peak != 0), np.float32)
    return seen
