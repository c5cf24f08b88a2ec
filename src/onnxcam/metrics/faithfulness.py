"""Faithfulness: does the score follow when what the map calls important is kept, removed or put back?

`score` maps model-ready samples (n, C, H, W) to the scores (n,) of one class, probabilities where a metric says so.
A sample is x (C, H, W), a map is (H, W) of the same height and width, both float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcam.errors import UsageError

Array = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Score = Callable[[Floats], Floats]
Baseline = str | Array

BASELINES = ("zeros", "mean", "blur")
BLUR_SIGMA = 5.0

# TorchCAM's guard of the relative drop against a probability of 0.
EPSILON = 1e-7


def average_drop(before: npt.ArrayLike, after: npt.ArrayLike) -> Doubles:
    """max(0, before - after) / before, per sample in [0, 1]; 0 is best. Both are probabilities of one shape.

    before: on the picture, after: on the picture times the map (Chattopadhay et al., Grad-CAM++, WACV 2018).
    """
    y, o = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return np.maximum(y - o, 0) / (y + EPSILON)


def drop_in_confidence(before: npt.ArrayLike, after: npt.ArrayLike) -> Doubles:
    """max(0, before - after), per sample, not divided by the score: pytorch-grad-cam's DropInConfidence."""
    return np.maximum(np.asarray(before, np.float64) - np.asarray(after, np.float64), 0)


def increase_in_confidence(before: npt.ArrayLike, after: npt.ArrayLike) -> Doubles:
    """1 where the score rises, else 0 (Chattopadhay et al., Grad-CAM++, WACV 2018)."""
    return np.asarray(np.asarray(after, np.float64) > np.asarray(before, np.float64), np.float64)


def average_gain(before: npt.ArrayLike, after: npt.ArrayLike) -> Doubles:
    """max(0, after - before) / (1 - before), per sample in [0, 1]; 1 is best (Zhang et al., Opti-CAM, CVIU 2024)."""
    y, o = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return np.maximum(o - y, 0) / (1 - y + EPSILON)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores (S + 1,) after changing the given fractions (S + 1,), 0 to 1, of the pixels, most relevant first."""

    fraction: Doubles
    score: Doubles

    @property
    def auc(self) -> float:
        """Area under the curve by trapezoids, in units of the score."""
        return float((np.diff(self.fraction) * (self.score[1:] + self.score[:-1])).sum() / 2)


def deletion_curve(score: Score, x: Array, saliency: Array, *, steps: int = 30, baseline: Baseline = "zeros") -> Curve:
    """The score as pixels are replaced by the baseline, most relevant first; a good map makes it fall fast.

    baseline: `zeros`, `mean` (of each channel), `blur` (Gaussian, sigma 5 pixels), or an array that broadcasts to x.
    Of equal values the upper, then the left pixel goes first. (Petsiuk et al., RISE, BMVC 2018; 30 steps from zeros
    are openvino_xai's, and 20 TorchCAM's.)

    Raises: UsageError for an unknown baseline, or fewer than 1 step.
    """
    return _curve(score, x, baseline_of(x, baseline), saliency, steps)


def insertion_curve(score: Score, x: Array, saliency: Array, *, steps: int = 30, baseline: Baseline = "zeros") -> Curve:
    """The score as the picture's pixels appear on the baseline, most relevant first; a good map makes it rise fast.

    Arguments and errors as for `deletion_curve`. RISE starts from `blur`, openvino_xai and TorchCAM from `zeros`.
    """
    return _curve(score, baseline_of(x, baseline), x, saliency, steps)


def _curve(score: Score, start: Array, end: Array, saliency: Array, steps: int) -> Curve:
    if steps < 1:
        raise UsageError(f"a curve of {steps} steps", "give 1 or more")
    order = np.argsort(-saliency.ravel(), kind="stable")
    counts = np.unique(np.rint(np.linspace(0, order.size, steps + 1)).astype(np.int64))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    ranks = rank.reshape(saliency.shape)
    samples = (np.where(ranks < count, end, start).astype(np.float32) for count in counts)
    return Curve(counts / order.size, np.asarray(score(np.stack(list(samples))), np.float64))


def baseline_of(x: Array, baseline: Baseline) -> Floats:
    """What stands for "nothing to see" in place of x (C, H, W), of the same shape."""
    if not isinstance(baseline, str):
        return np.broadcast_to(np.asarray(baseline, np.float32), x.shape)
    if baseline == "zeros":
        return np.zeros(x.shape, np.float32)
    if baseline == "mean":
        return np.broadcast_to(x.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32), x.shape)
    if baseline == "blur":
        return _blurred(x, BLUR_SIGMA)
    raise UsageError(f"unknown baseline `{baseline}`", f"use one of {', '.join(BASELINES)}, or an array")


def _blurred(x: Array, sigma: float) -> Floats:
    """Gaussian blur of each channel, the border repeated."""
    reach = round(3 * sigma)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        length = x.shape[axis]
        x = sum(
            weight * x.take(np.clip(np.arange(length) + offset, 0, length - 1), axis)
            for weight, offset in zip(kernel, offsets, strict=True)
        )
    return x.astype(np.float32)


def infidelity(
    score: Score,
    x: Array,
    saliency: Array,
    *,
    samples: int = 64,
    share: float = 0.3,
    baseline: Baseline = "zeros",
    normalize: bool = True,
    seed: int = 0,
) -> float:
    """E[(b sum_hw m S - (f(x) - f(x with m replaced)))^2] over random squares m; >= 0, 0 is best.

    The map S should tell how much the score f falls when a square of 1 to `share` of the shorter side is replaced by
    the baseline. normalize: b is the least-squares factor, since a map in [0, 1] has no unit; else b = 1. (Yeh et
    al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019: square removal and optimal scaling.)
    """
    rng = np.random.default_rng(seed)
    height, width = saliency.shape
    masks = np.zeros((samples, height, width), bool)
    for mask in masks:
        side = int(rng.integers(1, max(1, round(share * min(height, width))) + 1))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        mask[top : top + side, left : left + side] = True
    replaced = np.where(masks[:, None], baseline_of(x, baseline), x).astype(np.float32)
    scores = np.asarray(score(np.concatenate([x[None].astype(np.float32), replaced])), np.float64)
    fall = scores[0] - scores[1:]
    said = (masks * saliency.astype(np.float64)).sum(axis=(1, 2))
    if normalize:
        power = (said * said).sum()
        said = said * ((said * fall).sum() / power if power > 0 else 0.0)
    return float(((said - fall) ** 2).mean())
