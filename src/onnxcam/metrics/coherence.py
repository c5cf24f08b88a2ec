"""Coherence: does the map of what the map shows look the same? And the harmonic means that build on it."""

import numpy as np

from onnxcam.metrics.faithfulness import Array


def coherency(saliency: Array, again: Array) -> float:
    """(Pearson correlation + 1) / 2 of a map and the map of the picture times that map, in [0, 1]; higher is better.

    Poppi et al., Revisiting the Evaluation of Class Activation Mapping for Explainability, CVPRW 2021. 0.5 where one
    of the two is constant: 1e-8 in the denominator, as in pytorch-grad-cam.
    """
    a, b = (m.ravel().astype(np.float64) - m.mean(dtype=np.float64) for m in (saliency, again))
    n = a.size - 1
    deviations = np.sqrt((a @ a) / n) * np.sqrt((b @ b) / n)
    return float(((a @ b) / n / (deviations + 1e-8) + 1) / 2)


def adcc(coherency: float, complexity: float, average_drop: float) -> float:
    """3 / (1/coherency + 1/(1 - complexity) + 1/(1 - average_drop)), in [0, 1]; higher is better.

    The harmonic mean of Poppi et al., CVPRW 2021; 0 where a term is.
    """
    terms = (coherency, 1 - complexity, 1 - average_drop)
    return 3 / sum(1 / t for t in terms) if min(terms) > 0 else 0.0


def arcc(coherency: float, complexity: float, road: float) -> float:
    """3 / (1/coherency + 1/(1 - complexity) + 1/r), r = clip(2 ROADCombined, 0, 1); higher is better.

    ADCC with ROAD in place of the drop, as in pytorch-grad-cam: 1e-8 added to each term, percentiles 20, 40, 60, 80.
    """
    terms = (coherency, 1 - complexity, min(max(2 * road, 0.0), 1.0))
    return 3 / sum(1 / (t + 1e-8) for t in terms)
