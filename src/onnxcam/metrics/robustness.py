"""Robustness: does the map stay when the picture hardly changes?"""

from collections.abc import Callable

import numpy as np

from onnxcam.metrics.faithfulness import Array, Floats

Explain = Callable[[Floats], Floats]


def max_sensitivity(
    explain: Explain, x: Array, saliency: Array, *, samples: int = 10, radius: float = 0.02, seed: int = 0
) -> float:
    """max |S(x + d) - S(x)| / |S(x)| over d uniform in [-radius, radius]; Frobenius norms; >= 0, lower is better.

    x (C, H, W) model-ready, radius in its units; NaN for an empty map. Samples and radius are Captum's. (Yeh et al.,
    On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019.)
    """
    norm = float(np.linalg.norm(saliency.astype(np.float64)))
    if norm == 0:
        return float("nan")
    rng = np.random.default_rng(seed)
    moved = (
        explain((x + rng.uniform(-radius, radius, x.shape)).astype(np.float32)).astype(np.float64)
        for _ in range(samples)
    )
    return max(float(np.linalg.norm(m - saliency)) for m in moved) / norm
