"""Comparing explanations: methods, layers and classes on one picture; two models on one picture or on a folder."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcam.audit.sources import SUFFIXES, pictures_in
from onnxcam.errors import PictureError, UsageError
from onnxcam.explainer import Explainer, TargetLike
from onnxcam.explanation import BadPicture, ClassScore, Explanation
from onnxcam.graph.read import ModelSource
from onnxcam.methods import find_method
from onnxcam.metrics import rank_correlation
from onnxcam.picture import Picture, PictureLike, load_picture
from onnxcam.pipeline import Skipped, pipelined
from onnxcam.render import colormap
from onnxcam.sheet import Legend, Panel, Row, Scale, sheet

WORST = 5
STATISTICS = ("mean", "least", "q25", "median", "q75")
LIMITS = (*STATISTICS, *(f"pearson.{name}" for name in STATISTICS))

# Brewer's PuOr, told apart with any colour vision, and unlike the colours of the maps themselves.
PURPLE, ORANGE = (94, 60, 153), (230, 97, 1)
SPANS = (0.25, 0.5, 1.0)
"""Differences that are drawn in the full colours: the least that no difference exceeds."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One class of one picture, explained by two models; every map lies in the picture's coordinates.

    name: of the picture. unmatched: why b has no such class, in words; its own prediction is explained then.
    """

    name: str
    a: Explanation
    b: Explanation
    unmatched: str | None = None

    @cached_property
    def region(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1, the part of the picture that both models saw; the numbers are of this part."""
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = self.a.region, self.b.region
        return max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1)

    @cached_property
    def difference(self) -> npt.NDArray[np.float32]:
        """(H, W) values of b less those of a, in [-1, 1]; 0 outside the region."""
        x0, y0, x1, y1 = self.region
        whole = np.zeros_like(self.a.values)
        whole[y0:y1, x0:x1] = self.b.values[y0:y1, x0:x1] - self.a.values[y0:y1, x0:x1]
        return whole

    @cached_property
    def numbers(self) -> dict[str, float]:
        """`rank_correlation` (Spearman) and `pearson` in [-1, 1], and `mean_difference`, the mean of |b - a|.

        Equal maps have correlations of 1, also where they are constant; NaN where there is a `problem`.
        """
        x0, y0, x1, y1 = self.region
        a, b = (np.ascontiguousarray(e.values[y0:y1, x0:x1]) for e in (self.a, self.b))
        if self.problem is not None:
            return dict.fromkeys(("rank_correlation", "pearson", "mean_difference"), math.nan)
        same = np.array_equal(a, b)
        return {
            "rank_correlation": 1.0 if same else rank_correlation(a, b),
            "pearson": 1.0 if same else pearson(a, b),
            "mean_difference": float(np.abs(b - a).mean(dtype=np.float64)),
        }

    @cached_property
    def problem(self) -> str | None:
        """Why the maps cannot be compared, in words: of other classes, or one holds NaN, or one alone is constant."""
        if self.unmatched is not None:
            return self.unmatched
        x0, y0, x1, y1 = self.region
        if x0 >= x1 or y0 >= y1:
            return "the models see no common part of the picture"
        a, b = (e.values[y0:y1, x0:x1] for e in (self.a, self.b))
        flat = [bool(m.min() == m.max()) for m in (a, b)]
        for letter, e, constant in zip("ab", (self.a, self.b), flat, strict=True):
            if e.has_nan:
                return f"the map of {letter} holds NaN"
            if constant and not np.array_equal(a, b):
                return f"the map of {letter} is empty" if e.is_empty else f"the map of {letter} is constant"
        return None

    @property
    def changed(self) -> bool:
        """Whether the predicted class moved: by label where both models have labels, else by index."""
        return _moved(_predicted(self.a), _predicted(self.b))

    def row(self, colors: str = "jet", opacity: float = 0.5) -> Row:
        """What a sheet shows: the picture, both overlays, and the difference with its scale."""
        # Pillow's own font has no arrow.
        numbers = " · ".join(
            f"{name.replace('_', ' ').replace('pearson', 'Pearson')} {value:.3f}"
            for name, value in self.numbers.items()
        )
        first, second = _predicted(self.a), _predicted(self.b)
        moved = f"the class moved from {first.name} to {second.name}" if self.changed else "the same class is predicted"
        return Row(
            " · ".join((self.name, self.problem or numbers, moved)),
            [
                _picture(self.a),
                *(_explained(e, colors, opacity) for e in (self.a, self.b)),
                None if self.unmatched else self._difference_panel(),
            ],
        )

    def _difference_panel(self) -> Panel:
        picture = self.a.picture
        assert picture is not None
        x0, y0, x1, y1 = self.region
        gray = np.asarray(Image.fromarray(picture.rgb).convert("L"), np.float32)[..., None] / np.float32(
            2
        ) + np.float32(127)
        shown = np.nan_to_num(self.difference)
        # In three steps, so that pictures compare, and rounding noise is not drawn as if it were something.
        span = next((s for s in SPANS if np.abs(shown).max() <= s), SPANS[-1])
        colored = np.repeat(gray, 3, axis=2)
        colored[y0:y1, x0:x1] = _tinted(gray[y0:y1, x0:x1], shown[y0:y1, x0:x1, None] / np.float32(span))
        bar = _tinted(np.full((256, 1), 200.0, np.float32), np.linspace(-1, 1, 256, dtype=np.float32)[:, None])
        return Panel(
            Image.fromarray(np.rint(colored).astype(np.uint8)),
            ("purple: more in a; orange: more in b",),
            Scale(np.rint(bar).astype(np.uint8), f"-{span:g}", "0", f"+{span:g}"),
        )


