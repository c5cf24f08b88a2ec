"""Real trained classifiers on photographs: is the top class right, and does the map peak inside the object's box.

Reads `shared/models`, `shared/images` and `shared/labels` beside the repository; nothing of them is part of it.
"""

import json
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import milliseconds
from onnxcam import Explainer, Explanation, OnnxCamError, Picture, load_picture

SHARED = Path(__file__).parents[2] / "shared"

IMAGENET = {"crop_pct": 0.875, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PLUS_MINUS_ONE = {"scale": 1 / 127.5, "mean": [1.0], "std": [1.0]}
UNIT = {"mean": [0.0], "std": [1.0]}
PIXELS = {"scale": 1.0, **UNIT}


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier: its file, labels, preprocessing as its source states it, and which pictures it is shown."""

    file: str
    labels: str | tuple[str, ...]
    shots: str
    preprocess: Mapping[str, Any]


CROP = {"crop_pct": 0.875}

MODELS = (
    Model("squeezenet1_1_fp16_winml.onnx", "imagenet1000_synset_onnxmodels.txt", "imagenet",
          {"crop_pct": 0.875, "scale": 1.0, "mean": [103.939, 116.779, 123.68], "std": [1.0], "channels": "bgr"}),
    Model("squeezenet1_1_gluon_fp32.onnx", "imagenet1000_synset_onnxmodels.txt", "imagenet", IMAGENET),
    Model("tiny_darknet_fp32.onnx", "imagenet_darknet_shortnames.txt", "imagenet", CROP | UNIT),
    Model("mobilenet_v1_025_128_fp32_nhwc.onnx", "imagenet1001_coral.txt", "imagenet", CROP | PLUS_MINUS_ONE),
    Model("mobilenet_v1_05_160_fp32_nchw.onnx", "imagenet1001_coral.txt", "imagenet", CROP | PLUS_MINUS_ONE),
    Model("mobilenet_v2_torch_fp32_nchw.onnx", "imagenet1000_synset_onnxmodels.txt", "imagenet", IMAGENET),
    Model("resnet20_cifar10.onnx", "cifar10.txt", "cifar", {**IMAGENET, "crop_pct": 1.0}),
    Model("mlperf_resnet8_nhwc.onnx", "cifar10.txt", "cifar", PIXELS),
    Model("vww96_mlperf_fp32_nhwc.onnx", "vww.txt", "person", {"fit": "letterbox", **UNIT}),
    Model("fer_mini_xception.onnx", "fer2013.txt", "emotion", {"fit": "squash", **PLUS_MINUS_ONE, "channels": "gray"}),
    Model("fas_minifasnet_v1se.onnx", ("fake", "real", "fake replay"), "spoof",
          {"fit": "squash", **PIXELS, "channels": "bgr"}),
    Model("mnist_cntk8.onnx", tuple("0123456789"), "digit", {"fit": "squash", **PIXELS, "channels": "gray"}),
)  # fmt: skip

QUANTISED = (
    Model("mobilenet_v1_025_128_qdq_nhwc.onnx", "imagenet1001_coral.txt", "imagenet", CROP | PLUS_MINUS_ONE),
    Model("mobilenet_v2_tf_qdq_nhwc.onnx", "imagenet1001_coral.txt", "imagenet", CROP | PLUS_MINUS_ONE),
    Model("mobilenet_v2_torch_qdq_int8io_nchw.onnx", "imagenet1000_synset_onnxmodels.txt", "imagenet", IMAGENET),
    Model("mlperf_resnet8_large_int8_qdq.onnx", "cifar10.txt", "cifar", PIXELS),
    Model("vww96_mlperf_int8_qdq.onnx", "vww.txt", "person", {"fit": "letterbox", **UNIT}),
)  # fmt: skip

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shot:
    """A picture, what a right answer may be called, and the boxes of what each word means (empty: not known)."""

    name: str
    picture: Picture = field(repr=False)
    words: tuple[str, ...]
    boxes: tuple[tuple[str, Box], ...]

    def is_right(self, label: str) -> bool:
        return any(said(word, label) for word in self.words)

    def boxes_of(self, label: str) -> list[Box]:
        """The boxes of the object that a label names; all of them where the picture shows one kind of object."""
        kinds = {kind for kind, _ in self.boxes}
        if len(kinds) > 1:
            kinds = {k for k in kinds if said(k, label) or any(said(w, label) for w in MEANT.get(k, ()))}
        return [box for kind, box in self.boxes if kind in kinds]


# What ImageNet calls the kinds of object that boxes are labelled with, in pictures that show several kinds.
MEANT = {
    "bicycle": ("bike", "tricycle"),
    "cat": ("tabby", "Egyptian"),
    "dog": ("malamute", "husky", "elkhound", "shepherd", "Eskimo", "collie", "mastiff", "boxer", "bulldog", "Bernard"),
    "horse": ("Arabian", "sorrel", "polo", "llama", "camel", "ram", "ox"),
    "giraffe": ("cheetah", "impala", "gazelle", "ostrich"),  # ImageNet has no giraffe
    "cheetah": ("leopard", "jaguar"),
    "person": ("uniform", "suit"),
}


def said(word: str, label: str) -> bool:
    return re.search(rf"\b{re.escape(word)}s?\b", label, re.IGNORECASE) is not None


@cache
def _annotations() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SHARED / "images" / "boxes.json").read_text())
    return found


@cache
def _photograph(name: str) -> Picture:
    return load_picture(SHARED / "images" / name)


def _objects(name: str) -> tuple[tuple[str, Box], ...]:
    return tuple((o["label"], tuple(o["box_xyxy"])) for o in _annotations()[name]["objects"])


def _cropped(name: str, box: Box, factor: float) -> tuple[Picture, Box]:
    """The picture cut to `box` enlarged about its centre, shifted and shrunk to fit; and the box inside the cut."""
    photograph = _photograph(name).rgb
    H, W = photograph.shape[:2]
    x0, y0, x1, y1 = box
    scale = min(factor, W / (x1 - x0), H / (y1 - y0))
    w, h = round((x1 - x0) * scale), round((y1 - y0) * scale)
    left = min(max(round((x0 + x1 - w) / 2), 0), W - w)
    top = min(max(round((y0 + y1 - h) / 2), 0), H - h)
    cut = load_picture(photograph[top : top + h, left : left + w])
    return cut, (x0 - left, y0 - top, x1 - left, y1 - top)


def shots(kind: str) -> list[Shot]:
    """The pictures that a kind of model is shown."""
    pictures = _annotations()
    if kind == "imagenet":
        return [
            Shot(n, _photograph(n), tuple(a["imagenet_ok"]), _objects(n))
            for n, a in pictures.items()
            if a["imagenet_ok"]
        ]
    if kind == "cifar":
        classes = {"bird", "cat", "dog", "horse", "truck"}
        alone = {n: objects[0] for n in pictures if len(objects := _objects(n)) == 1 and objects[0][0] in classes}
        return [Shot(n, _photograph(n), (label,), ((label, box),)) for n, (label, box) in alone.items()]
    if kind == "person":
        return [
            Shot(n, _photograph(n), ("person",) if any(k == "person" for k, _ in _objects(n)) else ("no_person",),
                 tuple(o for o in _objects(n) if o[0] == "person"))
            for n in PEOPLE
        ]  # fmt: skip
    if kind == "digit":
        picture = _photograph("dml_mnist_image1.png")
        rows, columns = np.nonzero(picture.rgb.mean(axis=2) > 127)
        ink = (float(columns.min()), float(rows.min()), columns.max() + 1.0, rows.max() + 1.0)
        return [Shot("dml_mnist_image1.png", picture, ("1",), (("1", ink),))]
    faces = {n: next(box for k, box in _objects(n) if k == "face") for n in FEELINGS}
    if kind == "emotion":
        return [Shot(n, _cropped(n, box, 1.2)[0], (FEELINGS[n],), ()) for n, box in faces.items()]
    cuts = {n: _cropped(n, box, 4.0) for n, box in faces.items()}
    return [Shot(n, cut, ("real",), (("face", box),)) for n, (cut, box) in cuts.items()]


PEOPLE = (
    "skimage_astronaut.png", "coral_grace_hopper.bmp", "darknet_person.jpg", "coral_cat.bmp", "coral_bird.bmp",
    "coral_hot_dog.jpg", "tfjs_coffee.jpg", "skimage_rocket.jpg", "captum_elephant.jpg",
)  # fmt: skip
FEELINGS = {"skimage_astronaut.png": "happy", "coral_grace_hopper.bmp": "neutral"}


@dataclass(frozen=True)
class Seen:
    """One shot, explained: the top-1 answer, whether it is right, and the map of the best right class, if any of the
    top 5 is right. `inside`: whether that map's peak lies in a box of what the class names; None where no box does."""

    shot: Shot
    first: Explanation
    right: bool
    best: Explanation | None
    inside: bool | None


def explainer(model: Model, **options: Any) -> Explainer:
    labels = model.labels
    if isinstance(labels, str):
        lines = (SHARED / "labels" / labels).read_text("utf-8").splitlines()
        labels = tuple(lines[:1000]) if "darknet" in model.labels else tuple(lines)
    return Explainer(SHARED / "models" / model.file, preprocess=model.preprocess, labels=labels, **options)


def look(explained: Explainer, kind: str) -> Iterator[Seen]:
    """Explain every shot of a kind."""
    for shot in shots(kind):
        first = explained(shot.picture)
        right = [c for c in first.top if shot.is_right(c.label or "")]
        best = None
        if right:
            best = first if right[0].index == first.class_index else explained(shot.picture, right[0].index)
        boxes = shot.boxes_of(best.label or "") if best else []
        inside = None
        if best is not None and boxes:
            x, y = best.peak
            inside = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)
        yield Seen(shot, first, shot.is_right(first.label or ""), best, inside)


