"""Which method to believe: metrics of many pictures, a mean with its confidence interval per method."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.external_data_helper import load_external_data_for_model
from PIL import Image

from onnxcam.errors import PictureError, UsageError
from onnxcam.explainer import ClassLike, Explainer
from onnxcam.explanation import Explanation
from onnxcam.graph.read import ModelSource, read
from onnxcam.jsontext import parsed_json
from onnxcam.methods import find_method
from onnxcam.metrics import Curve, Metric, Sample, Settings, boxes_mask, find_metric, randomised_models
from onnxcam.metrics.faithfulness import Floats
from onnxcam.metrics.plot import Line, Panel, curves
from onnxcam.metrics.table import FAITHFUL, LOCALISED
from onnxcam.picture import Picture, PictureLike, load_picture
from onnxcam.preprocess import View
from onnxcam.saliency import saliency_maps
from onnxcam.targets import class_number

METHODS = ("gradcam", "random", "sobel")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")
RESAMPLES = 1000
BATCH = 32

Box = tuple[float, float, float, float]
Progress = Callable[[int, int], None]
# Options of the map that the scores must not depend on.
_OF_THE_MAP = ("layer", "layer_layout", "score", "fuse", "eigen_smooth", "sign", "method_options", "progress")


@dataclass(frozen=True)
class Objects:
    """What is in a picture: label and box (x0, y0, x1, y1), end-exclusive pixels, of each object.

    accepted: words of class names that are right for the picture where the objects' labels are no class names.
    size: (H, W) that the boxes were drawn on, where it is known.
    """

    boxes: tuple[tuple[str, Box], ...]
    accepted: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Estimate:
    """The mean over the maps that could be measured, its confidence interval, and how many could (not) be.

    low, high: percentile bootstrap over pictures; NaN for fewer than two pictures.
    """

    mean: float
    low: float
    high: float
    measured: int
    missing: int


@dataclass(frozen=True)
class Row:
    """One map: `state` is `ok`, `empty` or `nan`; only `ok` maps are measured, NaN where a metric could not."""

    picture: str
    class_index: int
    label: str | None
    method: str
    state: str
    values: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method: its layer, its estimates by metric, how many of its maps were empty or NaN, its mean curves."""

    method: str
    layer: str
    maps: int
    empty: int
    nan: int
    estimates: Mapping[str, Estimate]
    insertion: Curve | None
    deletion: Curve | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found; `methods` best first by the first metric.

    rows: every map. unreadable: pictures that could not be read, and why. notes: decided for the user.
    """

    model: Mapping[str, str]
    metrics: tuple[Metric, ...]
    methods: tuple[MethodResult, ...]
    rows: tuple[Row, ...]
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the means do not say, in words; empty when nothing is amiss."""
        lines = [f"left out: {why}" for why in self.unreadable]
        for result in self.methods:
            for count, kind in ((result.empty, "empty"), (result.nan, "NaN")):
                if count:
                    lines.append(f"{result.method}: {count} of {result.maps} maps are {kind} and in no mean")
        for metric in self.metrics:
            missing = {r.method: e.missing for r in self.methods if (e := r.estimates[metric.name]).missing}
            if len(missing) == len(self.methods) and len(counts := set(missing.values())) == 1:
                lines.append(f"{metric.name} could not be measured on {counts.pop()} maps of every method")
            elif missing:
                listed = ", ".join(f"{n} ({method})" for method, n in missing.items())
                lines.append(f"{metric.name} could not be measured on some maps: {listed}")
        return tuple(lines)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows as text: mean and interval of each metric, an arrow for the better direction."""
        arrows = {"higher": "↑", "lower": "↓"}
        columns = ["method", "maps", *(f"{m.name} {arrows[m.better]}" for m in self.metrics)]
        rows = [
            [r.method, str(r.maps - r.empty - r.nan), *(_cell(r.estimates[m.name]) for m in self.metrics)]
            for r in self.methods
        ]
        return columns, rows

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not a number is None."""
        return {
            "model": dict(self.model),
            "settings": dict(self.settings),
            "metrics": [
                {"name": m.name, "better": m.better, "range": [_number(m.low), _number(m.high)], "paper": m.paper}
                for m in self.metrics
            ],
            "methods": [
                {
                    "method": r.method,
                    "layer": r.layer,
                    "maps": r.maps,
                    "empty": r.empty,
                    "nan": r.nan,
                    "metrics": {
                        name: {
                            "mean": _number(e.mean),
                            "interval": [_number(e.low), _number(e.high)],
                            "measured": e.measured,
                            "missing": e.missing,
                        }
                        for name, e in r.estimates.items()
                    },
                    "curves": {
                        name: {"fraction": curve.fraction.tolist(), "score": curve.score.tolist()}
                        for name, curve in (("insertion", r.insertion), ("deletion", r.deletion))
                        if curve is not None
                    },
                }
                for r in self.methods
            ],
            "maps": [
                {
                    "picture": row.picture,
                    "class_index": row.class_index,
                    "label": row.label,
                    "method": row.method,
                    "state": row.state,
                    "metrics": {name: _number(value) for name, value in row.values.items()},
                }
                for row in self.rows
            ],
            "unreadable": list(self.unreadable),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def csv(self) -> str:
        """One line per map, a column per metric; empty where it was not measured."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [m.name for m in self.metrics]
        writer.writerow(["picture", "class_index", "label", "method", "state", *names])
        for row in self.rows:
            numbers = [row.values.get(name, math.nan) for name in names]
            cells = ["" if math.isnan(v) else repr(v) for v in numbers]
            writer.writerow([row.picture, row.class_index, row.label or "", row.method, row.state, *cells])
        return text.getvalue()

    def plot(self) -> Image.Image:
        """The mean insertion and deletion curves of every method.

        Raises: UsageError where neither was measured.
        """
        panels = []
        for name, better in (("insertion", "a larger area is better"), ("deletion", "a smaller area is better")):
            found = [(r, c) for r in self.methods if (c := getattr(r, name)) is not None]
            if found:
                verb = "shown" if name == "insertion" else "removed"
                lines = [Line(f"{r.method}, area {r.estimates[name].mean:.3f}", c.fraction, c.score) for r, c in found]
                panels.append(Panel(f"{name}: {better}", f"share of pixels {verb}", "probability", lines))
        if not panels:
            raise UsageError("there is no curve to draw", "measure `insertion` or `deletion`")
        return curves(panels)


def _cell(e: Estimate) -> str:
    if math.isnan(e.mean):
        return "-"
    return f"{e.mean:.3f}" if math.isnan(e.low) else f"{e.mean:.3f} [{e.low:.3f} {e.high:.3f}]"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate(
    model: ModelSource,
    pictures: str | os.PathLike[str] | Sequence[PictureLike],
    *,
    methods: Sequence[str] = METHODS,
    metrics: Sequence[str] | None = None,
    boxes: str | os.PathLike[str] | Mapping[str, Objects] | None = None,
    masks: Mapping[str, npt.NDArray[np.bool_]] | None = None,
    target: ClassLike = None,
    settings: Settings | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Measure methods on pictures: per method the mean of each metric with its confidence interval, best first.

    pictures: a folder, or a sequence of what `Explainer` takes; paths are named by their file name. metrics: names in
    `onnxcam.metrics.METRICS`; default FAITHFUL, and LOCALISED too where boxes or masks are given. options: as for
    Explainer.

    boxes: by file name, or a JSON file `{name: {"width", "height", "objects": [{"label", "box_xyxy"}]}}`. masks: by
    file name, (H, W) bool, in place of boxes. Each label that is a class of the model is explained; where none is,
    the predicted class is, and the boxes count whose label is a word of the class's name, or all of them where they
    have one label and a word of the entry's `imagenet_ok` is in the class's name. Without boxes the predicted class
    is explained; `target` explains one class everywhere, with the boxes of that label.

    Scores are probabilities of the explained class. Masks and noise act on the preprocessed tensor, of integer inputs
    on the real values that they stand for. A map that is empty or NaN is counted and in no mean. Intervals are
    percentile bootstraps over pictures, 1000 resamples; everything random comes from `settings.seed`.

    Raises: UsageError, ModelError, UnsupportedError (a method that the model cannot carry). Pictures that cannot be
    read are listed in the result.
    """
    if clash := {"method", "normalize"} & options.keys():
        raise UsageError(f"`{min(clash)}` cannot be chosen here", "give `methods`; maps are measured in [0, 1]")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is outside (0, 1)", "0.95 is usual")
    wanted = [find_method(name).name for name in dict.fromkeys(methods)]
    located = boxes is not None or masks is not None
    rows = [find_metric(n) for n in dict.fromkeys(metrics or (FAITHFUL + LOCALISED if located else FAITHFUL))]
    if not (wanted and rows):
        raise UsageError("there is nothing to measure", "name at least one method and one metric")
    if not located and (blind := [m.name for m in rows if m.boxes]):
        raise UsageError(f"{', '.join(blind)}: where the objects are is not known", "give `boxes` or `masks`")
    settings = settings or Settings()
    options = {"seed": settings.seed, **options}
    named = _named(pictures)
    known = read_boxes(boxes) if isinstance(boxes, str | os.PathLike) else dict(boxes or {})
    if located and not {name for name, _ in named} & {*known, *(masks or {})}:
        raise UsageError(
            "the boxes are of none of the pictures", f"their names are file names, such as `{named[0][0]}`"
        )
    runner = _Runner(model, options, settings)
    # What the model cannot carry is refused before anything is measured; only one method is held in memory.
    notes = dict.fromkeys(note for method in wanted for note in runner.explainer(method).notes)
    cases, unreadable = _cases(runner, named, known, masks or {}, target)
    if not cases:
        raise PictureError(f"none of the {len(named)} pictures can be read: {unreadable[0]}", "check the files")
    report = progress or (lambda done, total: None)
    found: list[Row] = []
    results = []
    for number, method in enumerate(wanted):
        explainer = runner.explainer(method)
        measured = []
        for i, case in enumerate(cases):
            report(number * len(cases) + i, len(wanted) * len(cases))
            measured.append(runner.measure(explainer, case, rows))
        found += [m.row for m in measured]
        rng = np.random.default_rng(settings.seed)
        results.append(_summary(explainer, measured, rows, confidence, rng))
    report(len(wanted) * len(cases), len(wanted) * len(cases))
    results.sort(key=lambda r: (math.isnan(m := r.estimates[rows[0].name].mean), rows[0].sort_key(m)))
    return Evaluation(
        model={"name": runner.file.name, "sha256": runner.file.sha256},
        metrics=tuple(rows),
        methods=tuple(results),
        rows=tuple(found),
        unreadable=tuple(unreadable),
        notes=tuple(notes),
        settings={
            **{name: getattr(settings, name) for name in Settings.__dataclass_fields__},
            "percentiles": list(settings.percentiles),
            "confidence": confidence,
            "interval": f"percentile bootstrap over pictures, {RESAMPLES} resamples",
            "best_first": rows[0].name,
            "pictures": len({case.name for case in cases}),
        },
    )


def read_boxes(path: str | os.PathLike[str]) -> dict[str, Objects]:
    """The objects of each picture, by file name, from a JSON file; see `evaluate` for its form.

    Raises: UsageError naming the entry that is not of that form.
    """
    one = {"width": 320, "height": 240, "objects": [{"label": "cat", "box_xyxy": [10, 20, 110, 220]}]}
    hint = f"the form is {json.dumps({'cat.jpg': one})}"
    try:
        entries = parsed_json(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"boxes {path} cannot be read: {error}", hint) from error
    if not isinstance(entries, dict):
        raise UsageError(f"boxes {path}: a JSON object by file name is expected", hint)
    found = {}
    for name, entry in entries.items():
        try:
            boxes = tuple((str(o["label"]), _box(o["box_xyxy"])) for o in entry["objects"])
            size = (int(entry["height"]), int(entry["width"])) if "height" in entry else None
            found[name] = Objects(boxes, tuple(map(str, entry.get("imagenet_ok", ()))), size)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"boxes {path}: entry `{name}`: {type(error).__name__} {error}", hint) from error
    return found


