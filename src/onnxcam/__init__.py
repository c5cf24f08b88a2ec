"""Explains deployed ONNX models."""
