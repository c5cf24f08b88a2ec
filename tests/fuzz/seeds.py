"""Sound files to start from: small models of several shapes, pictures of every format, settings, manifests, records."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo.onnx"


def _weight(name: str, *shape: int) -> TensorProto:
    values = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def _integers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _model(nodes: list[object], weights: list[TensorProto], opset: int = 18, ir: int = 8, **more: object) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **more)


def convolutional(opset: int = 18, ir: int = 8) -> ModelProto:
    return _model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("GlobalAveragePool", ["p"], ["m"]),
            helper.make_node("Flatten", ["m"], ["f"]),
            helper.make_node("Gemm", ["f", "g", "h"], ["z"], transB=1),
            helper.make_node("Softmax", ["z"], ["y"], axis=1),
        ],
        [_weight("w", 5, 3, 3, 3), _weight("b", 5), _weight("g", 4, 5), _weight("h", 4)],
        opset,
        ir,
    )


def of_tokens() -> ModelProto:
    return _model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4], kernel_shape=[4, 4]),
            helper.make_node("Reshape", ["c", "s"], ["t"]),
            helper.make_node("Transpose", ["t"], ["k"], perm=[0, 2, 1]),
            helper.make_node("LayerNormalization", ["k", "l"], ["n"], axis=-1),
            helper.make_node("MatMul", ["n", "q"], ["a"]),
            helper.make_node("Transpose", ["a"], ["u"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["a", "u"], ["d"]),
            helper.make_node("Softmax", ["d"], ["e"], axis=-1),
            helper.make_node("MatMul", ["e", "n"], ["o"]),
            helper.make_node("Add", ["o", "k"], ["v"]),
            helper.make_node("ReduceMean", ["v", "one"], ["m"], keepdims=0),
            helper.make_node("MatMul", ["m", "g"], ["y"]),
        ],
        [
            _weight("w", 6, 3, 4, 4),
            _integers("s", 0, 6, 4),
            _weight("l", 6),
            _weight("q", 6, 6),
            _integers("one", 1),
            _weight("g", 6, 4),
        ],
    )


def quantised() -> ModelProto:
    scale, zero = numpy_helper.from_array(np.float32(0.05), "s"), numpy_helper.from_array(np.int8(3), "o")
    eight = numpy_helper.from_array(np.arange(-60, 48, 1, dtype=np.int8).reshape(4, 3, 3, 3), "w")
    return _model(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "o"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "o"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "s", "o"], ["wd"]),
            helper.make_node("Conv", ["xd", "wd"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("Clip", ["c", "", "six"], ["r"]),
            helper.make_node("ReduceMean", ["r", "hw"], ["y"], keepdims=0),
        ],
        [scale, zero, eight, numpy_helper.from_array(np.float32(6), "six"), _integers("hw", 2, 3)],
    )


def branching() -> ModelProto:
    """An If whose condition is computed, and a model-local function."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["c"], [f"out_{name}"])],
            name,
            [],
            [helper.make_tensor_value_info(f"out_{name}", TensorProto.FLOAT, None)],
        )
        for name, op in (("then", "Relu"), ("else", "Tanh"))
    }
    model = _model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("ReduceMax", ["c"], ["top"], keepdims=0),
            helper.make_node("Greater", ["top", "zero"], ["cond"]),
            helper.make_node("If", ["cond"], ["i"], **branches),
            helper.make_node("twice", ["i"], ["r"], domain="own"),
            helper.make_node("ReduceMean", ["r", "hw"], ["y"], keepdims=0),
        ],
        [_weight("w", 4, 3, 3, 3), numpy_helper.from_array(np.float32(0), "zero"), _integers("hw", 2, 3)],
        functions=[
            helper.make_function(
                "own",
                "twice",
                ["a"],
                ["b"],
                [helper.make_node("Add", ["a", "a"], ["b"])],
                [helper.make_opsetid("", 18)],
            )
        ],
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def described() -> ModelProto:
    """With settings and labels in its metadata."""
    model = convolutional()
    settings = json.dumps({"size": [8, 8], "mean": [0.5], "std": [0.5]})
    helper.set_model_props(model, {"onnxcam.preprocess": settings, "onnxcam.labels": '["a", "b", "c", "d"]'})
    return model


def ultralytics() -> ModelProto:
    model = convolutional()
    names = "{0: 'cat', 1: 'dog', 2: 'cow', 3: 'hen'}"
    helper.set_model_props(model, {"names": names, "task": "classify", "stride": "32", "imgsz": "[8, 8]"})
    return model


