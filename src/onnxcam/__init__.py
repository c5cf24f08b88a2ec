"""Shows which part of a picture made an ONNX model decide: Grad-CAM and its family, on any runtime, without PyTorch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcam.comparison import Comparison, compare
    from onnxcam.detection import Detector
    from onnxcam.errors import OnnxCamError
    from onnxcam.explained import rewrite
    from onnxcam.explainer import Explainer, explain
    from onnxcam.explanation import BadPicture, ClassScore, Explanation
    from onnxcam.exported import Exported, export
    from onnxcam.metrics.evaluation import evaluate
    from onnxcam.preprocess import Picture, Preprocess, load_picture

# Loaded on first use: `import onnxcam` costs no numpy, no onnx.
_HOMES = {
    "BadPicture": "explanation",
    "ClassScore": "explanation",
    "Comparison": "comparison",
    "Detector": "detection",
    "Explainer": "explainer",
    "Explanation": "explanation",
    "Exported": "exported",
    "OnnxCamError": "errors",
    "Picture": "preprocess",
    "Preprocess": "preprocess",
    "compare": "comparison",
    "evaluate": "metrics.evaluation",
    "explain": "explainer",
    "export": "exported",
    "load_picture": "preprocess",
    "rewrite": "explained",
}

__all__ = [
    "BadPicture",
    "ClassScore",
    "Comparison",
    "Detector",
    "Explainer",
    "Explanation",
    "Exported",
    "OnnxCamError",
    "Picture",
    "Preprocess",
    "compare",
    "evaluate",
    "explain",
    "export",
    "load_picture",
    "rewrite",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(f"onnxcam.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("onnxcam")
    raise AttributeError(f"module 'onnxcam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
