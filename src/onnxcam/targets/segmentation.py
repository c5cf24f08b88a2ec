"""Segmenters: a class's score summed over a region of the picture, given or predicted (Vinogradova et al., 2020)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnxcam.autodiff.quantized import real_value
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.build import Builder
from onnxcam.graph.head import DenseHead, Head, dense_head, output_listing
from onnxcam.graph.index import Graph, Node
from onnxcam.graph.layout import layouts
from onnxcam.graph.signature import ImageInput
from onnxcam.npy import read_npy
from onnxcam.picture import load_picture
from onnxcam.preprocess import View
from onnxcam.targets.classes import class_number, one_hot_rows
from onnxcam.targets.kind import (
    CLASS_INDEX,
    Array,
    Question,
    Scene,
    Target,
    TargetInput,
    TargetKind,
    TargetSpec,
    output_value,
)

REGION = "region"

# A map of at least an eighth of the picture's height and width is a segmentation, of less a detector's raw head.
_FINE = 8
# How many points along each side of a cell of the score map a mask is looked at.
_POINTS = 4


@dataclass(frozen=True, eq=False)
class Segmentation(TargetSpec):
    """score = sum of a class's logit over a region (Vinogradova et al., Seg-Grad-CAM, AAAI 2020).

    of: class index or label; default the class predicted on most pixels, the background only where there is no other.
    mask: a picture file or an array (H, W) of the picture's size, of what is not 0 (floats: weights). box: x0, y0, x1,
    y1 in picture pixels. Default, without both: the pixels for which the class is predicted. Per call.

    output: which output, default the first that holds a score per class and pixel. background: the background's class,
    None for none; default 0 where one class is predicted per pixel. multi_label: a pixel may be of several classes
    (Sigmoid: logit above 0); default where the model ends in a Sigmoid or has one class. Per model.
    """

    of: Any = None
    mask: Any = None
    box: tuple[float, float, float, float] | None = None
    output: str | None = None
    background: int | str | None = "default"
    multi_label: bool | None = None

    def bind(self, graph: Graph, image: ImageInput) -> "SegmentationKind":
        if self.output is not None:
            output_value(graph, self.output)
        wanted = (self.output,) if self.output is not None else graph.outputs
        ends = [end for o in wanted if (end := dense_head(graph, o)) is not None]
        if not ends:
            raise UnsupportedError(
                f"no output holds a score per class and pixel: {output_listing(graph)}",
                "a segmenter's is (N, C, H, W) or (N, H, W, C) floats, or the ArgMax of that",
            )
        return _kind(graph, image, ends[0], self)


def segmentation_output(graph: Graph, image: ImageInput) -> str | None:
    """The output that makes a model a segmenter: a map of classes nearly as fine as the picture, the first of several
    of one shape.

    None where that might be a picture itself: as many channels, without an activation.
    """
    found = [end for o in graph.outputs if (end := dense_head(graph, o)) is not None]
    shapes = [graph.shape(end.logits) or () for end in found]
    picture = graph.shape(image.name) or ()
    if len(set(shapes)) != 1 or not all(isinstance(d, int) for d in (*shapes[0][1:], *picture[1:])):
        return None
    sizes, pixels = (sorted(int(d) for d in s[1:] if isinstance(d, int)) for s in (shapes[0], picture))
    if found[0].activation is None and not found[0].decided and image.channels in (shapes[0][1], shapes[0][3]):
        return None  # as many channels as the picture: it may be a picture itself
    fine = all(_FINE * d >= p for d, p in zip(sizes[-2:], pixels[-2:], strict=True))
    return found[0].output if fine or found[0].decided else None


def _kind(graph: Graph, image: ImageInput, end: DenseHead, asked: Segmentation) -> "SegmentationKind":
    shape, axis = graph.shape(end.logits) or (), end.class_axis
    if axis is None:
        known = layouts(graph, image.name, image.layout).get(end.logits)
        axis = known.channel_axis if known is not None and known.kind in ("nchw", "nhwc") else 1
    sizes = [d for d in shape[1:] if isinstance(d, int)]
    if len(sizes) != 3 or axis not in (1, 3):
        raise UnsupportedError(
            f"the sizes of `{end.logits}` are not fixed: {list(shape)}", "bind the input's with `--size`"
        )
    classes = sizes.pop(axis - 1)
    many = asked.multi_label if asked.multi_label is not None else end.activation == "Sigmoid" or classes == 1
    background = (None if many else 0) if asked.background == "default" else asked.background
    if background is not None and not 0 <= int(background) < classes:
        raise UsageError(f"background {background}: the model has {classes} classes", f"give 0 to {classes - 1}")
    ends = [end.activation] if end.activation else []
    ends += ["ArgMax"] if end.decided else []
    notes = [f"`{end.output}` taken for a segmentation of {classes} classes in {sizes[0]}x{sizes[1]}"]
    notes += [f"the final {' and '.join(ends)} stepped over: the class logit is explained"] if ends else []
    notes += [f"class {background} taken for the background"] if background is not None else []
    return SegmentationKind(
        head=Head(end.output, end.logits, end.activation, classes),
        reads=(end.logits,),
        inputs=(
            TargetInput(CLASS_INDEX, TensorProto.INT64, ("classes_asked",)),
            TargetInput(REGION, TensorProto.FLOAT, ("regions_asked", "region_height", "region_width")),
        ),
        notes=tuple(notes),
        on_map=True,
        default=asked,
        axis=axis,
        size=(sizes[0], sizes[1]),
        multi_label=many,
        background=None if background is None else int(background),
    )


@dataclass(frozen=True, kw_only=True)
class SegmentationKind(TargetKind):
    """`Segmentation` bound to a model. Run-time inputs: `class_index`, -1 for the class predicted on most pixels, and
    `region` (1|N, h, w), or (1, 1, 1) of -1 for the pixels for which the class is predicted."""

    default: Segmentation
    axis: int
    size: tuple[int, int]
    multi_label: bool
    background: int | None

    def build(self, op: Builder, names: Mapping[str, str]) -> Target:
        classes, axis = self.head.classes, self.axis
        places = [2, 3] if axis == 1 else [1, 2]
        with op.scope("target"):
            logits = real_value(op, self.head.logits)
            if self.multi_label:
                own = op.Cast(op.Greater(logits, 0.0), to=op.dtype)
                areas = op.ReduceMean(own, places, keepdims=0)
            else:
                winners = op.ArgMax(logits, axis=axis, keepdims=0)
                flat = op.Flatten(winners, axis=1)
                ones = op.ConstantOfShape(op.Shape(flat), value=op.scalar(1.0))  # counted in whole numbers: exact
                rows = op.Concat(op.Shape(flat, end=1), [classes], axis=0)
                none = op.ConstantOfShape(rows, value=op.scalar(0.0))
                counts = op.ScatterElements(none, flat, ones, axis=1, reduction="add")
                areas = op.Mul(counts, 1 / (self.size[0] * self.size[1]))
            ranked = areas
            if self.background is not None:
                share = np.ones(classes)
                share[self.background] = 1e-6
                ranked = op.Mul(areas, op.floats(share))
            asked = names[CLASS_INDEX]
            index = op.Where(op.Less(asked, 0), op.ArgMax(ranked, axis=1, keepdims=0), asked)
            one_hot = op.Unsqueeze(one_hot_rows(op, index, classes), places)
            if self.multi_label:
                predicted = op.ReduceSum(op.Mul(own, one_hot), [axis], keepdims=0)
            else:
                predicted = op.Cast(op.Equal(winners, op.Unsqueeze(index, [1, 2])), to=op.dtype)
            given = names[REGION]
            region = op.Where(op.Less(given, 0.0), predicted, given)
            decided = {CLASS_INDEX: index, REGION: region}
            place = op.Unsqueeze(region, [axis])
            cotangent = op.Mul(one_hot, place)
            source, resizes = _before_resizing(op.graph, self.head.logits) if axis == 1 else (None, [])
            if source is None or not resizes:
                score = op.ReduceSum(op.Mul(logits, cotangent), [1, 2, 3], keepdims=0)
                return Target(score, logits, cotangent, index, areas, None, decided)
            # The class alone is enlarged once more, and on the way back alone, not all classes.
            plane = op.ReduceSum(op.Mul(real_value(op, source), one_hot), [1], keepdims=1)
            for node in resizes:
                plane = _resized(op, node, plane)
            score = op.ReduceSum(op.Mul(plane, place), [1, 2, 3], keepdims=0)
        return Target(score, logits, cotangent, index, areas, None, decided, source=source)

    def question(self, asked: Any, scene: Scene) -> Question:
        chosen = self.default if asked is None else asked
        if not isinstance(chosen, Segmentation):
            # The region of the default stays: `target="dog"` is another class in the same place.
            chosen = replace(self.default, of=chosen)
        index = class_number(chosen.of, scene.labels, self.head.classes)
        region = np.full((1, 1, 1), -1, np.float32)
        where: Any = "predicted"
        if chosen.mask is not None and chosen.box is not None:
            raise UsageError("a mask and a box at the same time", "give one of them")
        if chosen.mask is not None:
            region = _on_map(_mask(chosen.mask, scene.view, self.size), scene.view, self.size)[np.newaxis]
            where = {"mask": str(chosen.mask) if isinstance(chosen.mask, str | os.PathLike) else "array"}
        elif chosen.box is not None:
            region = _on_map(_box(chosen.box, scene.view), scene.view, self.size)[np.newaxis]
            where = {"box": list(chosen.box)}
        if chosen.mask is not None or chosen.box is not None:
            region = np.ascontiguousarray(region, np.float32)
            if not region.any():
                raise UsageError(
                    f"the region {where} covers nothing that the model saw",
                    f"it saw {scene.view.region} of the picture",
                )
        record = {"class": "predicted" if index == -1 else index, "region": where}
        return Question({CLASS_INDEX: np.array([index]), REGION: region}, None, record)

    def problem(self, decided: Mapping[str, Array], sample: int) -> str | None:
        """Where the region is empty."""
        return None if decided[REGION][sample].any() else "the class is predicted nowhere; name a region or a mask"

    def probe(self, count: int) -> dict[str, Array]:
        """The first and the last class in turns, everywhere."""
        return {
            CLASS_INDEX: np.resize(np.array([0, self.head.classes - 1]), count),
            REGION: np.ones((count, 1, 1), np.float32),
        }

    def record(self) -> Mapping[str, Any]:
        return {"kind": "segmentation", "multi_label": self.multi_label, "background": self.background}


def _before_resizing(graph: Graph, value: str) -> tuple[str, list[Node]]:
    """What the last Resizes before a value (N, C, h, w) are applied to, and these, first to last."""
    resizes: list[Node] = []
    while (node := graph.producer(value)) is not None and node.kind in ("Resize", "Identity"):
        if node.kind == "Identity":
            value = node.inputs[0]
            continue
        scales = graph.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        by_scales = scales is not None and scales.size == 4 and scales[0] == scales[1] == 1
        by_sizes = len(node.inputs) > 3 and node.inputs[3] != "" and node.attrs["keep_aspect_ratio_policy"] == "stretch"
        fixed = all(isinstance(d, int) for d in (graph.shape(node.outputs[0]) or (None,))[2:])
        simple = (
            fixed and "axes" not in node.attrs and node.attrs["coordinate_transformation_mode"] != "tf_crop_and_resize"
        )
        if not simple or not (by_scales or by_sizes):
            break
        resizes.insert(0, node)
        value = node.inputs[0]
    return value, resizes


def _resized(op: Builder, node: Node, plane: str) -> str:
    """A Resize of (N, C, h, w) applied to (N, 1, h, w)."""
    attrs = {a.name: helper.get_attribute_value(a) for a in node.proto.attribute}
    if len(node.inputs) > 3 and node.inputs[3]:
        shape = op.graph.shape(node.outputs[0]) or ()
        sizes = op.Concat(op.Shape(plane, end=2), list(shape[2:]), axis=0)
        return str(op.Resize(plane, None, None, sizes, **attrs))
    return str(op.Resize(plane, None, node.inputs[2], **attrs))


def _mask(given: Any, view: View, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(H, W) weights in picture coordinates, or (h, w) as they lie on the score map.

    Raises: UsageError for another size, PictureError for a file that is no picture.
    """
    if isinstance(given, str | os.PathLike) and not str(given).endswith(".npy"):
        array = load_picture(given).rgb.max(axis=2) > 0
    else:
        try:
            array = read_npy(given) if isinstance(given, str | os.PathLike) else np.asarray(given)
        except ValueError as error:
            raise UsageError(f"the mask {given} is no .npy file: {error}", "write one with `numpy.save`") from error
    weights = np.asarray(array if array.dtype.kind == "f" else array != 0, np.float32)
    if weights.shape not in (view.picture_size, size):
        (height, width), (h, w) = view.picture_size, size
        raise UsageError(
            f"a mask of {'x'.join(map(str, weights.shape))} for a picture of {height}x{width}",
            f"give one of the picture's height and width, or of the score map's, {h}x{w}",
        )
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise UsageError("a mask with negative weights, or what is not a number", "give weights of 0 and more")
    return weights


