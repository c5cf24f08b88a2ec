"""Models that see shades, in several layouts, sizes and orders of classes; pictures with one square."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper, parser
from PIL import Image

from onnxcam import ClassScore, Explanation, Picture
from onnxcam.comparison import Pair

RED, GREEN, BLUE = np.eye(3, dtype=np.float32)


def shades(
    classes: dict[str, Sequence[float]], *, grid: int = 8, layout: str = "nchw", labelled: bool = True, **preprocess
) -> ModelProto:
    """Each class's logit is the mean over the picture of 8 times its shade (r, g, b) . pixel, pixels in 0..1."""
    shape = "N,3,{0},{0}" if layout == "nchw" else "N,{0},{0},3"
    turn = "" if layout == "nchw" else "t = Transpose<perm=[0,3,1,2]>(x)"
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        shades (float[{shape.format(grid)}] x) => (float[N,{len(classes)}] y)
        {{
            {turn}
            e = Relu({"x" if layout == "nchw" else "t"})
            a = Abs(e)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            z = Gemm<transB=1>(f, w)
            y = Softmax(z)
        }}""")
    weights = 8 * np.array(list(classes.values()), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    settings = {"size": [grid, grid], "fit": "squash", "layout": layout} | preprocess
    labels = {"onnxcam.labels": json.dumps(list(classes))} if labelled else {}
    onnx.helper.set_model_props(model, {"onnxcam.preprocess": json.dumps(settings), **labels})
    return model


THREE = {"red": RED, "green": GREEN, "blue": BLUE}


def square(colour: Sequence[int], size: tuple[int, int] = (16, 16), left: int = 4) -> Image.Image:
    """A dark picture of a size (W, H), a ramp of its own in each channel, with 6x6 pixels of a colour from x = left,
    y = 4."""
    y, x = np.mgrid[: size[1], : size[0]]
    rgb = (20 + np.stack([x, 2 * y, np.abs(x - y)], -1)).astype(np.uint8)
    rgb[4:10, left : left + 6] = colour
    return Image.fromarray(rgb)


def explanation(values, *, region: tuple[int, int, int, int] | None = None, best: int = 0, **fields) -> Explanation:
    """An explanation with these (H, W) values in [0, 1]."""
    values = np.asarray(values, np.float32)
    height, width = values.shape
    scores = np.zeros(3, np.float32)
    scores[best] = 0.9
    made = Explanation(
        values=values,
        raws=(values,),
        class_index=0,
        label="red",
        score=2.0,
        probability=0.9,
        layer="a",
        method="gradcam",
        region=region or (0, 0, width, height),
        scores=scores,
        labels=("red", "green", "blue"),
        picture=Picture(np.full((height, width, 3), 100, np.uint8), "<array>", None),
    )
    return replace(made, **fields)


def pair(a, b, **fields) -> Pair:
    return Pair("picture", explanation(a, **fields), explanation(b, **fields))


def top(index: int, label: str | None, score: float = 0.5) -> ClassScore:
    return ClassScore(index, label, score)
