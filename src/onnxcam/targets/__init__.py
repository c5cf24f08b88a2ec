"""What is explained: a scalar per sample, built in the graph, so that it differentiates and exports."""

from onnxcam.targets.classes import SCORES, ClassKind, class_kind, class_number
from onnxcam.targets.default import default_kind
from onnxcam.targets.kind import Question, Scene, Target, TargetInput, TargetKind, TargetSpec
from onnxcam.targets.linear import Linear
from onnxcam.targets.segmentation import Segmentation

__all__ = [
    "SCORES",
    "ClassKind",
    "Linear",
    "Question",
    "Scene",
    "Segmentation",
    "Target",
    "TargetInput",
    "TargetKind",
    "TargetSpec",
    "class_kind",
    "class_number",
    "default_kind",
]
