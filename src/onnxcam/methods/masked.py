"""Methods that show the model masked pictures: with the layer's own channels as masks, with random ones, with holes."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from onnxcam import _core
from onnxcam.methods.loop import Floats, Loop
from onnxcam.methods.registry import Option, looped

CHANNELS = Option(0, "only this many channels, those with the largest deviation over space; 0 is all", low=0)


@looped(
    "scorecam",
    planar=True,
    formula="alpha = softmax_k(score of x times U_k), U_k the channel enlarged and scaled to [0, 1]",
    paper="Wang et al., Score-CAM, CVPR Workshops 2020",
    passes="1 + K",
    options={"channels": CHANNELS},
)
def scorecam(loop: Loop) -> list[Floats]:
    """alpha (N, K, 1, 1), as pytorch-grad-cam: channels are enlarged with corners aligned, then scaled with 1e-8.

    No baseline is subtracted, since softmax does not see it. `channels` n is the faster form (tf-keras-vis,
    Faster-Score-CAM): only the n channels with the largest standard deviation over space take part.
    """
    return [_weights(loop, layer, 1, lambda masks: masks) for layer in range(len(loop.activations))]


@looped(
    "sscam",
    planar=True,
    formula="alpha = softmax_k(mean_i score of x times (U_k + noise_i))",
    paper="Wang et al., SS-CAM, 2020",
    passes="1 + samples K",
    options={
        "channels": CHANNELS,
        "samples": Option(35, "noisy masks per channel", low=1),
        "std": Option(2.0, "standard deviation of the noise on the mask", low=0.0),
    },
)
def sscam(loop: Loop) -> list[Floats]:
    """alpha (N, K, 1, 1): Score-CAM with normal noise on every mask, the scores averaged.

    Number and deviation of the noise are TorchCAM's, the masks are Score-CAM's here. Seeded by the explainer's `seed`.
    """
    samples, std = loop.options["samples"], np.float32(loop.options["std"])

    def noisy(masks: Iterator[Floats]) -> Iterator[Floats]:
        rng = loop.random()
        for mask in masks:
            for _ in range(samples):
                yield mask + std * rng.standard_normal(mask.shape, np.float32)

    return [_weights(loop, layer, samples, noisy) for layer in range(len(loop.activations))]


@looped(
    "iscam",
    planar=True,
    formula="alpha = softmax_k(mean_i score of x times U_k i / samples), i = 1 ... samples",
    paper="Naidu et al., IS-CAM, 2020",
    passes="1 + samples K",
    options={"channels": CHANNELS, "samples": Option(10, "brightness steps per channel", low=1)},
)
def iscam(loop: Loop) -> list[Floats]:
    """alpha (N, K, 1, 1): Score-CAM averaged over masks that brighten from 1/samples to 1, as in the paper.

    TorchCAM adds these factors up to 5.5 for 10 samples, which over-exposes the picture; its numbers differ.
    """
    samples = loop.options["samples"]

    def brightening(masks: Iterator[Floats]) -> Iterator[Floats]:
        for mask in masks:
            for i in range(1, samples + 1):
                yield mask * np.float32(i / samples)

    return [_weights(loop, layer, samples, brightening) for layer in range(len(loop.activations))]


def _weights(loop: Loop, layer: int, variants: int, varied: Callable[[Iterator[Floats]], Iterator[Floats]]) -> Floats:
    """alpha (N, K, 1, 1): softmax over the chosen channels of the mean score under their masks' `variants`."""
    a = loop.activations[layer]
    alpha = np.zeros((*a.shape[:2], 1, 1), np.float32)
    for sample, channels in enumerate(_chosen(a, loop.options["channels"])):
        masks = varied(_enlarged(a[sample], channels, loop.size, loop.batch_size))
        scores = loop.masked_scores(sample, masks, len(channels) * variants)
        means = scores.reshape(len(channels), variants).astype(np.float64).mean(axis=1)
        raised = np.exp(means - means.max())
        alpha[sample, channels, 0, 0] = raised / raised.sum()
    return alpha


def _chosen(a: Floats, count: int) -> list[npt.NDArray[np.intp]]:
    """Per sample the channels that take part, ascending."""
    k = a.shape[1]
    if not 0 < count < k:
        return [np.arange(k)] * len(a)
    deviations = a.std(axis=(2, 3), dtype=np.float64)
    return [np.sort(np.argsort(-d, kind="stable")[:count]) for d in deviations]


