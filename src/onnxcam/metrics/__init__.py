"""Measures that tell which map to believe: plain functions on arrays, and the table that `onnxcam evaluate` reads."""

from onnxcam.metrics import table as table
from onnxcam.metrics.coherence import adcc, arcc, coherency
from onnxcam.metrics.faithfulness import (
    Curve,
    average_drop,
    average_gain,
    deletion_curve,
    drop_in_confidence,
    increase_in_confidence,
    infidelity,
    insertion_curve,
)
from onnxcam.metrics.localisation import (
    boxes_mask,
    energy_pointing_game,
    iou,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from onnxcam.metrics.randomisation import randomised_models, rank_correlation
from onnxcam.metrics.registry import METRICS, Metric, find_metric, metric
from onnxcam.metrics.road import impute, road_combined, road_lerf, road_morf
from onnxcam.metrics.robustness import max_sensitivity
from onnxcam.metrics.sample import Sample, Settings
from onnxcam.metrics.sparsity import complexity, sparseness

__all__ = [
    "METRICS",
    "Curve",
    "Metric",
    "Sample",
    "Settings",
    "adcc",
    "arcc",
    "average_drop",
    "average_gain",
    "boxes_mask",
    "coherency",
    "complexity",
    "deletion_curve",
    "drop_in_confidence",
    "energy_pointing_game",
    "find_metric",
    "impute",
    "increase_in_confidence",
    "infidelity",
    "insertion_curve",
    "iou",
    "max_sensitivity",
    "metric",
    "pointing_game",
    "randomised_models",
    "rank_correlation",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "road_combined",
    "road_lerf",
    "road_morf",
    "sparseness",
]
