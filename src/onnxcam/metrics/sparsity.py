"""Sparsity: how little of the picture the map needs."""

import numpy as np

from onnxcam.metrics.faithfulness import Array


def complexity(saliency: Array) -> float:
    """mean |S| of a map (H, W) in [0, 1]; lower is simpler (Poppi et al., ADCC, CVPRW 2021: the L1 norm per pixel)."""
    return float(np.abs(saliency).mean(dtype=np.float64))


def sparseness(saliency: Array) -> float:
    """Gini index of |S|, in [0, 1); 0 is a flat map, near 1 a single pixel; NaN for an empty map.

    Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training, ICML 2020.
    """
    s = np.sort(np.abs(saliency).ravel().astype(np.float64))
    n, total = s.size, s.sum()
    return float(((2 * np.arange(1, n + 1) - n - 1) * s).sum() / (n * total)) if total > 0 else float("nan")