def _enlarged(a: Floats, channels: npt.NDArray[np.intp], size: tuple[int, int], at_once: int) -> Iterator[Floats]:
    """Channels (K, h, w) as masks (H, W) in [0, 1]: enlarged with corners aligned, then scaled with 1e-8."""
    scales = [(n - 1) / (N - 1) if n > 1 and N > 1 else 1e-9 for n, N in zip(a.shape[1:], size, strict=True)]
    for start in range(0, len(channels), at_once):
        masks = _core.resize_bilinear(
            a[channels[start : start + at_once]],
            *size,
            y_scale=scales[0],
            y_offset=0.5 - 0.5 * scales[0],
            x_scale=scales[1],
            x_offset=0.5 - 0.5 * scales[1],
        )
        low, high = masks.min(axis=(1, 2), keepdims=True), masks.max(axis=(1, 2), keepdims=True)
        yield from (masks - low) / (high - low + np.float32(1e-8))


@looped(
    "rise",
    planar=True,
    formula="M = sum_i score of x times mask_i * mask_i / (masks p)",
    paper="Petsiuk et al., RISE, BMVC 2018",
    passes="1 + masks",
    combine="none",
    at_input=True,
    options={
        "masks": Option(1000, "random masks", low=1),
        "cells": Option(8, "cells of the random grid along each side", low=1),
        "p": Option(0.5, "probability that a cell is seen", low=0.0, high=1.0),
    },
)
def rise(loop: Loop) -> list[Floats]:
    """The raw map (N, H, W), in units of the score: what a pixel's being seen is worth on average.

    The paper's form, divided by the number of masks times p, with bilinear masks, for pictures of any shape;
    openvino_xai enlarges by cubic interpolation and does not divide. The paper's score is the probability
    (`score="probability"`); a logit has no zero of its own, so the least pixel is shifted to 0, where a ReLU would
    leave nothing of the map of a negative logit. Seeded by the explainer's `seed`.
    """
    count, p = loop.options["masks"], loop.options["p"]
    maps = np.zeros((len(loop.x), *loop.size))
    for sample in range(len(loop.x)):
        for masks, scores in loop.masked(sample, _random_masks(loop, count, p), count):
            maps[sample] += np.tensordot(scores.astype(np.float64), masks, 1)
    maps -= maps.min(axis=(1, 2), keepdims=True)
    return [(maps / (count * p)).astype(np.float32)]


def _random_masks(loop: Loop, count: int, p: float) -> Iterator[Floats]:
    """Bernoulli grids, enlarged to one cell more than the picture and cropped at a random shift of up to one cell."""
    rng, cells = loop.random(), loop.options["cells"]
    height, width = loop.size
    h, w = -(-height // cells), -(-width // cells)
    for _ in range(count):
        grid = (rng.random((1, cells, cells)) < p).astype(np.float32)
        (whole,) = _core.resize_bilinear(grid, (cells + 1) * h, (cells + 1) * w)
        y, x = rng.integers(0, h), rng.integers(0, w)
        yield whole[y : y + height, x : x + width]


@looped(
    "occlusion",
    planar=True,
    formula="M = mean over the windows on a pixel of score(x) - score(x without the window)",
    paper="Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014",
    passes="1 + windows",
    combine="none",
    at_input=True,
    options={
        "window": Option(0, "pixels along each side of the window; 0 is an eighth of the shorter side", low=0),
        "stride": Option(0, "pixels from window to window; 0 is half a window", low=0),
    },
)
def occlusion(loop: Loop) -> list[Floats]:
    """The raw map (N, H, W), in units of the score: how much the score drops when the pixel's surroundings are hidden.

    A window is set to 0 in the model's input; windows at the far edges are cut off by the picture's, as Captum's.
    """
    height, width = loop.size
    window = min(loop.options["window"] or max(1, min(loop.size) // 8), height, width)
    stride = min(loop.options["stride"] or max(1, window // 2), window)
    corners = [
        (y, x)
        for y in range(0, max(1, height - window + stride), stride)
        for x in range(0, max(1, width - window + stride), stride)
    ]
    maps = np.zeros((len(loop.x), *loop.size))
    for sample, whole in enumerate(loop.score):
        covered = np.zeros(loop.size)
        for masks, scores in loop.masked(sample, _windows(loop.size, corners, window), len(corners)):
            maps[sample] += np.tensordot(np.float64(whole) - scores, 1 - masks, 1)
            covered += (1 - masks).sum(axis=0)
        maps[sample] /= covered
    return [maps.astype(np.float32)]


def _windows(size: tuple[int, int], corners: list[tuple[int, int]], window: int) -> Iterator[Floats]:
    for y, x in corners:
        mask = np.ones(size, np.float32)
        mask[y : y + window, x : x + window] = 0
        yield mask