def _box(values: Sequence[float]) -> Box:
    x0, y0, x1, y1 = map(float, values)
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"box {list(values)} is not x0 < x1, y0 < y1")
    return x0, y0, x1, y1


def _named(pictures: str | os.PathLike[str] | Sequence[PictureLike]) -> list[tuple[str, PictureLike]]:
    if isinstance(pictures, str | os.PathLike):
        folder = Path(pictures)
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder", "give a folder of pictures")
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        files = [p for p in files if not p.name.startswith(".") and not p.name.endswith(".cam.png")]
        if not files:
            raise UsageError(f"{folder} holds no pictures", f"they end in {', '.join(SUFFIXES)}")
        return [(p.name, p) for p in files]
    if not pictures:
        raise UsageError("there are no pictures", "give at least one")
    return [(Path(p).name if isinstance(p, str | os.PathLike) else f"picture {i}", p) for i, p in enumerate(pictures)]


@dataclass(frozen=True, eq=False)
class _Case:
    """One class of one picture."""

    name: str
    picture: PictureLike
    class_index: int
    label: str | None
    boxes: tuple[Box, ...]
    mask: npt.NDArray[np.bool_] | None


def _cases(
    runner: "_Runner",
    named: Sequence[tuple[str, PictureLike]],
    known: Mapping[str, Objects],
    masks: Mapping[str, npt.NDArray[np.bool_]],
    target: ClassLike,
) -> tuple[list[_Case], list[str]]:
    labels = runner.scorer.labels
    asked = class_number(target, labels, runner.scorer.classes)
    cases, unreadable = [], []
    for name, source in named:
        try:
            picture = load_picture(source)
            x, _ = runner.tensor(picture)
        except PictureError as error:
            unreadable.append(error.message)
            continue
        objects = known.get(name, Objects(()))
        size = picture.rgb.shape[:2]
        for other, of in ((objects.size, "boxes"), (masks[name].shape if name in masks else None, "mask")):
            if other is not None and tuple(other) != size:
                raise UsageError(
                    f"{name}: the {of} are of {other[1]}x{other[0]} pixels, the picture has {size[1]}x{size[0]}",
                    "draw them on the picture as it is shown, upright",
                )
        of_class = _boxes_by_class(objects, labels, runner.scorer.classes)
        if asked != -1:
            of_class = {asked: of_class.get(asked, ())}
        elif not of_class:
            predicted = runner.predicted(x)
            of_class = {predicted: _boxes_by_words(objects, labels[predicted] if labels else "")}
        cases += [
            _Case(name, source, index, labels[index] if labels else None, found, masks.get(name))
            for index, found in of_class.items()
        ]
    return cases, unreadable


