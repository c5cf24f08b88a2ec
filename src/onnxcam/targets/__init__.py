"""What is explained: a scalar per sample, built in the graph, so that it differentiates and exports."""

from onnxcam.targets.against import Against
from onnxcam.targets.classes import SCORES, ClassKind, class_kind, class_number
from onnxcam.targets.default import default_kind
from onnxcam.targets.element import Element
from onnxcam.targets.function import Function
from onnxcam.targets.kind import CLASS_INDEX, Question, Scene, Target, TargetInput, TargetKind, TargetSpec
from onnxcam.targets.linear import Linear
from onnxcam.targets.segmentation import Segmentation
from onnxcam.targets.similarity import Similarity

__all__ = [
    "CLASS_INDEX",
    "SCORES",
    "Against",
    "ClassKind",
    "Element",
    "Function",
    "Linear",
    "Question",
    "Scene",
    "Segmentation",
    "Similarity",
    "Target",
    "TargetInput",
    "TargetKind",
    "TargetSpec",
    "class_kind",
    "class_number",
    "default_kind",
]