TABLE = "{:<42} {:>5} {:>11} {:>11} {:>16} {:>5} {:>7} {:>6}  {}"


def real(sheets: Path | None = None) -> None:
    """Print the table; with `sheets`, write one contact sheet of overlays per model into that folder."""
    if not (SHARED / "models").is_dir():
        print(f"real: no `{SHARED.name}/models` beside the repository")
        return
    heads = ("model", "opset", "top-1 right", "peak in box", "map share in box", "empty", "grid", "ms", "layer")
    print(TABLE.format(*heads))
    for model in (*MODELS, *QUANTISED):
        try:
            explained = explainer(model)
        except OnnxCamError as error:
            print(f"{model.file:<42} {error.message.splitlines()[0]}")
            continue
        seen = list(look(explained, model.shots))
        pointed = [s.inside for s in seen if s.inside is not None]
        shares = [energy(s) for s in seen if s.inside is not None]
        picture = seen[0].shot.picture
        ms = statistics.median(milliseconds(lambda e=explained, p=picture: e(p)) for _ in range(9))
        grid = "x".join(map(str, seen[0].first.raw.shape))
        right, empty = sum(s.right for s in seen), sum(s.best is not None and s.best.is_empty for s in seen)
        inside = f"{sum(pointed)}/{len(pointed)}" if pointed else "-"
        share = f"{statistics.mean(shares):.0%}" if shares else "-"
        row = (
            model.file,
            _opset(model),
            f"{right}/{len(seen)}",
            inside,
            share,
            empty,
            grid,
            f"{ms:.1f}",
            explained.layer,
        )
        print(TABLE.format(*row))
        if sheets is not None:
            sheet(seen).save(sheets / f"{Path(model.file).stem}.png")