def _box(box: tuple[float, float, float, float], view: View) -> npt.NDArray[np.float32]:
    (height, width), (x0, y0, x1, y1) = view.picture_size, box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UsageError(
            f"the region {list(box)} is no part of a picture of {height}x{width}",
            "give x0, y0, x1, y1 in pixels, x to the right, y down",
        )
    # Shares of pixels at the edges: a box may be given in fractions of them.
    x, y = np.arange(width), np.arange(height)
    inside = [np.clip(np.minimum(p + 1, b) - np.maximum(p, a), 0, 1) for p, a, b in ((y, y0, y1), (x, x0, x1))]
    return np.asarray(np.outer(*inside), np.float32)


def _on_map(mask: npt.NDArray[np.float32], view: View, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A mask in picture coordinates as weights (h, w) on a map that covers the tensor: means of points in each cell."""
    if mask.shape == size and mask.shape != view.picture_size:
        return mask
    places = []
    scales = ((view.y_scale, view.y_offset), (view.x_scale, view.x_offset))
    for cells, tensor, pixels, (scale, offset) in zip(size, view.tensor_size, view.picture_size, scales, strict=True):
        points = (np.arange(cells * _POINTS) + 0.5) / _POINTS * tensor / cells
        places.append(np.floor((points - offset) / scale).astype(int).clip(-1, pixels))
    padded = np.pad(mask, 1)
    values = padded[np.ix_(places[0] + 1, places[1] + 1)]
    return np.asarray(values.reshape(size[0], _POINTS, size[1], _POINTS).mean(axis=(1, 3)), np.float32)
