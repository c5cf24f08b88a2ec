"""From a detector's raw outputs to boxes and scores: one class per layout of heads.

Every layout reads the outputs as rows, one per anchor (A, D), by moving numbers only; so the place of each number in
the outputs is known by moving their indices the same way. What a row means is written in numpy functions that also
take complex numbers: the derivative of a box or a score by the raw numbers is then exact to rounding, by a step along
the imaginary axis (Squire and Trapp, SIAM Review 1998). It becomes the cotangent of the model's outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Size = tuple[int, int]

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (8, 16, 32, 64, 128), (16, 32), (8, 16), (32,), (16,), (8,))


def cells(size: Size, strides: Sequence[int]) -> int:
    """Number of grid cells of all strides together, each grid rounded up."""
    return sum(h * w for h, w in grids(size, strides))


def grids(size: Size, strides: Sequence[int]) -> list[Size]:
    """(h, w) of each stride's grid, rounded up."""
    return [(-(-size[0] // s), -(-size[1] // s)) for s in strides]


def corners(size: Size, strides: Sequence[int]) -> Array:
    """(A, 3): column, row and stride of every cell, row by row, stride after stride."""
    parts = []
    for (h, w), s in zip(grids(size, strides), strides, strict=True):
        y, x = np.divmod(np.arange(h * w), w)
        parts.append(np.stack([x, y, np.full(h * w, s)], 1))
    return np.concatenate(parts).astype(np.float64)


def edges_of_centres(x: Array, y: Array, w: Array, h: Array) -> Array:
    """(B, 4) x0, y0, x1, y1 of boxes given by centre, width and height."""
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), of reals or complex numbers."""
    positive = x.real > 0
    e = np.exp(np.where(positive, -x, x))
    return np.asarray(np.where(positive, 1 / (1 + e), e / (1 + e)))


def softmax(x: Array) -> Array:
    """Over the last axis, of reals or complex numbers."""
    e = np.exp(x - x.real.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class HeadLayout(ABC):
    """How a detector's outputs lie: the `values` that hold them, in the order that `rows` takes, with their `shapes`
    per sample; `size` (H, W) of the model's input; number of `classes`. A number of rows that depends on the picture
    is 0 in `shapes`."""

    values: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    size: Size
    classes: int

    @property
    def is_batched(self) -> bool:
        """Whether the outputs have the batch in front."""
        return True

    @abstractmethod
    def rows(self, outputs: Sequence[Array]) -> Array:
        """(A, D) from the outputs of one sample, by moving numbers only."""

    @abstractmethod
    def places(self, rows: Array) -> Array:
        """(A, P): what decoding needs to know of each anchor besides its row."""

    @abstractmethod
    def boxes(self, rows: Array, places: Array) -> Array:
        """(B, 4) x0, y0, x1, y1 in pixels of the model's input, of some anchors."""

    @abstractmethod
    def scores(self, rows: Array) -> Array:
        """(B, C) in [0, 1], of some anchors."""

    @abstractmethod
    def factors(self, label: int) -> tuple[int, ...]:
        """Columns of a row whose numbers multiply to the score of a class."""

    @property
    def box_columns(self) -> range:
        """Columns of a row that a box is made of."""
        return range(4)

    @property
    def is_raw(self) -> bool:
        """Whether the outputs hold logits, so that `scores` applies the activation."""
        return False

    def best(self, rows: Array) -> tuple[Array, Array]:
        """Per row the class that scores highest, int64, and its score."""
        scores = self.scores(rows)
        labels = scores.argmax(axis=1)
        return labels, scores[np.arange(len(rows)), labels]

    def score(self, rows: Array, label: int) -> Array:
        """(B,) of one class."""
        return np.asarray(self.scores(rows)[:, label])

    @property
    def suppresses(self) -> bool:
        """Whether overlapping boxes are still to be suppressed."""
        return True

    def of(self, outputs: Mapping[str, Array]) -> tuple["HeadLayout", Array]:
        """The layout with the shapes that one picture's outputs have, and their rows (A, D), float64."""
        found = [np.asarray(outputs[value], np.float64) for value in self.values]
        if all(0 not in shape for shape in self.shapes):
            return self, self.rows([raw.reshape(shape) for raw, shape in zip(found, self.shapes, strict=True)])
        fixed = replace(self, shapes=tuple(raw.shape for raw in found))
        return fixed, fixed.rows(found)

    @cached_property
    def entries(self) -> Array:
        """(A, D) int64: where each number of a row lies, counted through all outputs, one after the other."""
        starts = np.cumsum([0, *(int(np.prod(s)) for s in self.shapes)])
        indices = [np.arange(a, b).reshape(s) for a, b, s in zip(starts, starts[1:], self.shapes, strict=False)]
        return self.rows(indices)

    def scattered(self, entries: Array, numbers: Array) -> dict[str, Array]:
        """The outputs, zero but for `numbers` at `entries`, float32."""
        whole = np.zeros(sum(int(np.prod(s)) for s in self.shapes))
        np.add.at(whole, entries, numbers)
        parts = np.split(whole, np.cumsum([int(np.prod(s)) for s in self.shapes])[:-1])
        named = zip(self.values, parts, self.shapes, strict=True)
        return {value: part.reshape(shape).astype(np.float32) for value, part, shape in named}


_STEP = 1e-30


def derivative(function: Callable[[Array, Array], Array], row: Array, place: Array) -> Array:
    """(D,): the derivative of `function(rows, places)` (B,) by the numbers of one row (D,), exact to rounding."""
    rows = row + 1j * _STEP * np.eye(len(row))
    return np.asarray(function(rows, np.repeat(place[np.newaxis], len(row), axis=0)).imag / _STEP)


def _flat(output: Array) -> Array:
    return output.reshape(-1, output.shape[-1])


@dataclass(frozen=True)
class Yolo(HeadLayout):
    """(A, 4 + C) or (A, 5 + C), or either with the axes swapped: centre, width and height in pixels, objectness in the
    second case, classes. `logits`: no sigmoid was applied. Further columns (masks, key points) are left alone."""

    objectness: bool
    swapped: bool
    logits: bool = False

    def rows(self, outputs: Sequence[Array]) -> Array:
        output = outputs[0].reshape(self.shapes[0])
        return output.T if self.swapped else output

    def places(self, rows: Array) -> Array:
        return np.zeros((len(rows), 0))

    def boxes(self, rows: Array, places: Array) -> Array:
        return edges_of_centres(*rows[:, :4].T)

    def scores(self, rows: Array) -> Array:
        start = 5 if self.objectness else 4
        classes = rows[:, start : start + self.classes]
        known = sigmoid(rows[:, 4:5]) if self.logits else rows[:, 4:5]
        classes = sigmoid(classes) if self.logits else classes
        return classes * known if self.objectness else classes

    def factors(self, label: int) -> tuple[int, ...]:
        return (4, 5 + label) if self.objectness else (4 + label,)

    @property
    def is_raw(self) -> bool:
        return self.logits


@dataclass(frozen=True)
class Queries(Yolo):
    """(M, 4 + C): centre, width and height as shares of the picture, then classes (RT-DETR)."""

    def boxes(self, rows: Array, places: Array) -> Array:
        return edges_of_centres(*(rows[:, :4] * ((self.size[1], self.size[0]) * 2)).T)

    @property
    def suppresses(self) -> bool:
        return False


@dataclass(frozen=True)
class YoloX(Yolo):
    """The same before decoding: centre and logarithm of the size, in strides from each cell's corner."""

    strides: tuple[int, ...] = (8, 16, 32)

    def places(self, rows: Array) -> Array:
        return corners(self.size, self.strides)

    def boxes(self, rows: Array, places: Array) -> Array:
        (x, y, stride), raw = places.T, rows.T
        return edges_of_centres(
            (x + raw[0]) * stride, (y + raw[1]) * stride, np.exp(raw[2]) * stride, np.exp(raw[3]) * stride
        )


@dataclass(frozen=True)
class NanoDet(HeadLayout):
    """(A, C + 4 (R + 1)): classes, then for left, top, right and bottom the distribution of the distance in strides.

    NanoDet-Plus (four strides) measures from a cell's corner, NanoDet (three) from its middle.
    """

    strides: tuple[int, ...]
    logits: bool

    def rows(self, outputs: Sequence[Array]) -> Array:
        return outputs[0].reshape(self.shapes[0])

    def places(self, rows: Array) -> Array:
        return corners(self.size, self.strides)

    def boxes(self, rows: Array, places: Array) -> Array:
        x, y, stride = (places + ((0.0, 0.0, 0.0) if len(self.strides) == 4 else (0.5, 0.5, 0.0))).T
        weights = softmax(rows[:, self.classes :].reshape(len(rows), 4, -1))
        left, top, right, bottom = (weights @ np.arange(weights.shape[2])).T * stride
        return np.stack([x * stride - left, y * stride - top, x * stride + right, y * stride + bottom], 1)

    def scores(self, rows: Array) -> Array:
        classes = rows[:, : self.classes]
        return sigmoid(classes) if self.logits else classes

    def factors(self, label: int) -> tuple[int, ...]:
        return (label,)

    @property
    def box_columns(self) -> range:
        return range(self.classes, self.shapes[0][1])

    @property
    def is_raw(self) -> bool:
        return self.logits


def anchored(offsets: Array, anchors: Array, variances: tuple[float, float] = (1.0, 1.0)) -> Array:
    """(B, 4) x0, y0, x1, y1 from offsets (B, 4) to anchors (B, 4) given by centre, width and height (SSD, R-CNN).

    centre = anchor centre + offset v0 anchor size; size = anchor size exp(offset v1).
    """
    x, y, w, h = anchors.T
    dx, dy, dw, dh = offsets.T
    v0, v1 = variances
    return edges_of_centres(x + dx * v0 * w, y + dy * v0 * h, w * np.exp(dw * v1), h * np.exp(dh * v1))


@dataclass(frozen=True)
class ScoresAndBoxes(HeadLayout):
    """Two outputs, scores (A, C') and boxes (A, 4): corners in pixels or shares of the picture, or with `anchors`
    (A, 4), offsets to them (SSD, RetinaNet, UltraFace).

    background: which class is none, `first` or `last`. activation: what is still to be applied, `sigmoid` or `softmax`.
    anchors: centre, width and height in pixels. yx: corners are y0, x0, y1, x1. centres: boxes are centre, width,
    height. swapped: scores are (C', A). single: no two boxes are of one object (DETR).
    """

    background: str | None
    activation: str | None = None
    anchors: Array | None = None
    variances: tuple[float, float] = (0.1, 0.2)
    yx: bool = False
    centres: bool = False
    swapped: bool = False
    single: bool = False

    def rows(self, outputs: Sequence[Array]) -> Array:
        scores, boxes = outputs[0].reshape(self.shapes[0]), outputs[1].reshape(self.shapes[1])
        return np.concatenate([_flat(boxes), scores.T if self.swapped else _flat(scores)], axis=1)

    def places(self, rows: Array) -> Array:
        if self.anchors is not None:
            return self.anchors
        # Shares of the picture leave it by little; pixels of a picture with a box in it are more than 4.
        share = np.abs(rows[:, :4]).max(initial=0) <= 4
        scale = (self.size[1], self.size[0]) * 2 if share else (1, 1, 1, 1)
        return np.tile(np.array(scale, np.float64), (len(rows), 1))

    def boxes(self, rows: Array, places: Array) -> Array:
        if self.anchors is not None:
            return anchored(rows[:, :4], places, self.variances)
        box = (rows[:, [1, 0, 3, 2]] if self.yx else rows[:, :4]) * places
        return edges_of_centres(*box.T) if self.centres else np.asarray(box)

    def scores(self, rows: Array) -> Array:
        raw = rows[:, 4:]
        classes = {None: lambda r: r, "sigmoid": sigmoid, "softmax": softmax}[self.activation](raw)
        last = classes.shape[1] - (self.background == "last")
        return np.asarray(classes[:, int(self.background == "first") : last])

    def factors(self, label: int) -> tuple[int, ...]:
        return (4 + label + (self.background == "first"),)

    @property
    def is_raw(self) -> bool:
        return self.activation is not None

    @property
    def suppresses(self) -> bool:
        return not self.single


@dataclass(frozen=True)
class Levels(HeadLayout):
    """Per stride a map of scores (n C, h, w) and one of offsets (4 n, h, w), n anchors per cell (RetinaNet).

    values: all score maps, then all offset maps, finest first.
    """

    anchors: Array
    activation: str | None

    def rows(self, outputs: Sequence[Array]) -> Array:
        half = len(outputs) // 2
        parts = [
            np.concatenate([self._per_anchor(box, 4), self._per_anchor(score, self.classes)], axis=1)
            for score, box in zip(self._maps(outputs)[:half], self._maps(outputs)[half:], strict=True)
        ]
        return np.concatenate(parts)

    def _maps(self, outputs: Sequence[Array]) -> list[Array]:
        return [o.reshape(s) for o, s in zip(outputs, self.shapes, strict=True)]

    @staticmethod
    def _per_anchor(output: Array, width: int) -> Array:
        channels, h, w = output.shape
        return output.reshape(channels // width, width, h, w).transpose(2, 3, 0, 1).reshape(-1, width)

    def places(self, rows: Array) -> Array:
        return self.anchors

    def boxes(self, rows: Array, places: Array) -> Array:
        return anchored(rows[:, :4], places)

    def scores(self, rows: Array) -> Array:
        return sigmoid(rows[:, 4:]) if self.activation == "sigmoid" else rows[:, 4:]

    def factors(self, label: int) -> tuple[int, ...]:
        return (4 + label,)

    @property
    def is_raw(self) -> bool:
        return self.activation is not None


@dataclass(frozen=True)
class YuNet(HeadLayout):
    """Per stride class, objectness and box, each (h w, .): the score is the root of class times objectness.

    values: all classes, then all objectnesses, then all boxes, finest stride first.
    """

    strides: tuple[int, ...]

    def rows(self, outputs: Sequence[Array]) -> Array:
        named = [_flat(o.reshape(s)) for o, s in zip(outputs, self.shapes, strict=True)]
        n = len(self.strides)
        return np.concatenate([np.concatenate(named[i * n : (i + 1) * n]) for i in (2, 1, 0)], axis=1)

    def places(self, rows: Array) -> Array:
        return corners(self.size, self.strides)

    def boxes(self, rows: Array, places: Array) -> Array:
        (x, y, stride), raw = places.T, rows.T
        return edges_of_centres(
            (x + raw[0]) * stride, (y + raw[1]) * stride, np.exp(raw[2]) * stride, np.exp(raw[3]) * stride
        )

    def scores(self, rows: Array) -> Array:
        return np.asarray(np.sqrt(rows[:, 5:] * rows[:, 4:5]))

    def factors(self, label: int) -> tuple[int, ...]:
        return (4, 5 + label)


@dataclass(frozen=True)
class EndToEnd(HeadLayout):
    """Boxes that the model has chosen itself, (M, 6): x0, y0, x1, y1, score, class (YOLOv10); or three outputs of
    these columns (torchvision). centres: centre, width and height in place of edges (RT-DETR)."""

    batched: bool = True
    centres: bool = False

    def rows(self, outputs: Sequence[Array]) -> Array:
        named = [o.reshape(s) for o, s in zip(outputs, self.shapes, strict=True)]
        return np.concatenate([o.reshape(-1, 1) if o.ndim == 1 else _flat(o) for o in named], axis=1)

    def places(self, rows: Array) -> Array:
        share = np.abs(rows[:, :4]).max(initial=0) <= 4
        scale = (self.size[1], self.size[0]) * 2 if share else (1, 1, 1, 1)
        return np.tile(np.array(scale, np.float64), (len(rows), 1))

    def boxes(self, rows: Array, places: Array) -> Array:
        box = np.asarray(rows[:, :4] * places)
        return edges_of_centres(*box.T) if self.centres else box

    def scores(self, rows: Array) -> Array:
        return rows[:, 4:5]

    def best(self, rows: Array) -> tuple[Array, Array]:
        return rows[:, 5].astype(np.int64), rows[:, 4]

    def score(self, rows: Array, label: int) -> Array:
        return rows[:, 4]

    def factors(self, label: int) -> tuple[int, ...]:
        return (4,)

    @property
    def suppresses(self) -> bool:
        return False

    @property
    def is_batched(self) -> bool:
        return self.batched


def retinanet_anchors(size: Size, strides: Sequence[int] = (8, 16, 32, 64, 128)) -> Array:
    """(A, 4) centre, width and height in pixels of torchvision's RetinaNet: three ratios of three sizes per cell."""
    parts = []
    for (h, w), s in zip(grids(size, strides), strides, strict=True):
        x = 4 * s
        scales = np.array([x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))], np.float64)
        tall = np.sqrt(np.array([0.5, 1.0, 2.0]))[:, np.newaxis]
        widths, heights = (scales / tall).ravel(), (scales * tall).ravel()
        halves = np.rint(np.stack([widths, heights], 1) / 2)
        y, x_ = np.divmod(np.arange(h * w), w)
        step_y, step_x = size[0] // h, size[1] // w
        middles = np.repeat(np.stack([x_ * step_x, y * step_y], 1), 9, axis=0)
        parts.append(np.concatenate([middles, np.tile(2 * halves, (h * w, 1))], axis=1))
    return np.concatenate(parts)


def ultraface_anchors(size: Size) -> Array:
    """(A, 4) centre, width and height in pixels of UltraFace: three, two, two and three squares per cell."""
    squares = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
    parts = []
    for (h, w), s, sides in zip(grids(size, (8, 16, 32, 64)), (8, 16, 32, 64), squares, strict=True):
        y, x = np.divmod(np.arange(h * w), w)
        # The anchors are made as shares of a grid of picture / stride cells, whole or not.
        middles = np.clip(np.stack([(x + 0.5) * s / size[1], (y + 0.5) * s / size[0]], 1), 0, 1) * (size[1], size[0])
        for_each = np.repeat(middles, len(sides), axis=0)
        side = np.tile(np.array(sides, np.float64), h * w)[:, np.newaxis]
        whole = np.clip(side / (size[1], size[0]), 0, 1) * (size[1], size[0])
        parts.append(np.concatenate([for_each, whole], axis=1))
    return np.concatenate(parts)


def strides_for(size: Size, anchors: int, per_cell: Sequence[int]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Strides and anchors per cell with which the grids of a picture have this many anchors, the usual first."""
    for n in per_cell:
        for strides in STRIDES:
            if cells(size, strides) * n == anchors:
                yield strides, n