MODELS: dict[str, Callable[[], ModelProto]] = {
    "convolutional": convolutional,
    "old": lambda: convolutional(opset=11, ir=3),
    "of_tokens": of_tokens,
    "quantised": quantised,
    "branching": branching,
    "described": described,
    "ultralytics": ultralytics,
}


@cache
def models() -> tuple[bytes, ...]:
    return tuple(make().SerializeToString(deterministic=True) for make in MODELS.values())


@cache
def demo() -> bytes:
    return DEMO.read_bytes()


@cache
def pictures() -> tuple[tuple[str, bytes], ...]:
    """(suffix, bytes) of one picture in many formats and modes."""
    noise = np.random.default_rng(3).integers(0, 256, (24, 31, 4), np.uint8)
    image = Image.fromarray(noise)
    kinds = [
        ("png", image, {}),
        ("png", image.convert("P"), {"transparency": 3}),
        ("png", Image.fromarray(noise.astype(np.uint16)[..., 0] * 257), {}),
        ("jpg", image.convert("RGB"), {"exif": _orientation(), "progressive": True}),
        ("jpg", image.convert("CMYK"), {}),
        ("webp", image, {"lossless": True}),
        ("webp", image, {"quality": 60}),
        ("bmp", image.convert("RGB"), {}),
        ("bmp", image.convert("P"), {}),
        ("tiff", image, {"compression": "tiff_lzw"}),
        ("tiff", image.convert("F").convert("L").convert("F").point(lambda v: v * (1 / 255)), {}),
        ("gif", image.convert("P"), {"save_all": True, "append_images": [image.convert("L").convert("P")]}),
        ("ppm", image.convert("RGB"), {}),
        ("ico", image, {}),
        ("tga", image, {"compression": "tga_rle"}),
        ("jp2", image.convert("RGB"), {}),
    ]
    made = []
    for suffix, picture, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, {"jpg": "JPEG", "tiff": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper()), **options)
        made.append((suffix, buffer.getvalue()))
    return tuple(made)


def _orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


TRANSFORMERS = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": 224,
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.26, 0.26, 0.27],
}
TIMM = {
    "architecture": "resnet50",
    "label_names": ["n0", "n1"],
    "label_descriptions": {"n0": "a tench"},
    "pretrained_cfg": {
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_mode": "center",
    },
}
OWN = {
    "size": [8, 8],
    "fit": "letterbox",
    "crop_pct": 0.875,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "scale": 0.1,
    "channels": "bgr",
    "pad": [1, 2, 3],
    "resample": "bicubic",
    "resize": [9, 9],
    "rounding": "timm",
}
SETTINGS = (TRANSFORMERS, CLIP, TIMM, OWN, {"model_type": "vit", "id2label": {"0": "a", "1": "b"}})
LABELS = (["a", "b", "c", "d"], {"0": "a", "1": "b", "2": "c", "3": "d"}, {"id2label": {"0": "a", "1": "b"}}, TIMM)
CSV = b'picture,target,expected,boxes\na.png,1,cat,"[[1, 2, 3, 4]]"\nb/c.png,,"a, b",\n"d ""q"".png",dog,0,[]\n'
JSONL = (
    b'{"picture": "a.png", "target": 1, "boxes": [[1, 2, 3, 4]]}\n'
    b'{"picture": "b.png", "expected": "cat", "x0": 1, "y0": 2, "x1": 3.5, "y1": 4}\n'
)
BOXES = {
    "cat.jpg": {"width": 31, "height": 24, "objects": [{"label": "a", "box_xyxy": [1, 2, 11, 20]}]},
    "dog.jpg": {"objects": [], "imagenet_ok": ["a"]},
}
EVALUATION = {"metrics": [], "methods": [], "settings": {}, "warnings": [], "notes": []}


@cache
def audit() -> dict[str, bytes]:
    """The files of a small finished run, by path relative to its folder; the pictures lie in `in/` beside them."""
    from onnxcam.audit.run import Output, audit
    from onnxcam.audit.sources import Sources
    from onnxcam.explainer import Explainer

    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "in").mkdir()
        for i in range(3):
            noise = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(noise).save(folder / "in" / f"{i}.png")
        (folder / "in" / "broken.png").write_bytes(b"no picture")
        sources = Sources()
        for i, asked in enumerate(({"expected": 1}, {"boxes": ((1.0, 2.0, 9.0, 9.0),)}, {"target": 2})):
            sources.add(str(folder / "in" / f"{i}.png"), f"{i}.png", **asked)
        sources.add(str(folder / "in" / "broken.png"), "broken.png")
        explainer = Explainer(described(), threads=1)
        audit(explainer, sources.items, folder / "out", output=Output(values="png16"))
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