def _boxes_by_class(objects: Objects, labels: Sequence[str] | None, classes: int) -> dict[int, tuple[Box, ...]]:
    """The boxes of every label that is a class of the model."""
    found: dict[int, tuple[Box, ...]] = {}
    for label, box in objects.boxes:
        try:
            index = class_number(label, tuple(labels) if labels else None, classes)
        except UsageError:
            continue
        found[index] = (*found.get(index, ()), box)
    return found


def _boxes_by_words(objects: Objects, class_name: str) -> tuple[Box, ...]:
    def named(words: str) -> bool:
        return re.search(rf"\b{re.escape(words)}\b", class_name, re.IGNORECASE) is not None

    own = tuple(box for label, box in objects.boxes if named(label))
    if own:
        return own
    one_kind = len({label for label, _ in objects.boxes}) == 1
    return tuple(b for _, b in objects.boxes) if one_kind and any(map(named, objects.accepted)) else ()


@dataclass(frozen=True, eq=False)
class _Measured:
    row: Row
    insertion: Curve | None = None
    deletion: Curve | None = None


class _Runner:
    """The model as the metrics need it: real-valued (C, H, W) samples in, probabilities and maps out."""

    def __init__(self, model: ModelSource, options: Mapping[str, Any], settings: Settings) -> None:
        self.file = read(model)
        self.model = model
        self.options = options
        self.settings = settings
        of_the_score = {k: v for k, v in options.items() if k not in _OF_THE_MAP}
        # Sobel needs no layer, and its map is never asked for.
        self.scorer = Explainer(model, method="sobel", score="probability", **of_the_score)
        self._randomised: tuple[str, list[Explainer]] = ("", [])

    def explainer(self, method: str) -> Explainer:
        return Explainer(self.model, method=method, **self.options)

    def randomised(self, method: str) -> list[Explainer]:
        """The method on every stage of the randomised model; kept for the method at hand."""
        if self._randomised[0] != method:
            stages = randomised_models(self.weights, stages=self.settings.stages, seed=self.settings.seed)
            self._randomised = method, [Explainer(m, method=method, **self.options) for _, m in stages]
        return self._randomised[1]

    @cached_property
    def weights(self) -> Any:
        """The model with all its weights in it."""
        model = type(self.file.model)()
        model.CopyFrom(self.file.model)
        if self.file.folder is not None:
            load_external_data_for_model(model, str(self.file.folder))
        return model

    def tensor(self, picture: Picture) -> tuple[Floats, View]:
        tensor, view = self.scorer.preprocess(picture)
        return self._real(tensor)[0], view

    def predicted(self, x: Floats) -> int:
        (explanation,) = self.scorer.explain_tensor(self._fed(x[None]))
        return explanation.class_index

    def probabilities(self, x: Floats, index: int) -> Floats:
        chunks = (x[i : i + BATCH] for i in range(0, len(x), BATCH))
        return np.concatenate([self.scorer.scores(self._fed(c), np.full(len(c), index)) for c in chunks])

    def explain(self, explainer: Explainer, x: Floats, index: int) -> Explanation:
        (explanation,) = explainer.explain_tensor(self._fed(x[None]), index)
        return explanation

    def _real(self, tensor: npt.NDArray[Any]) -> Floats:
        p = self.scorer.preprocess
        step, zero = p.quantization or (1.0, 0)
        values = (tensor.astype(np.float32) - np.float32(zero)) * np.float32(step)
        return values.transpose(0, 3, 1, 2) if p.layout == "nhwc" else values

    def _fed(self, x: Floats) -> npt.NDArray[Any]:
        p = self.scorer.preprocess
        values = x.transpose(0, 2, 3, 1) if p.layout == "nhwc" else x
        dtype = np.dtype(p.dtype)
        if dtype.kind != "f":
            step, zero = p.quantization or (1.0, 0)
            info = np.iinfo(dtype)
            values = (np.rint(values / np.float32(step)) + zero).clip(info.min, info.max)
        return np.ascontiguousarray(values, dtype)

    def measure(self, explainer: Explainer, case: _Case, metrics: Sequence[Metric]) -> _Measured:
        picture = load_picture(case.picture)
        x, view = self.tensor(picture)
        explanation = self.explain(explainer, x, case.class_index)

        def row(state: str, values: Mapping[str, float]) -> Row:
            return Row(case.name, case.class_index, case.label, explainer.method, state, values)

        if explanation.has_nan or explanation.is_empty:
            return _Measured(row("nan" if explanation.has_nan else "empty", {}))
        sample = Sample(
            x=x,
            saliency=explanation.values,
            raw=explanation.raw,
            score=lambda samples: self.probabilities(samples, case.class_index),
            explain=lambda other: self.explain(explainer, other, case.class_index).values,
            raw_of_class=lambda index: self.explain(explainer, x, index).raw,
            randomised_raws=lambda: self._randomised_raws(explainer.method, x, case.class_index),
            class_index=case.class_index,
            classes=explainer.classes,
            placed=lambda: self._placed(explanation, view),
            mask=_seen_mask(case, view),
            settings=self.settings,
        )
        values = {metric.name: metric.measure(sample) for metric in metrics}
        names = values.keys()
        return _Measured(
            row("ok", values),
            sample.insertion if "insertion" in names else None,
            sample.deletion if "deletion" in names else None,
        )

    def _randomised_raws(self, method: str, x: Floats, index: int) -> Iterator[Floats]:
        return (self.explain(explainer, x, index).raw for explainer in self.randomised(method))

    def _placed(self, explanation: Explanation, view: View) -> Floats:
        raws = [raw[np.newaxis] for raw in explanation.raws]
        return saliency_maps(raws, [view], "minmax", self.options.get("fuse", "mean"))[0]


