"""The object for detectors: pictures in, boxes out, and per box which part of the picture it was found by."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from PIL import Image

from onnxcam.detection.decode import Array, HeadLayout, derivative
from onnxcam.detection.names import COCO
from onnxcam.detection.neck import shared_map
from onnxcam.detection.nms import suppressed
from onnxcam.detection.recognise import KINDS, is_detector, recognised
from onnxcam.detection.target import BoxTarget, Term, ends_in_activation
from onnxcam.errors import UsageError
from onnxcam.explained import Size, open_graph
from onnxcam.explainer import Explainer, Prepared, PreprocessLike
from onnxcam.explanation import Explanation
from onnxcam.graph.build import tensor_info
from onnxcam.graph.index import Graph
from onnxcam.graph.read import ModelFile, ModelSource, read
from onnxcam.graph.signature import ImageInput, image_input
from onnxcam.methods import find_method
from onnxcam.metrics.localisation import boxes_mask
from onnxcam.preprocess import METADATA_KEY, Picture, PictureLike, Preprocess, load_picture
from onnxcam.presets import beside, read_labels, ultralytics, ultralytics_labels
from onnxcam.render import draw_boxes
from onnxcam.targets import Question, class_number

BOX_SCORES = ("class", "coordinates", "both", "left", "top", "right", "bottom")

# Which way each edge grows the box: x0, y0, x1, y1.
_OUTWARD = {
    "coordinates": (-1, -1, 1, 1),
    "left": (-1, 0, 0, 0),
    "top": (0, -1, 0, 0),
    "right": (0, 0, 1, 0),
    "bottom": (0, 0, 0, 1),
}
_THRESHOLDS = {"ultraface": 0.7, "yunet": 0.7, "detr": 0.5}
_FACES = ("ultraface", "yunet")
_AT_ONCE = 16
_FAR = 1e6


@dataclass(frozen=True)
class Box:
    """A detected box: its place in the list, class, score in [0, 1], and edges x0, y0, x1, y1 in picture pixels, not
    clipped to the picture. anchor: its row among the detector's anchors. peak: (x, y) of its map's highest value, in
    picture pixels; None where it was not explained, or no value is above 0."""

    index: int
    class_index: int
    label: str | None
    score: float
    xyxy: tuple[float, float, float, float]
    anchor: int
    peak: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return self.label if self.label is not None else f"class {self.class_index}"

    def record(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "index": self.index,
            "class_index": self.class_index,
            "label": self.label,
            "score": self.score,
            "xyxy": list(self.xyxy),
            "anchor": self.anchor,
            "peak": None if self.peak is None else list(self.peak),
        }


@dataclass(frozen=True, repr=False)
class BoxExplanation(Explanation):
    """Which part of a picture moved the score, or the edges, of a detected box; or of several, as the highest of
    their maps, each scaled to its own peak.

    boxes: those explained; `raws` has a map for each. detected: all that were found in the picture. probability: the
    box's score; score: the explained scalar (the sum of its logits, or the edges in pixels of the model's input).
    Without a box the map is 0 and the overlay is the picture.
    """

    boxes: tuple[Box, ...] = ()
    detected: tuple[Box, ...] = ()

    def overlay(
        self, colormap: str = "jet", opacity: float = 0.5, clip: float | None = None, boxes: bool = True
    ) -> Image.Image:
        """The picture with the map blended over it and the boxes explained drawn, `boxes` False to leave them out.

        Arguments and errors as of `Explanation.overlay`.
        """
        image = super().overlay(colormap, opacity if self.boxes else 0.0, clip)
        if not boxes:
            return image
        shown = [(box.xyxy, f"{box.index} {box.name} {box.score:.2f}", box.class_index) for box in self.boxes]
        return draw_boxes(image, shown)

    def says(self, index: int) -> bool | None:
        """Whether a box of the class was found."""
        return any(box.class_index == index for box in self.detected)

    @property
    def warnings(self) -> tuple[str, ...]:
        return super().warnings if self.boxes else ()

    def record(self, flat: bool = False) -> dict[str, Any]:
        record = super().record(flat)
        if not flat:
            explained = {box.index: box for box in self.boxes}
            record["boxes"] = [box.record() for box in self.boxes]
            record["detected"] = [explained.get(box.index, box).record() for box in self.detected]
        return record


@dataclass(frozen=True)
class _Asked:
    """What every picture of many is asked: the boxes of a class, -1 of all, each map scaled `inside` its box; or in
    their place one map of this `ratio` of all anchors."""

    class_index: int
    inside: bool
    ratio: float | None


@dataclass(frozen=True)
class _Found:
    """What one run of the model found: rows of all anchors, what decoding knows of them, and the boxes kept."""

    layout: HeadLayout
    rows: Array
    places: Array
    sample: Prepared
    boxes: tuple[Box, ...] = field(default=())


class Detector:
    """Finds boxes and explains them. Immutable after construction.

    model: path, bytes or ModelProto. kind: a key of `onnxcam.detection.KINDS`, where the outputs do not tell.
    box_score: what is explained, `class`, an edge (`left`, `top`, `right`, `bottom`: how far it reaches outwards),
    `coordinates` (all four, that is width plus height), or `both` (the mean of the maps of class and coordinates).
    threshold: boxes that score less are left out; default the model's own NonMaxSuppression's, 0.7 for face detectors,
    0.5 for DETR, else 0.25. iou: of two boxes of a class that overlap by more, the better one stays; default the
    model's own, else 0.45. anchors: (A, 4) centre x, centre y, width, height in pixels of the model's input, where
    boxes are offsets to anchors that the file does not hold. max_boxes: the best so many are kept.

    method, layer and options: as for Explainer. The default layer is the last map that everything the heads say goes
    through; the default method, `layercam`, weighs every cell by itself, so that a map is of its box and not of all
    boxes of the class. labels: default those of the model's metadata, those beside the file, COCO's for 80 classes.

    Raises: the designed errors of `onnxcam.errors`; UnsupportedError where the outputs are no detector's.
    """

    def __init__(
        self,
        model: ModelSource,
        *,
        kind: str | None = None,
        box_score: str = "class",
        threshold: float | None = None,
        iou: float | None = None,
        anchors: Array | None = None,
        max_boxes: int = 100,
        method: str = "layercam",
        layer: str | Sequence[str] | None = None,
        preprocess: PreprocessLike = None,
        labels: Sequence[str] | str | os.PathLike[str] | None = None,
        size: Size | None = None,
        input_layout: str | None = None,
        input_name: str | None = None,
        feeds: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        _check(box_score, threshold, iou, max_boxes)
        file = read(model)
        properties = {p.key: p.value for p in file.model.metadata_props}
        names = _names(labels, properties)
        wanted = size or _stated_size(preprocess, properties)
        graph, image, bound = opened(file, wanted, input_layout, input_name=input_name, feeds=feeds)
        found = recognised(graph, bound, kind, len(names) if names else None, anchors)
        self._layout: HeadLayout = found.layout
        self._box_score = box_score
        self._max_boxes = max_boxes
        given = None if anchors is None else np.asarray(anchors, np.float64)
        self._anchors = None if given is None else hashlib.sha256(given.tobytes()).hexdigest()
        self.kind = found.kind
        self.threshold: float = _first(threshold, found.score_threshold, _THRESHOLDS.get(found.kind, 0.25))
        self.iou: float = _first(iou, found.iou_threshold, 0.45)
        notes = [f"detector `{found.kind}`: {KINDS[found.kind][1]}"]
        self._terms = tuple(_terms(graph, found.layout, box_score))
        if layer is None and not find_method(method).at_input:
            layer = shared_map(graph, [term.value for term in self._terms], image.name, bound)
            notes += [f"layer `{layer}` chosen: the last map that all boxes come from"] if layer is not None else []
        self.explainer = Explainer(
            replace(file, model=_with_outputs(file.model, graph, found.layout.values)),
            target=BoxTarget(self._terms, found.layout.classes),
            method=method,
            layer=layer,
            preprocess=_preprocess(preprocess, found.kind, file, image, properties),
            labels=names if names and len(names) == found.layout.classes else None,
            size=bound,
            input_layout=input_layout,
            input_name=input_name,
            feeds=feeds,
            **options,
        )
        self.labels: tuple[str, ...] | None = names or self.explainer.labels
        if self.labels is None and found.layout.classes in (1, 80):
            if found.layout.classes == 80:
                self.labels = COCO
                notes.append("labels: COCO's 80, since the model names none")
            elif found.kind in _FACES:
                self.labels = ("face",)
        self.notes: tuple[str, ...] = (*notes, *self.explainer.notes)

    @property
    def classes(self) -> int:
        """Number of classes C; 0 where the outputs do not tell."""
        return self._layout.classes

    @property
    def provenance(self) -> dict[str, Any]:
        """What the provenance of every result says but the picture and the box, as plain JSON values."""
        return {**self.explainer.provenance, "detector": self._facts}

    def detect(self, picture: PictureLike) -> tuple[Box, ...]:
        """The boxes found in a picture, best first.

        Raises: PictureError; ModelError (the runtime refused).
        """
        return self._found(self.prepare(load_picture(picture))).boxes

    def __call__(
        self, picture: PictureLike, box: int | Sequence[int] | None = None, *, inside: bool = False
    ) -> BoxExplanation:
        """One map of a picture: of one box, of several, or of all that were found.

        inside: each map is scaled inside its box, and 0 outside.

        Raises: PictureError; UsageError for a box that does not exist, or where nothing was found.
        """
        return _together(self._of(picture, [box] if isinstance(box, int | np.integer) else box, inside))

    def explain_boxes(
        self, picture: PictureLike, boxes: Iterable[int] | None = None, *, inside: bool = False
    ) -> list[BoxExplanation]:
        """A map per box: of those of these indices in what `detect` gives, or of all.

        Raises: as a call.
        """
        return list(self._of(picture, boxes, inside))

    def explain_anchors(self, picture: PictureLike, ratio: float = 0.02) -> BoxExplanation:
        """One map of the best anchors' class scores together, as the scripts of YOLO users make it.

        ratio: the share of all anchors that is looked at, best first, as far as they score the threshold or more; no
        boxes are suppressed. Only for `box_score` `class`.

        Raises: PictureError; UsageError where no anchor scores enough, or for another box_score.
        """
        found = self._found(self.prepare(load_picture(picture), best_anchors=ratio))
        explanation = self._best_anchors(found, ratio)
        if not explanation.boxes:
            raise UsageError(f"no anchor scores {self.threshold:g} or more: {self._best(found)}", "lower the threshold")
        return explanation

    def check(
        self, target: str | int | None = None, *, inside: bool = False, best_anchors: float | None = None
    ) -> None:
        """Raises: UsageError where pictures are not what the model takes, or cannot be asked this."""
        self.explainer.check()
        self._asked(target, inside, best_anchors)

    def prepare(
        self,
        picture: Picture,
        target: str | int | None = None,
        *,
        inside: bool = False,
        best_anchors: float | None = None,
    ) -> Prepared:
        """A picture made a tensor, with what `explain_prepared` is to make of it: a map of all boxes found, or of those
        of a class; scaled inside them; or of the best anchors, as `explain_anchors` makes it.

        Raises: PictureError; UsageError for an unknown class, or for anchors where there can be none.
        """
        asked = self._asked(target, inside, best_anchors)
        return Prepared(picture, *self.explainer.preprocess(picture), asked)

    def explain_prepared(self, batch: Sequence[Prepared]) -> list[BoxExplanation]:
        """An explanation of each picture, of no box where none was found; docs/audit-a-folder.md lays them in a folder.

        Raises: ModelError (the runtime refused).
        """
        return [self._explanation(self._found(sample), sample.question) for sample in batch]

    def _asked(self, target: str | int | None, inside: bool, ratio: float | None) -> _Asked:
        if ratio is not None:
            if self._box_score != "class":
                raise UsageError(f"anchors together have no `{self._box_score}`", "use the box score `class`")
            if not 0 < ratio <= 1:
                raise UsageError(f"ratio {ratio} is outside (0, 1]", "0.02 looks at the best fiftieth of the anchors")
            if target is not None or inside:
                raise UsageError("the best anchors are of all classes and no box", "leave the class and `inside` out")
        return _Asked(class_number(target, self.labels, self.classes), inside, ratio)

    def _explanation(self, found: _Found, asked: _Asked) -> BoxExplanation:
        if asked.ratio is not None:
            return self._best_anchors(found, asked.ratio)
        boxes = [box for box in found.boxes if asked.class_index in (-1, box.class_index)]
        return _together(self._explained(found, boxes, asked.inside)) if boxes else self._nothing(found, "0 boxes")

    def _of(self, picture: PictureLike, boxes: Iterable[int] | None, inside: bool) -> Iterator[BoxExplanation]:
        found = self._found(self.prepare(load_picture(picture)))
        wanted = list(range(len(found.boxes))) if boxes is None else [int(i) for i in boxes]
        for index in wanted:
            if not 0 <= index < len(found.boxes):
                raise UsageError(f"box {index} does not exist: {_listing(found.boxes)}", "choose one of these")
        if not wanted:
            raise UsageError(f"no box scores {self.threshold:g} or more: {self._best(found)}", "lower the threshold")
        return self._explained(found, [found.boxes[i] for i in wanted], inside)

    def _explained(self, found: _Found, boxes: Sequence[Box], inside: bool) -> Iterator[BoxExplanation]:
        for start in range(0, len(boxes), _AT_ONCE):
            for explanation in self._maps(found, boxes[start : start + _AT_ONCE]):
                yield _peaked(_inside(explanation) if inside else explanation)

    def _best_anchors(self, found: _Found, ratio: float) -> BoxExplanation:
        labels, scores = self._layout.best(found.rows)
        best = np.argsort(-scores, kind="stable")[: max(1, int(len(scores) * ratio))]
        best = best[scores[best] >= self.threshold]
        if not len(best):
            return self._nothing(found, "0 anchors")
        weights = self._weights(found, int(best[0]), int(labels[best[0]]), False)
        for anchor in best[1:]:
            for total, more in zip(weights, self._weights(found, int(anchor), int(labels[anchor]), False), strict=True):
                total += more
        name = f"{len(best)} anchor{'s' if len(best) > 1 else ''}"
        target = BoxTarget(self._terms, self._layout.classes, weights, name, {"anchors": [int(a) for a in best]})
        (explanation,) = self._several(found, [target])
        return _extended(
            explanation,
            boxes=found.boxes,
            detected=found.boxes,
            labels=self.labels,
            provenance={**explanation.provenance, "detector": self._facts},
        )

    def _nothing(self, found: _Found, label: str) -> BoxExplanation:
        """Of a picture in which nothing that is asked for was found."""
        e, sample = self.explainer, found.sample
        provenance = {**e._provenance(sample.picture, Question({}, None, []), None), "detector": self._facts}
        return BoxExplanation(
            values=np.zeros(sample.view.picture_size, np.float32),
            raws=tuple(np.zeros(grid, np.float32) for grid in provenance["grids"]),
            class_index=-1,
            label=label,
            score=0.0,
            probability=None,
            layer=e.layer,
            method=e.method,
            region=sample.view.region,
            scores=np.zeros(0, np.float32),
            labels=self.labels,
            normalize=provenance["normalize"],
            picture=sample.picture,
            provenance=provenance,
            detected=found.boxes,
        )

    def _several(self, found: _Found, targets: Sequence[BoxTarget]) -> list[Explanation]:
        sample = found.sample
        return self.explainer._several(sample.tensor, targets, sample.view, sample.picture)

    def _found(self, sample: Prepared) -> _Found:
        layout, rows = self._layout.of(self.explainer.outputs(sample.tensor))
        found = _Found(layout, rows, layout.places(rows), sample)
        labels, scores = layout.best(rows)
        kept = np.flatnonzero(scores >= self.threshold)
        with np.errstate(over="ignore", invalid="ignore"):
            boxes = np.nan_to_num(layout.boxes(rows[kept], found.places[kept]), posinf=_FAR, neginf=-_FAR)
        boxes = boxes.clip(-_FAR, _FAR)
        if layout.suppresses:
            order = suppressed(boxes, scores[kept], labels[kept], self.iou)
        else:
            order = np.argsort(-scores[kept], kind="stable")
        order = order[: self._max_boxes]
        placed = sample.view.to_picture(boxes[order])
        return replace(
            found,
            boxes=tuple(
                self._box(i, int(anchor), int(labels[anchor]), float(scores[anchor]), edges)
                for i, (anchor, edges) in enumerate(zip(kept[order], placed, strict=True))
            ),
        )

    def _box(self, index: int, anchor: int, label: int, score: float, edges: npt.NDArray[np.float64]) -> Box:
        x0, y0, x1, y1 = (float(edge) for edge in edges)
        return Box(index, label, self._label(label), score, (x0, y0, x1, y1), anchor)

    def _label(self, index: int) -> str | None:
        return self.labels[index] if self.labels and 0 <= index < len(self.labels) else None

    def _best(self, found: _Found) -> str:
        labels, scores = self._layout.best(found.rows)
        if not len(scores):
            return "the model gave none"
        best = int(scores.argmax())
        return f"the best is `{self._label(int(labels[best])) or labels[best]}` with {scores[best]:.3f}"

    def _weights(self, found: _Found, anchor: int, label: int, edges: bool) -> list[Array]:
        """Per term what its value is multiplied by, so that the sum's gradient is that of what is explained."""
        layout, row, place = found.layout, found.rows[anchor], found.places[anchor]
        outward = np.array(_OUTWARD.get(self._box_score, _OUTWARD["coordinates"]))
        weights = []
        for term in self._terms:
            numbers = np.zeros(len(row))
            if edges and term.edges:
                numbers = derivative(lambda rows, places: layout.boxes(rows, places) @ outward, row, place)
            elif not edges and not term.edges:
                factors = list(layout.factors(label))
                if term.bare or layout.is_raw:
                    numbers[factors] = 1
                else:
                    numbers[factors] = derivative(lambda rows, _: layout.score(rows, label), row, place)[factors]
            weights.append(layout.scattered(layout.entries[anchor], numbers)[term.value])
        return weights

    def _maps(self, found: _Found, boxes: Sequence[Box]) -> list[BoxExplanation]:
        parts = {"class": (False,), "both": (False, True)}.get(self._box_score, (True,))
        maps = [self._several(found, [self._target(found, box, edges) for box in boxes]) for edges in parts]
        scores = self._layout.scores(found.rows[[box.anchor for box in boxes]])
        return [
            _extended(
                each[0],
                values=np.mean([e.values for e in each], axis=0, dtype=np.float32),
                raws=tuple(raw for e in each for raw in e.raws),
                boxes=(box,),
                detected=found.boxes,
                class_index=box.class_index,
                label=box.label,
                probability=box.score,
                scores=row if len(row) == self._layout.classes else each[0].scores,
                labels=self.labels,
                provenance={**each[0].provenance, "detector": self._facts},
            )
            for each, box, row in zip(zip(*maps, strict=True), boxes, scores, strict=True)
        ]

    def _target(self, found: _Found, box: Box, edges: bool) -> BoxTarget:
        weights = self._weights(found, box.anchor, box.class_index, edges)
        record = {"box": box.record(), "box_score": self._box_score}
        return BoxTarget(self._terms, self._layout.classes, weights, box.name, record)

    @property
    def _facts(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "box_score": self._box_score,
            "threshold": self.threshold,
            "iou": self.iou,
            "max_boxes": self._max_boxes,
            "anchors": self._anchors,
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        return f"<Detector {self.kind}: {self.explainer!r}>"


def opened(
    file: ModelFile, size: Size | None, input_layout: str | None, **inputs: Any
) -> tuple[Graph, ImageInput, Size]:
    """A model's graph, to look at: `open_graph` with the size that detectors usually have where the file leaves it
    open, 640 x 640, and without a run that compares it with its lifted self, as who explains it does."""
    image = image_input(file.model, file.name, input_layout, inputs.get("input_name"))
    is_open = image.sides == 2 and None in (image.height, image.width)
    asked = size or ((image.height or 640, image.width or 640) if is_open else None)

    def nothing(model: ModelProto) -> list[Array]:
        return [np.zeros(1)] * len(model.graph.output)

    return open_graph(file, size=asked, input_layout=input_layout, run=nothing, **inputs)


def looks_like_detector(
    model: ModelSource, size: Size | None = None, input_layout: str | None = None, **inputs: Any
) -> bool:
    """Whether a model is a detector, by its outputs. One class score per class and sample is none.

    Raises: what loading a model raises.
    """
    file = read(model)
    ranks = [len(o.type.tensor_type.shape.dim) for o in file.model.graph.output if o.type.tensor_type.HasField("shape")]
    if len(ranks) == 1 and ranks[0] <= 2 and not any(n.op_type == "NonMaxSuppression" for n in file.model.graph.node):
        return False
    graph, _, bound = opened(file, size, input_layout, **inputs)
    return is_detector(graph, bound)


def _check(box_score: str, threshold: float | None, iou: float | None, max_boxes: int) -> None:
    if box_score not in BOX_SCORES:
        raise UsageError(f"unknown box score `{box_score}`", f"use one of {', '.join(BOX_SCORES)}")
    for name, value in (("threshold", threshold), ("iou", iou)):
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name} {value:g} is outside [0, 1]", "0.25 and 0.45 are usual")
    if max_boxes < 1:
        raise UsageError(f"{max_boxes} boxes at most", "give 1 or more")


