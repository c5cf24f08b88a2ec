"""Reading, indexing and extending ONNX graphs."""
