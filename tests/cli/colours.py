"""A model small enough to foresee, and what a command of the program leaves behind."""

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, parser

LABELS = ["tabby, tabby cat", "crane, bird", "crane, machine"]

# How red, green and blue a picture is; sees 8x8 pixels, stretched.
COLOURS = """
    <ir_version: 8, opset_import: ["" : 18]>
    colours (float[N,3,8,8] x) => (float[N,3] y)
    <float[3,3] w = {1, 0, 0, 0, 1, 0, 0, 0, 1}>
    {
        a = Relu(x)
        p = GlobalAveragePool(a)
        f = Flatten(p)
        z = Gemm<transB=1>(f, w)
        y = Softmax(z)
    }"""


def described(text: str) -> ModelProto:
    """The model with labels and preprocessing in its metadata."""
    model = parser.parse_model(text)
    metadata = {
        "onnxcam.labels": json.dumps(LABELS),
        "onnxcam.preprocess": json.dumps({"size": [8, 8], "fit": "squash"}),
    }
    onnx.helper.set_model_props(model, metadata)
    return model


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder with its content, to see that nothing was written."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@dataclass
class Result:
    code: int
    out: str
    err: str