def _tinted(gray: npt.NDArray[np.float32], strength: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Grey (..., 1) turned into purple for strength (..., 1) -1, into orange for 1."""
    color = np.where(strength < 0, np.array(PURPLE, np.float32), np.array(ORANGE, np.float32))
    share = np.minimum(np.abs(strength), np.float32(1))
    return np.asarray(gray * (1 - share) + color * share, np.float32)


def _picture(explanation: Explanation) -> Panel:
    assert explanation.picture is not None
    return Panel(Image.fromarray(explanation.picture.rgb))


def _explained(explanation: Explanation, colors: str, opacity: float) -> Panel:
    best = _predicted(explanation)
    predicted = f"predicted: {best.name} {_strength(best, explanation)}"
    explained = f"explained: {explanation.name} {explanation.strength}"
    lines = (explained,) if best.index == explanation.class_index else (explained, predicted)
    return Panel(explanation.overlay(colors, opacity), (*lines, *explanation.warnings))


def _predicted(explanation: Explanation) -> ClassScore:
    """The class that scores highest; what was explained, where the model has no classes."""
    return explanation.top[0] if explanation.top else ClassScore(-1, explanation.label, explanation.score)


def _strength(best: ClassScore, explanation: Explanation) -> str:
    return f"{best.score:.1%}" if explanation.probability is not None else f"score {best.score:.3f}"


def _moved(a: ClassScore, b: ClassScore) -> bool:
    return a.index != b.index if a.label is None or b.label is None else _plain(a.label) != _plain(b.label)


def pearson(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Pearson's correlation of two maps of one shape, in [-1, 1]; NaN for a constant map."""
    x, y = (m.ravel().astype(np.float64) - m.mean(dtype=np.float64) for m in (a, b))
    norms = math.sqrt((x @ x) * (y @ y))
    return float(x @ y / norms) if norms > 0 else math.nan


def explained_pair(a: Explainer, b: Explainer, picture: PictureLike, target: TargetLike = None) -> Pair:
    """One picture explained by two models for one class: the target, else the one that `a` predicts.

    Models with different labels are asked for the class of one label; without labels, for that of one index. A target
    that is no class is asked of both as it is.

    Raises: PictureError; UsageError where `b` has no such class.
    """
    loaded = load_picture(picture)
    first = a(loaded, target)
    name = Path(loaded.source).name if loaded.sha256 else loaded.source
    try:
        return Pair(name, first, b(loaded, target if first.class_index < 0 else _class_of(b, first)))
    except _UnmatchedError as error:
        if target is not None:
            raise
        return Pair(name, first, b(loaded), error.message)


def _plain(label: str) -> str:
    """A label as it is compared: without WordNet's number in front of it, in small letters."""
    return re.sub(r"^n\d{8}\s+", "", label).casefold()


class _UnmatchedError(UsageError):
    """What a predicts, or was asked for, is no class of b."""


def _class_of(b: Explainer, explained: Explanation) -> int:
    """The number that the class that `a` explained has in `b`."""
    index, labels = explained.class_index, explained.labels
    if labels is None or b.labels is None:
        if len(explained.scores) == b.classes:
            return index
        raise _UnmatchedError(
            f"a has {len(explained.scores)} classes and b has {b.classes}: class {index} cannot be told in b",
            "give both models their labels",
        )
    if labels == b.labels:
        return index
    found = [i for i, label in enumerate(b.labels) if _plain(label) == _plain(labels[index])]
    if len(found) == 1:
        return found[0]
    what = "is no class of b" if not found else f"is {len(found)} classes of b"
    raise _UnmatchedError(
        f"class `{labels[index]}` of a {what}", "ask for a class that both models have, or align the labels"
    )


@dataclass(frozen=True)
class Compared:
    """What two models make of one picture; numbers as in `Pair.numbers`.

    explained, predicted: of a and of b, with their scores. problem: why the maps could not be compared, in words.
    """

    name: str
    source: PictureLike = field(repr=False, compare=False)
    numbers: Mapping[str, float]
    explained: tuple[ClassScore, ClassScore | None]
    predicted: tuple[ClassScore, ClassScore]
    problem: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the predicted class moved."""
        return _moved(*self.predicted)

    @property
    def rank_correlation(self) -> float:
        return self.numbers["rank_correlation"]

    @property
    def text(self) -> str:
        """The class predicted, or from which to which it moved; and the problem, if any."""
        a, b = self.predicted
        moved = f"{a.name} → {b.name}" if self.changed else a.name
        return moved if self.problem is None else f"{moved} ({self.problem})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not a number is None."""
        return {
            "picture": self.name,
            **{name: _number(value) for name, value in self.numbers.items()},
            "problem": self.problem,
            "changed": self.changed,
            "explained": {side: _class_json(c) for side, c in zip("ab", self.explained, strict=True)},
            "predicted": {side: _class_json(c) for side, c in zip("ab", self.predicted, strict=True)},
        }


def _compared(source: PictureLike, pair: Pair) -> Compared:
    first, second = (
        ClassScore(e.class_index, e.label, e.score if e.probability is None else e.probability)
        for e in (pair.a, pair.b)
    )
    return Compared(
        name=pair.name,
        source=source,
        numbers=pair.numbers,
        explained=(first, None if pair.unmatched else second),
        predicted=(_predicted(pair.a), _predicted(pair.b)),
        problem=pair.problem,
    )


def _class_json(c: ClassScore | None) -> dict[str, Any] | None:
    return None if c is None else {"index": c.index, "label": c.label, "score": _number(c.score)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found; `pictures` in the order given.

    a, b: the explainers. unreadable: the pictures that could not be read.
    """

    a: Explainer
    b: Explainer
    target: TargetLike
    pictures: tuple[Compared, ...]
    unreadable: tuple[BadPicture, ...]

    @cached_property
    def ranked(self) -> tuple[Compared, ...]:
        """The pictures, those that could not be compared first, then by rank correlation, the lowest first."""
        return tuple(sorted(self.pictures, key=lambda p: (p.problem is None, -2 if p.problem else p.rank_correlation)))

    @property
    def changed(self) -> tuple[Compared, ...]:
        """The pictures whose predicted class moved."""
        return tuple(p for p in self.pictures if p.changed)

    @property
    def incomparable(self) -> tuple[Compared, ...]:
        """The pictures that have no correlations, since a map is empty or NaN."""
        return tuple(p for p in self.pictures if p.problem is not None)

    @property
    def statistics(self) -> dict[str, float]:
        """STATISTICS of the rank correlation."""
        return self.statistics_of("rank_correlation")

    def statistics_of(self, number: str) -> dict[str, float]:
        """STATISTICS of one of `Pair.numbers`, of the pictures that could be compared; NaN where there is none."""
        values = [p.numbers[number] for p in self.pictures if p.problem is None]
        if not values:
            return dict.fromkeys(STATISTICS, math.nan)
        least, q25, median, q75 = (float(v) for v in np.percentile(values, (0, 25, 50, 75)))
        return {"mean": fmean(values), "least": least, "q25": q25, "median": median, "q75": q75}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user, in both models once."""
        a, b = (explainer.notes for explainer in (self.a, self.b))
        own = [f"{side}: {n}" for side, notes, others in (("a", a, b), ("b", b, a)) for n in notes if n not in others]
        return (*(n for n in a if n in b), *own)

    def table(self, rows: int = WORST) -> tuple[list[str], list[list[str]]]:
        """Columns and rows as text, of the worst pictures and as many whose class moved."""
        worst = self.ranked[:rows]
        moved = [p for p in self.ranked if p.changed and not any(p is w for w in worst)]
        cells = [
            [p.name, *(f"{value:.3f}" if math.isfinite(value) else "-" for value in p.numbers.values()), p.text]
            for p in (*worst, *moved[:rows])
        ]
        return ["worst, and moved", "rank correlation", "Pearson", "mean difference", "predicted"], cells

    @property
    def text(self) -> str:
        """The summary, in one line."""
        s, n, changed = self.statistics, len(self.pictures), len(self.changed)
        if n == 1:
            return f"1 picture: {'the class moved' if changed else 'the same class is predicted'}"
        if len(self.incomparable) == n:
            return f"{n} pictures: none can be compared; the class moved on {changed}"
        apart = f"; {len(self.incomparable)} cannot be compared" if self.incomparable else ""
        quartiles = " ".join(f"{s[name]:.3f}" for name in ("q25", "median", "q75"))
        correlation = f"rank correlation mean {s['mean']:.3f}, least {s['least']:.3f}, quartiles {quartiles}"
        p = self.statistics_of("pearson")
        linear = f"Pearson mean {p['mean']:.3f}, least {p['least']:.3f}"
        return f"{n} pictures: {correlation}; {linear}{apart}; the class moved on {changed}"

    def failures(self, limits: Mapping[str, float]) -> list[str]:
        """What is below its limit, in words, and any picture that could not be compared.

        limits: by LIMITS, which are STATISTICS of the rank correlation, and with `pearson.` before them of Pearson's.
        """
        found = self.statistics | {f"pearson.{name}": v for name, v in self.statistics_of("pearson").items()}
        lines = [f"{name} {found[name]:.4f} is below {low:g}" for name, low in limits.items() if found[name] < low]
        if limits and (bad := self.incomparable):
            lines.append(f"{len(bad)} cannot be compared (`{bad[0].name}`: {bad[0].problem})")
        return lines

    def sheet(
        self, rows: int = WORST, colors: str = "jet", opacity: float = 0.5, font: str | None = None
    ) -> Image.Image:
        """The worst pictures, explained again: picture, both overlays, difference map. font: a file, see `sheet`."""
        found = self.ranked[:rows]
        if not found:
            raise UsageError("there is no picture to draw", "give pictures that can be read")
        pairs = [explained_pair(self.a, self.b, p.source, self.target) for p in found]
        a, b = (e.provenance["model"]["name"] for e in (self.a, self.b))
        columns = ("picture", f"a: {a}", f"b: {b}", "difference b - a")
        return sheet(columns, [p.row(colors, opacity) for p in pairs], _legend(colors, (p.a for p in pairs)), font)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not a number is None."""
        return {
            "a": self.a.provenance,
            "b": self.b.provenance,
            "target": "predicted by a" if self.target is None else self.target,
            "summary": {
                "pictures": len(self.pictures),
                "unreadable": len(self.unreadable),
                "incomparable": len(self.incomparable),
                "changed": len(self.changed),
                **{
                    number: {name: _number(value) for name, value in self.statistics_of(number).items()}
                    for number in ("rank_correlation", "pearson")
                },
                "worst": [p.name for p in self.ranked[:WORST]],
                "changed_pictures": [p.name for p in self.changed],
            },
            "pictures": [p.to_json() for p in self.pictures],
            "unreadable": [bad.record() for bad in self.unreadable],
        }


def compare(
    a: ModelSource | Explainer,
    b: ModelSource | Explainer,
    pictures: PictureLike | Iterable[PictureLike],
    target: TargetLike = None,
    *,
    options_b: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Comparison:
    """How far two models' explanations are apart: the same class of the same picture, map against map.

    a, b: models, or Explainers of any layer, grid, preprocessing and labels; maps meet in the picture's coordinates.
    pictures: a folder, a picture, or any number of them. target: default, for each picture, the class that `a`
    predicts; in `b` the class of the same label, without labels of the same index. options: as for Explainer, of both
    models; options_b: what differs in `b`. Layers named in `options` must be in both.

    Pictures that cannot be read are listed in the result.

    Raises: UsageError, also where `b` lacks the target; the designed errors of Explainer.
    """
    first = a if isinstance(a, Explainer) else Explainer(a, **options)
    second = b if isinstance(b, Explainer) else Explainer(b, **{**options, **(options_b or {})})
    sources = _sources(pictures)

    def run(batch: list[Picture]) -> list[Pair | BadPicture]:
        return [explained_pair(first, second, picture, target) for picture in batch]

    def finish(source: PictureLike, result: Pair | BadPicture) -> Compared | BadPicture:
        return _compared(source, result) if isinstance(result, Pair) else result

    found: list[Compared] = []
    unreadable: list[BadPicture] = []
    for done, result in enumerate(pipelined(sources, _decoded, run, finish, batch_size=1)):
        if progress is not None:
            progress(done + 1, len(sources))
        if isinstance(result, Compared):
            found.append(result)
        else:
            unreadable.append(result)
    if not found:
        error = unreadable[0].error
        raise PictureError(f"none of the {len(sources)} pictures can be read: {error.message}", error.hint)
    return Comparison(first, second, target, tuple(found), tuple(unreadable))


def _sources(pictures: PictureLike | Iterable[PictureLike]) -> list[PictureLike]:
    if isinstance(pictures, str | os.PathLike) and Path(pictures).is_dir():
        if not (found := list(pictures_in(pictures))):
            raise UsageError(f"{pictures} holds no pictures", f"they end in {', '.join(sorted(SUFFIXES))}")
        return list(found)
    if isinstance(pictures, list | tuple | Iterator):
        return list(pictures)
    return [pictures]  # type: ignore[list-item]


def _decoded(source: PictureLike) -> Picture | Skipped[Pair | BadPicture]:
    try:
        return load_picture(source)
    except PictureError as error:
        return Skipped(BadPicture(os.fspath(source) if isinstance(source, str | os.PathLike) else "<array>", error))


@dataclass(frozen=True, eq=False)
class Grid:
    """One picture by methods, layers and classes. rows: per class and layer, an explanation by method."""

    methods: tuple[str, ...]
    rows: tuple[tuple[Explanation, ...], ...]
    notes: tuple[str, ...]

    def sheet(self, colors: str = "jet", opacity: float = 0.5, font: str | None = None) -> Image.Image:
        """A row per class and layer, a column per method. font: a file, see `sheet`."""
        picture = _picture(self.rows[0][0])
        rows = [
            Row(_heading(row), [picture, *(Panel(e.overlay(colors, opacity), e.warnings) for e in row)])
            for row in self.rows
        ]
        return sheet(("picture", *(_column(m) for m in self.methods)), rows, _legend(colors, self.rows[0]), font)

    def to_json(self) -> list[dict[str, Any]]:
        """The record of every explanation, row by row."""
        return [e.record() for row in self.rows for e in row]


def _legend(colors: str, shown: Iterable[Explanation]) -> Legend:
    clips = {e.clip for e in shown if e.clip < 100}
    but = "".join(f"; maps of single pixels to their {clip:g}th percentile" for clip in clips)
    return Legend(Scale(colormap(colors), "0", "", "highest"), f"each map from 0 to its own highest value{but}")


def _heading(row: Sequence[Explanation]) -> str:
    layers = dict.fromkeys((e.layer, e.raw.shape) for e in row if not find_method(e.method).at_input)
    where = "".join(f" · layer {name}, {h}x{w}" for name, (h, w) in layers)
    return f"{row[0].name}, {row[0].strength}{where}"


def _column(method: str) -> str:
    return f"{method} (of the input)" if find_method(method).at_input else method


def grid(
    model: ModelSource,
    picture: PictureLike,
    *,
    methods: Sequence[str] = ("gradcam",),
    layers: Sequence[str] = (),
    targets: int | Sequence[TargetLike] = (None,),
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Grid:
    """One picture explained by methods at layers for classes, to be seen side by side.

    layers: default the automatic one; methods that explain the input itself have none. targets: classes, or a number
    k for the k highest. options: as for Explainer. What lies before a layer runs once for all classes.

    Raises: the designed errors of Explainer.
    """
    if not methods:
        raise UsageError("there is no method", "name at least one")
    loaded = load_picture(picture)
    names = tuple(dict.fromkeys(find_method(name).name for name in methods))
    places: list[str | None] = list(dict.fromkeys(layers)) or [None]
    notes: dict[str, None] = {}
    found: dict[tuple[str, str | None], list[Explanation]] = {}
    wanted = [(m, layer) for m in names for layer in ([None] if find_method(m).at_input else places)]
    for done, (method, layer) in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted))
        explainer = Explainer(model, method=method, layer=layer, **options)
        notes |= dict.fromkeys(explainer.notes)
        found[method, layer] = explainer.explain_classes(loaded, targets)
    at = {m: [None] * len(places) if find_method(m).at_input else places for m in names}
    count = len(found[names[0], at[names[0]][0]])
    if not count:
        raise UsageError("there is no class", "name at least one, or none for the predicted one")
    rows = tuple(tuple(found[m, at[m][i]][c] for m in names) for c in range(count) for i in range(len(places)))
    return Grid(names, rows, tuple(notes))