def _terms(graph: Graph, layout: HeadLayout, box_score: str) -> Iterable[Term]:
    """The values that what is explained reads: for the class without their activations, for the edges as they are."""
    open_layout = layout
    layout = replace(layout, shapes=tuple(tuple(d or 1 for d in shape) for shape in layout.shapes))
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in layout.shapes)])
    entries = layout.entries
    last = max(layout.classes - 1, 0)
    columns = {False: [*layout.factors(0), *layout.factors(last)], True: list(layout.box_columns)}
    for edges in {"class": (False,), "both": (False, True)}.get(box_score, (True,)):
        used = np.unique(np.searchsorted(starts, entries[:, columns[edges]].ravel(), side="right") - 1)
        for i in used:
            value = layout.values[i]
            bare = not edges and ends_in_activation(graph, value)
            yield Term(value, open_layout.shapes[i], bare, edges, layout.is_batched)


def class_terms(graph: Graph, layout: HeadLayout) -> Iterable[Term]:
    """The values that the score of a class reads."""
    return _terms(graph, layout, "class")


def _with_outputs(model: ModelProto, graph: Graph, values: Sequence[str]) -> ModelProto:
    """The model, with values from its inside among its outputs."""
    missing = [value for value in values if value not in graph.outputs]
    if not missing:
        return model
    wider = ModelProto()
    wider.CopyFrom(model)
    wider.graph.output.extend(tensor_info(value, graph.dtype(value), graph.shape(value)) for value in missing)
    return wider


