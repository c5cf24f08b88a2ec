"""A model that sees colours, and pictures with a square of one colour."""

import json

import numpy as np
import onnx
from onnx import ModelProto, parser
from PIL import Image

LABELS = ("<b>red</b> & scarlet", "green", "blue")


def colours() -> ModelProto:
    """The logits are 8 times the mean red, green and blue of 8x8 pixels in 0..1, stretched."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        colours (float[N,3,8,8] x) => (float[N,3] y)
        <float[3,3] w = {8, 0, 0, 0, 8, 0, 0, 0, 8}>
        {
            a = Relu(x)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            z = Gemm<transB=1>(f, w)
            y = Softmax(z)
        }""")
    settings = {"size": [8, 8], "fit": "squash"}
    onnx.helper.set_model_props(
        model, {"onnxcam.labels": json.dumps(LABELS), "onnxcam.preprocess": json.dumps(settings)}
    )
    return model


def square(colour: tuple[int, int, int], size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A picture of a size (W, H), dark grey, with 8x8 pixels of a colour at x 4..11, y 4..11."""
    rgb = np.full((size[1], size[0], 3), 40, np.uint8)
    rgb[4:12, 4:12] = colour
    return Image.fromarray(rgb)