def energy(seen: Seen) -> float:
    """Share of the map's sum that lies in the boxes (energy-based pointing game, Score-CAM paper, 2020)."""
    assert seen.best is not None
    values = seen.best.values
    mask = np.zeros(values.shape, bool)
    for x0, y0, x1, y1 in seen.shot.boxes_of(seen.best.label or ""):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return float(values[mask].sum() / max(float(values.sum()), 1e-12))


def sheet(seen: list[Seen], tile: int = 240) -> Image.Image:
    """Overlays side by side, the boxes drawn, the explained class and the verdict written underneath."""
    from PIL import ImageDraw

    columns = min(len(seen), 6)
    canvas = Image.new("RGB", (columns * tile, -(-len(seen) // columns) * (tile + 16)), "white")
    draw = ImageDraw.Draw(canvas)
    for i, s in enumerate(seen):
        left, top = i % columns * tile, i // columns * (tile + 16)
        shown = s.best or s.first
        picture = shown.overlay()
        scale = tile / max(picture.size)
        canvas.paste(picture.resize((round(picture.width * scale), round(picture.height * scale))), (left, top))
        for box in s.shot.boxes_of(shown.label or ""):
            draw.rectangle([v * scale + o for v, o in zip(box, (left, top, left, top), strict=True)], outline="lime")
        px, py = shown.peak
        draw.circle((left + px * scale, top + py * scale), 3, outline="white")
        verdict = {True: "in", False: "OUT", None: "-"}[s.inside]
        wrong = "" if s.right else f"wrong: {str(s.first.label)[:14]}; "
        draw.text((left + 2, top + tile + 2), f"{verdict} {wrong}{str(shown.label)[:24]}", "black")
    return canvas


def _opset(model: Model) -> int:
    import onnx

    proto = onnx.load(SHARED / "models" / model.file, load_external_data=False)
    return next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