def _names(
    labels: Sequence[str] | str | os.PathLike[str] | None, properties: Mapping[str, str]
) -> tuple[str, ...] | None:
    """The class names given, else those of Ultralytics' metadata."""
    if labels is None:
        return ultralytics_labels(properties)
    if isinstance(labels, str | os.PathLike):
        return tuple(read_labels(Path(labels)))
    return tuple(str(name) for name in labels)


def _stated_size(given: PreprocessLike, properties: Mapping[str, str]) -> Size | None:
    if isinstance(given, Preprocess):
        return given.size
    if isinstance(given, Mapping) and "size" in given:
        height, width = given["size"]
        return int(height), int(width)
    if METADATA_KEY in properties:
        return Preprocess.from_json(properties[METADATA_KEY]).size
    stated = ultralytics(properties, None)
    return stated.size if stated is not None else None


def _preprocess(
    given: PreprocessLike, kind: str, file: ModelFile, image: ImageInput, properties: Mapping[str, str]
) -> PreprocessLike:
    """What was asked for, on top of what such detectors usually want where nothing else says more."""
    if isinstance(given, Preprocess | str | os.PathLike) or (given is not None and "preset" in given):
        return given
    fixed = (image.height, image.width) if image.height and image.width else None
    stated = METADATA_KEY in properties or ultralytics(properties, fixed) is not None
    if stated or image.inside is not None or (file.folder is not None and beside(file.folder, image)[0] is not None):
        return given
    return {"preset": f"detector:{kind}", **(given or {})}


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _listing(boxes: Sequence[Box]) -> str:
    if not boxes:
        return "none was found"
    names = ", ".join(f"{box.index} `{box.name}`" for box in boxes[:8]) + (", ..." if len(boxes) > 8 else "")
    return f"{len(boxes)} {'was' if len(boxes) == 1 else 'were'} found: {names}"


