"""Detectors: which outputs hold the boxes, what they mean, and why each box was found."""

from onnxcam.detection.best_box import BestBox
from onnxcam.detection.detector import BOX_SCORES, Box, BoxExplanation, Detector, looks_like_detector
from onnxcam.detection.recognise import KINDS

__all__ = ["BOX_SCORES", "KINDS", "BestBox", "Box", "BoxExplanation", "Detector", "looks_like_detector"]
