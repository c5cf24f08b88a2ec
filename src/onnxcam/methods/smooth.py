"""Smooth Grad-CAM++: the derivatives averaged over noisy pictures, the map made of the clean one's activations."""

import numpy as np

from onnxcam.autodiff.engine import INTEGERS
from onnxcam.errors import UnsupportedError
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.layers import Layer
from onnxcam.methods.attribution import gradients_at, noisy
from onnxcam.methods.loop import Floats, Loop
from onnxcam.methods.registry import MethodContext, Option, looped


def float_pixels(graph: Graph, head: Head, layer: Layer) -> None:
    """Raises: UnsupportedError where the picture holds integers, which cannot take normal noise."""
    if graph.dtype(graph.inputs[0]) in INTEGERS:
        raise UnsupportedError(f"input `{graph.inputs[0]}` holds integers: there is no noise to add", "use `gradcam++`")


def _gradients(context: MethodContext) -> str:
    return context.gradients


@looped(
    "smoothgradcam++",
    formula="alpha_k = sum_hw max(0, D1) D2 / (2 D2 + D3 sum_hw A_k + 1e-6), Dp = mean_i G_k(x + noise_i)^p",
    paper="Omeiza et al., Smooth Grad-CAM++, 2019",
    passes="1 + samples",
    alpha=_gradients,
    gradients=True,
    requires=float_pixels,
    options={
        "samples": Option(4, "noisy pictures", low=1),
        "std": Option(0.07, "standard deviation of the noise, as a share of the input's range", low=0.0),
    },
)
def smoothgradcam_plus_plus(loop: Loop) -> list[Floats]:
    """alpha (N, K, 1, 1): Grad-CAM++ with the mean of each power of G over noisy pictures, A of the clean one.

    Without noise it is `gradcam++`, constants included. TorchCAM 0.5 weighs and sums with the activations and the
    gradient of its last noisy picture instead, unseeded. Its 4 pictures and, on ImageNet's pixels, its noise of 0.3
    are the defaults. Seeded by the explainer's `seed`.
    """
    count = loop.options["samples"]
    alphas = []
    for layer, a in enumerate(loop.activations):
        alpha = np.zeros((*a.shape[:2], 1, 1), np.float32)
        for sample, x in enumerate(loop.x):
            powers = np.zeros((3, *a.shape[1:]))
            for g in gradients_at(loop, sample, noisy(loop, x, count), count, layer):
                powers += [(g.astype(np.float64) ** p).sum(axis=0) / count for p in (1, 2, 3)]
            first, second, third = powers
            total = a[sample].sum(axis=(1, 2), dtype=np.float64, keepdims=True)
            share = second / (2 * second + third * total + 1e-6)
            alpha[sample] = (np.maximum(first, 0) * share).sum(axis=(1, 2), keepdims=True)
        alphas.append(alpha)
    return alphas
