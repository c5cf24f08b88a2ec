"""ROAD: the score after pixels are removed and imputed from their neighbours, so that no mask shape leaks a class.

Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML 2022. Percentiles mean what
they mean in pytorch-grad-cam.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxcam.errors import UsageError
from onnxcam.metrics.faithfulness import Array, Doubles, Score

Mask = npt.NDArray[np.bool_]

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
NOISE = 0.01


def road_morf(
    score: Score,
    x: Array,
    saliency: Array,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = NOISE,
    seed: int = 0,
) -> Doubles:
    """score - score(x) per percentile, the most relevant pixels removed; lower is better.

    p keeps the pixels below the map's p-th percentile: 80 removes the 20 % most relevant.

    x (C, H, W), saliency (H, W). noise: standard deviation of the normal noise on imputed values, drawn from `seed`.
    Where the percentile is the map's minimum (many pixels are 0), the pixels at the minimum stay; of a constant map
    nothing is removed and the result is 0. Removing everything would leave nothing to impute from.
    """
    removals = [_removed(saliency, p) for p in percentiles]
    rng = np.random.default_rng(seed)
    imputed = []
    for removed in removals:
        sample = impute(x, removed)
        sample[:, removed] += noise * rng.standard_normal((len(x), int(removed.sum())))
        imputed.append(sample)
    scores = np.asarray(score(np.stack([x, *imputed]).astype(np.float32)), np.float64)
    return np.asarray(scores[1:] - scores[0])


def road_lerf(
    score: Score,
    x: Array,
    saliency: Array,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = NOISE,
    seed: int = 0,
) -> Doubles:
    """`road_morf` of 1 - saliency: p removes the (100 - p) % least relevant pixels; higher is better."""
    return road_morf(score, x, 1 - saliency, percentiles=percentiles, noise=noise, seed=seed)


def road_combined(
    score: Score,
    x: Array,
    saliency: Array,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = NOISE,
    seed: int = 0,
) -> float:
    """(mean of LeRF - mean of MoRF) / 2, in [-0.5, 0.5] for probabilities; higher is better."""
    lerf, morf = (
        curve(score, x, saliency, percentiles=percentiles, noise=noise, seed=seed) for curve in (road_lerf, road_morf)
    )
    return float((lerf.mean() - morf.mean()) / 2)


def _removed(saliency: Array, percentile: float) -> Mask:
    if not 0 <= percentile <= 100:
        raise UsageError(f"percentile {percentile} is outside [0, 100]", "80 removes the 20 % most relevant pixels")
    threshold = np.percentile(saliency, percentile)
    removed: Mask = saliency >= threshold
    return saliency > threshold if removed.all() else removed


def impute(x: Array, removed: Mask, *, tolerance: float = 1e-7) -> Doubles:
    """x (C, H, W) with removed (H, W) pixels solved from their neighbours, each the weighted mean of its own.

    (sum_n w_n) v_i = sum_n w_n v_n over the neighbours n of i inside the picture, w = 1/6 beside and above, 1/12
    diagonally, channel by channel: a Laplace equation with the kept pixels as boundary values. Solved in float64 by
    conjugate gradients with one multigrid cycle as preconditioner, to a residual of `tolerance` times the first.

    Raises: UsageError where every pixel is removed.
    """
    if removed.all():
        raise UsageError("every pixel is removed: there is nothing to impute from", "keep one pixel at least")
    values = x.astype(np.float64)
    if removed.any():
        window = tuple(
            slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2)
            for found in (np.flatnonzero(removed.any(axis=1)), np.flatnonzero(removed.any(axis=0)))
        )
        values[:, *window] = _solved(values[:, *window], removed[window], tolerance)
    return values


def _solved(values: Doubles, removed: Mask, tolerance: float) -> Doubles:
    grid = _Grid(removed.astype(np.float64))
    known = values * (1 - grid.hole)
    solution = np.zeros_like(known)
    residual = grid.hole * _neighbours(known)
    enough = tolerance**2 * _dot(residual, residual)
    direction = np.zeros_like(known)
    along = np.ones_like(enough)
    while (_dot(residual, residual) > enough).any():
        correction = grid.cycle(residual)
        product = _dot(residual, correction)
        direction = correction + product / along * direction
        image = grid.apply(direction)
        step = _divided(product, _dot(direction, image))
        solution += step * direction
        residual = residual - step * image
        along = np.where(product > 0, product, 1.0)
    return known + solution


class _Grid:
    """The system on the removed pixels (`hole` is 1 there, 0 elsewhere), and a V-cycle that nearly solves it."""

    def __init__(self, hole: Doubles) -> None:
        self.hole = hole
        self.diagonal = _neighbours(np.ones_like(hole))
        # Damped Jacobi; 0.8 needs the fewest iterations.
        self.smoother = 0.8 * hole / self.diagonal
        self.coarse: _Grid | None = None
        if min(hole.shape) > 2:
            # A coarse cell is unknown where all of it is.
            coarse = np.asarray(_pooled(1 - hole) == 0, np.float64)
            if coarse.any():
                self.coarse = _Grid(coarse)

    def apply(self, v: Doubles) -> Doubles:
        return np.asarray(self.hole * (self.diagonal * v - _neighbours(v)))

    def cycle(self, residual: Doubles) -> Doubles:
        v = self.smoother * residual
        if self.coarse is not None:
            below = self.coarse.cycle(self.coarse.hole * _pooled(residual - self.apply(v)))
            height, width = self.hole.shape
            v = v + self.hole * below.repeat(2, -2).repeat(2, -1)[..., :height, :width]
        return np.asarray(v + self.smoother * (residual - self.apply(v)))


def _neighbours(v: Doubles) -> Doubles:
    """sum_n w_n v_n over the eight neighbours inside the picture: ([1 2 1] x [1 2 1] - 4 at the centre) / 12."""
    rows = 2 * v
    rows[..., 1:, :] += v[..., :-1, :]
    rows[..., :-1, :] += v[..., 1:, :]
    both = 2 * rows
    both[..., 1:] += rows[..., :-1]
    both[..., :-1] += rows[..., 1:]
    both -= 4 * v
    both /= 12
    return both


def _pooled(v: Doubles) -> Doubles:
    """Sums of 2 x 2 cells, the odd border filled with 0."""
    height, width = v.shape[-2:]
    p = np.pad(v, [(0, 0)] * (v.ndim - 2) + [(0, height % 2), (0, width % 2)])
    return np.asarray(p[..., ::2, ::2] + p[..., 1::2, ::2] + p[..., ::2, 1::2] + p[..., 1::2, 1::2])


def _dot(a: Doubles, b: Doubles) -> Doubles:
    return np.asarray((a * b).sum(axis=(-2, -1), keepdims=True))


def _divided(a: Doubles, b: Doubles) -> Doubles:
    """a / b, 0 where a channel is solved already."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
