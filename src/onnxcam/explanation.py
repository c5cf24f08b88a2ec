"""The result of explaining one sample."""

import base64
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcam.errors import OutputError, PictureError, UsageError
from onnxcam.output import write_atomically
from onnxcam.picture import Picture
from onnxcam.render import clipped, encoded, overlay

TOP = 5
SHOWN = 640
"""Longest edge of what a notebook shows, in pixels."""


def highest(scores: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.intp]:
    """The indices of the `count` highest of (C,) scores, best first; of equal ones the first, NaN last."""
    if count < len(scores):
        floor = -np.partition(-scores, count - 1)[count - 1]
        among = np.flatnonzero(scores >= floor)
        if len(among) >= count:  # else NaN is among the highest
            return among[np.argsort(-scores[among], kind="stable")[:count]]
    return np.argsort(-scores, kind="stable")[:count]


@dataclass(frozen=True)
class ClassScore:
    """One class of the prediction: `score` is the probability where the model ends in one, else the logit."""

    index: int
    label: str | None
    score: float

    @property
    def name(self) -> str:
        return self.label if self.label is not None else f"class {self.index}"


@dataclass(frozen=True, repr=False)
class Explanation:
    """Which part of one picture moved the score of one class.

    values: (H, W) float32 saliency map in the original picture's coordinates, [0, 1] unless normalised otherwise; (L,)
    of a signal, (D, H, W) of a volume.
    raws: per layer, (h, w) float32 signed weighted sum of the activations, un-normalised, in units of the score;
    `raw` is the first.
    class_index, label: the class explained; where the target is none, -1 and the target in words.
    score: the explained scalar (logit, or probability where that was asked for).
    probability: the class's probability where the model ends in Softmax or Sigmoid, else None.
    scores: (C,) of all classes, probabilities where the model ends in one, else logits; `top` the highest, best first.
    labels: of all classes. region: x0, y0, x1, y1, the part of the picture that the model saw.
    clip: the percentile of the map that an overlay shows as the top colour and above; `values` know nothing of it. 99
    where the map was made pixel by pixel, since a few of them outshine all others, else 100.
    provenance: everything needed to reproduce the map, as plain JSON values.
    """

    values: npt.NDArray[np.float32]
    raws: tuple[npt.NDArray[np.float32], ...]
    class_index: int
    label: str | None
    score: float
    probability: float | None
    layer: str
    method: str
    region: tuple[int, int, int, int]
    scores: npt.NDArray[np.floating[Any]]
    labels: tuple[str, ...] | None
    normalize: str = "minmax"
    clip: float = 100.0
    picture: Picture | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def raw(self) -> npt.NDArray[np.float32]:
        """(h, w) float32 signed map of the first layer, un-normalised, in units of the score."""
        return self.raws[0]

    @cached_property
    def top(self) -> tuple[ClassScore, ...]:
        """The five classes that score highest, best first."""
        best = highest(self.scores, TOP)
        return tuple(ClassScore(int(i), self.labels[i] if self.labels else None, float(self.scores[i])) for i in best)

    def says(self, index: int) -> bool | None:
        """Whether the model says that the picture is of a class, by the highest score; None where it scores none."""
        return self.top[0].index == index if self.top else None

    @property
    def is_empty(self) -> bool:
        """No cell speaks for the class: no raw map has a positive value, so `values` are 0 everywhere."""
        return all(bool(raw.max() <= 0) for raw in self.raws)

    @property
    def has_nan(self) -> bool:
        """The activations, the weights or their sum are not numbers; `values` are NaN."""
        return any(bool(np.isnan(raw).any()) for raw in self.raws)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the map unfit to be believed, in words; empty when nothing does."""
        if self.has_nan:
            return ("the map holds NaN: the model's activations or gradients overflowed on this picture",)
        if self.provenance.get("found", {}).get("cancelled"):
            return (f"the map is rounding noise: at `{self.layer}` the terms of `{self.method}` cancel; use `gradcam`",)
        if told := self.provenance.get("found", {}).get("target"):
            return (f"the map is empty: {told}",)
        if self.is_empty:
            return (f"the map is empty: no cell of `{self.layer}` speaks for this class",)
        return ()

    @property
    def peak(self) -> tuple[int, ...]:
        """(x, y) of the highest value, in picture pixels; (x,) in a signal, (x, y, z) in a volume."""
        place = int(self.values.argmax())
        if math.isnan(self.values.flat[place]):  # NaN counts as the highest
            place = int(np.nan_to_num(self.values, nan=-np.inf).argmax())
        return tuple(int(i) for i in reversed(np.unravel_index(place, self.values.shape)))

    def overlay(self, colormap: str = "jet", opacity: float = 0.5, clip: float | None = None) -> Image.Image:
        """The picture with the map blended over it; a NaN map leaves the picture uncoloured.

        clip: the percentile, over what the model saw, that the top colour begins at; default the explanation's own.

        Raises: UsageError where there is no picture (`explain_tensor`), or for an unknown colormap, opacity or clip.
        """
        if self.picture is None:
            raise UsageError("there is no picture to lay the map over", "use `values`, or explain a picture")
        values = self.values
        if self.normalize == "none":
            values = values / max(float(np.nanmax(values, initial=0.0)), float(np.finfo(np.float32).tiny))
        values = clipped(values, self.region, self.clip if clip is None else clip)
        return overlay(self.picture.rgb, values.astype(np.float32), self.region, colormap, opacity)

    def record(self, flat: bool = False) -> dict[str, Any]:
        """Everything but the maps, as plain JSON values; scores that are not finite are null.

        flat: scalars only, one row of a table (`pandas.DataFrame(e.record(flat=True) for e in explanations)`); of the
        provenance what tells rows apart. `error` is null, and says what is wrong in the row of a BadPicture.
        """
        if flat:
            return self._row()
        return {
            "class_index": self.class_index if self.class_index >= 0 else None,
            "label": self.label,
            "score": _finite(self.score),
            "probability": _finite(self.probability),
            "layer": self.layer,
            "method": self.method,
            "normalize": self.normalize,
            "clip": self.clip,
            "grids": [list(raw.shape) for raw in self.raws],
            "size": list(self.values.shape),
            "region": list(self.region),
            "peak": list(self.peak),
            "is_empty": self.is_empty,
            "has_nan": self.has_nan,
            "warnings": list(self.warnings),
            "top": [{"index": c.index, "label": c.label, "score": _finite(c.score)} for c in self.top],
            "provenance": dict(self.provenance),
        }

    def _row(self) -> dict[str, Any]:
        source, model = (self.provenance.get(key) or {} for key in ("picture", "model"))
        best = self.top[0] if self.top else None
        region = zip(("x0", "y0", "x1", "y1"), self.region, strict=True)
        return {
            "source": source.get("source"),
            "error": None,
            "class_index": self.class_index,
            "label": self.label,
            "score": _finite(self.score),
            "probability": _finite(self.probability),
            "predicted_index": best and best.index,
            "predicted_label": best and best.label,
            "predicted_score": best and _finite(best.score),
            "layer": self.layer,
            "method": self.method,
            "height": self._plane.shape[0],
            "width": self._plane.shape[1],
            "peak_x": self.peak[0],
            "peak_y": self.peak[1] if len(self.peak) > 1 else 0,
            **{f"region_{name}": value for name, value in region},
            "is_empty": self.is_empty,
            "has_nan": self.has_nan,
            "warning": "; ".join(self.warnings) or None,
            "picture_sha256": source.get("sha256"),
            "model": model.get("name"),
            "model_sha256": model.get("sha256"),
        }

    def save(self, path: str | os.PathLike[str], **drawing: Any) -> Path:
        """Write by suffix: `.png`, `.jpg` the overlay (options of `overlay`), `.npy` the values, `.json` the record.

        The file appears by atomic rename. Raises: OutputError (exit code 6).
        """
        suffix = Path(path).suffix.lower()
        buffer = io.BytesIO()
        if suffix == ".npy":
            np.save(buffer, self.values)
        elif suffix == ".json":
            buffer.write(json.dumps(self.record(), indent=2, allow_nan=False).encode() + b"\n")
        elif suffix in (".png", ".jpg", ".jpeg", ".webp"):
            buffer.write(encoded(self.overlay(**drawing), suffix))
        else:
            raise OutputError(f"{path}: cannot write a `{suffix}` file", "use .png, .jpg, .webp, .npy or .json")
        return write_atomically(path, buffer.getvalue())

    @property
    def name(self) -> str:
        """The class's label, else `class 7`."""
        return self.label if self.label is not None else f"class {self.class_index}"

    @property
    def strength(self) -> str:
        """The probability in per cent where there is one, else the score."""
        return f"{self.probability:.1%}" if self.probability is not None else f"score {self.score:.3f}"

    def __repr__(self) -> str:
        state = f", {self.warnings[0]}" if self.warnings else f", peak at {self.peak}"
        size = "x".join(map(str, reversed(self.values.shape)))
        return f"<Explanation {self.name!r} {self.strength}: {self.method} at {self.layer!r}, {size}{state}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows: the overlay, or the map alone where there is no picture, above its caption."""
        image = self.overlay() if self.picture is not None else self._map_alone()
        image.thumbnail((SHOWN, SHOWN))
        png, jpeg = (base64.b64encode(encoded(image, suffix)).decode() for suffix in (".png", ".jpg"))
        caption = f"<b>{escape(self.name)}</b> {self.strength}: {escape(self.method)} at {escape(self.layer)}"
        warned = "".join(f"<br>\N{WARNING SIGN} {escape(w)}" for w in self.warnings)
        figure = (
            f'<figure style="margin:0"><img alt="{escape(repr(self))}" width="{image.width}" height="{image.height}"'
            f' src="data:image/jpeg;base64,{jpeg}"><figcaption>{caption}{warned}</figcaption></figure>'
        )
        return {"text/plain": repr(self), "text/html": figure, "image/png": png}

    def _map_alone(self) -> Image.Image:
        plane = self._plane
        if plane.shape[0] == 1:
            plane = np.repeat(plane, max(1, plane.shape[1] // 8), axis=0)
        black, whole = np.zeros((*plane.shape, 3), np.uint8), (0, 0, plane.shape[1], plane.shape[0])
        region = self.region if self.values.ndim == 2 else whole
        return replace(self, values=plane, picture=Picture(black, "<tensor>", None), region=region).overlay(opacity=1.0)

    @property
    def _plane(self) -> npt.NDArray[np.float32]:
        """What can be drawn: (H, W), a signal as one row, of a volume the slice with the highest value."""
        return self.values[self.peak[2]] if self.values.ndim == 3 else np.atleast_2d(self.values)


@dataclass(frozen=True)
class BadPicture:
    """What a stream of explanations holds in the place of a picture that cannot be read."""

    source: str
    error: PictureError

    def record(self, flat: bool = False) -> dict[str, Any]:
        """Its source and what is wrong with it; the keys stand in the rows of explanations too."""
        return {"source": self.source, "error": self.error.message}


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