def _extended(explanation: Explanation, **more: Any) -> BoxExplanation:
    known = {f.name: getattr(explanation, f.name) for f in fields(explanation)}
    return BoxExplanation(**{**known, **more})


def _inside(explanation: BoxExplanation) -> BoxExplanation:
    """The map scaled to [0, 1] inside the box, and 0 outside."""
    mask = boxes_mask([box.xyxy for box in explanation.boxes], explanation.values.shape[:2])
    if not mask.any():
        return replace(explanation, values=np.zeros_like(explanation.values))
    low, high = explanation.values[mask].min(), explanation.values[mask].max()
    scaled = (explanation.values - low) / (high - low) if high > low else np.zeros_like(explanation.values)
    return replace(explanation, values=np.where(mask, scaled, 0).astype(np.float32))


def _peaked(explanation: BoxExplanation) -> BoxExplanation:
    """The explanation of one box, which is told the peak of its map."""
    (box,) = explanation.boxes
    return replace(explanation, boxes=(replace(box, peak=explanation.peak if explanation.values.max() > 0 else None),))


def _together(explained: Iterable[BoxExplanation]) -> BoxExplanation:
    """The explanation of one box as it is; of several the highest of their maps, which are not held all at once."""
    others = iter(explained)
    first = next(others)
    parts, highest = [first], None
    for other in others:
        highest = np.maximum(_to_its_peak(first) if highest is None else highest, _to_its_peak(other))
        parts.append(replace(other, values=highest[:0]))
    if highest is None:
        return first
    return replace(
        first,
        values=highest,
        raws=tuple(raw for e in parts for raw in e.raws),
        boxes=tuple(box for e in parts for box in e.boxes),
        class_index=-1,
        label=f"{len(parts)} boxes",
        score=float(sum(e.score for e in parts)),
        probability=None,
        scores=np.zeros(0, np.float32),
        provenance={**first.provenance, "target": [e.provenance["target"] for e in parts]},
    )


def _to_its_peak(explanation: BoxExplanation) -> npt.NDArray[np.float32]:
    return explanation.values / np.float32(float(np.nan_to_num(explanation.values).max()) or 1.0)