def _seen_mask(case: _Case, view: View) -> npt.NDArray[np.bool_] | None:
    """Where the object is in the picture; None where that is not known, or the model saw none of it."""
    if case.mask is None and not case.boxes:
        return None
    mask = case.mask if case.mask is not None else boxes_mask(case.boxes, view.picture_size)
    x0, y0, x1, y1 = view.region
    return mask if mask[y0:y1, x0:x1].any() else None


def _summary(
    explainer: Explainer,
    measured: Sequence[_Measured],
    metrics: Sequence[Metric],
    confidence: float,
    rng: np.random.Generator,
) -> MethodResult:
    rows = [m.row for m in measured]
    ok = [r for r in rows if r.state == "ok"]
    return MethodResult(
        method=explainer.method,
        layer=explainer.layer,
        maps=len(rows),
        empty=sum(r.state == "empty" for r in rows),
        nan=sum(r.state == "nan" for r in rows),
        estimates={m.name: estimate([(r.picture, r.values[m.name]) for r in ok], confidence, rng) for m in metrics},
        insertion=_mean_curve([m.insertion for m in measured if m.insertion is not None]),
        deletion=_mean_curve([m.deletion for m in measured if m.deletion is not None]),
    )


def estimate(values: Sequence[tuple[str, float]], confidence: float, rng: np.random.Generator) -> Estimate:
    """Mean and percentile bootstrap of (picture, value) pairs; pictures are drawn whole, NaN values are missing."""
    good = [(name, value) for name, value in values if not math.isnan(value)]
    if not good:
        return Estimate(math.nan, math.nan, math.nan, 0, len(values))
    by_picture: dict[str, list[float]] = {}
    for name, value in good:
        by_picture.setdefault(name, []).append(value)
    sums = np.array([sum(v) for v in by_picture.values()])
    counts = np.array([len(v) for v in by_picture.values()])
    mean = float(sums.sum() / counts.sum())
    low, high = math.nan, math.nan
    if len(sums) > 1:
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
        tail = 50 * (1 - confidence)
        low, high = (float(v) for v in np.percentile((drawn @ sums) / (drawn @ counts), (tail, 100 - tail)))
    return Estimate(mean, low, high, len(good), len(values) - len(good))


def _mean_curve(found: Sequence[Curve]) -> Curve | None:
    return Curve(found[0].fraction, np.mean([c.score for c in found], axis=0)) if found else None
