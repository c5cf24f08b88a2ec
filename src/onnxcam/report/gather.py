"""From the records of audits to what the page shows: one entry per picture, small images, means, totals."""

import base64
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcam.audit.records import RECORDS, Record, read_records, read_run
from onnxcam.errors import PictureError, UsageError
from onnxcam.picture import load_picture
from onnxcam.render import COLORMAPS, FRAMES, clipped, colormap
from onnxcam.targets import class_number

Floats = npt.NDArray[np.float32]

CHUNK = 32
"""Pictures per block of images, which the page parses at once."""
MAP_SIDE = 48
"""Longest side of an embedded map that comes from a coarser grid; the page enlarges it bilinearly."""
MEAN_SIDE = 96
EMBEDDED = 5000
"""Most pictures that are embedded by default."""
PAIRS = 60
"""Kinds of mistakes that get a mean map, the most frequent."""
# Longest side of an embedded picture, by how many there are: the file stays below some 30 MB.
_SIDES = ((100, 512), (500, 320), (2000, 224))
_SMALLEST = 160
# What Pillow and NumPy raise on files that are not what they were.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Run:
    """One audit: its folder, its header, its records by name."""

    folder: Path
    header: Record
    records: Mapping[str, Record]

    @property
    def model(self) -> Mapping[str, Any]:
        return dict(self.header["provenance"].get("model") or {})

    @property
    def detects(self) -> bool:
        """Whether it is of a detector: its records hold boxes."""
        return "detector" in self.header["provenance"]

    @property
    def good(self) -> list[Record]:
        return [r for r in self.records.values() if r["status"] == "ok"]

    def explained(self, name: str) -> Record | None:
        """The record of a picture that was explained."""
        record = self.records.get(name)
        return record if record is not None and record["status"] == "ok" else None


@dataclass
class Mean:
    """Sums of maps and pictures, each stretched to a square."""

    map: Floats = field(default_factory=lambda: np.zeros((MAP_SIDE, MAP_SIDE), np.float32))
    picture: Floats = field(default_factory=lambda: np.zeros((MEAN_SIDE, MEAN_SIDE, 3), np.float32))
    maps: int = 0
    pictures: int = 0

    @property
    def top(self) -> float:
        return float(self.map.max()) / self.maps if self.maps else 0.0

    def to_json(self, top: float) -> dict[str, str | None]:
        """top: the mean that gets the highest colour."""
        return {
            "map": _webp(_bytes(self.map / (self.maps * (top or 1.0))), lossless=True) if self.maps else None,
            "picture": _webp((self.picture / self.pictures).astype(np.uint8)) if self.pictures else None,
        }


@dataclass(frozen=True)
class Seen:
    """What was read of one picture's files. layers: per run, what lies over the picture. states: what is amiss."""

    picture: str | None
    layers: list[dict[str, str] | None]
    square: Floats | None
    maps: list[Floats | None]
    states: set[str]


@dataclass(frozen=True)
class Gathered:
    """What the page shows: `report` and, per block of pictures, their images; all plain JSON values."""

    report: dict[str, Any]
    images: list[list[Any]]

    @property
    def notices(self) -> tuple[str, ...]:
        """What the page says at its top that it cannot show."""
        return tuple(self.report["notices"])


def gather(
    folders: Sequence[str | os.PathLike[str]],
    *,
    evaluation: Mapping[str, Any] | None = None,
    title: str | None = None,
    side: int | None = None,
    embed: int = EMBEDDED,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gathered:
    """Read audits of the same pictures, the first gives their order; several differ in method, layer or model.

    evaluation: what `onnxcam evaluate --json` printed. side: longest side of the embedded pictures in pixels; default
    by their number. embed: how many pictures are embedded; beyond that the mistakes and the flagged first.

    Raises: UsageError where a folder holds no audit, or the audits know different classes; OutputError for damage.
    """
    runs = [_read(Path(folder)) for folder in folders]
    _check_comparable(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.records))
    embedded = _embedded(names, runs, embed)
    if side is None:
        side = next((s for most, s in _SIDES if len(embedded) <= most), _SMALLEST)
    means = [_Means.of(run) for run in runs]
    images: list[list[Any]] = []
    states: Counter[str] = Counter()
    coloured = False
    for index, seen in enumerate(_seen(names, runs, embedded, side)):
        if index % CHUNK == 0:
            images.append([])
        images[-1].append([seen.picture, seen.layers] if index in embedded else None)
        states.update(seen.states)
        coloured |= any(layer is not None and "map" in layer for layer in seen.layers)
        for run, mean, values in zip(runs, means, seen.maps, strict=True):
            mean.add(run.explained(names[index]), values, seen.square)
        progress(index + 1, len(names))
    first = runs[0]
    settings = first.header["settings"]
    known = first.detects or any(r.get("probability") is not None for run in runs for r in run.records.values())
    report = {
        "title": title or " and ".join(dict.fromkeys(str(run.model.get("name", "model")) for run in runs)),
        "subtitle": _subtitle(runs),
        "notices": _notices(runs, states, len(names) - len(embedded), coloured),
        "score": "probability" if known else "score",
        "frames": FRAMES if first.detects else None,
        "classes": _classes(runs),
        "variants": _variants(runs),
        "pictures": [_picture(name, runs) for name in names],
        "means": [mean.to_json() for mean in means],
        "localisation": _localisation(runs),
        "evaluation": None if evaluation is None else {k: v for k, v in evaluation.items() if k != "maps"},
        "provenance": _provenance(runs, side, len(embedded)),
        "palettes": {name: base64.b64encode(colormap(name).tobytes()).decode() for name in COLORMAPS},
        "palette": settings.get("colormap") if settings.get("colormap") in COLORMAPS else "jet",
        "opacity": round(100 * float(settings.get("opacity") or 0.5)) if coloured else 100,
        "coloured": coloured,
        "chunk": CHUNK,
    }
    return Gathered(report, images)


def _read(folder: Path) -> Run:
    header = read_run(folder)
    records = {record["name"]: record for record in read_records(folder)}
    if not records:
        raise UsageError(f"{folder} holds no record yet", "let `onnxcam explain` finish its first pictures")
    return Run(folder, header, records)


def _check_comparable(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if (run.header["classes"], run.header["labels"]) != (first.header["classes"], first.header["labels"]):
            raise UsageError(
                f"{run.folder} and {first.folder} are of models with different classes", "make a report of each"
            )
        if run.detects is not first.detects:
            raise UsageError(f"of {run.folder} and {first.folder} one is of a detector", "make a report of each")
        if not run.records.keys() & first.records.keys():
            raise UsageError(f"{run.folder} and {first.folder} have no picture in common", "make a report of each")


def _embedded(names: Sequence[str], runs: Sequence[Run], most: int) -> set[int]:
    """Positions of the pictures to embed: all, or those that need looking at, then every so many of the others."""
    if len(names) <= most:
        return set(range(len(names)))

    def matters(name: str) -> bool:
        found = [r for run in runs if (r := run.explained(name)) is not None]
        return any(r["correct"] is False or r["warnings"] or _pointing(r) is False for r in found)

    chosen = [i for i, name in enumerate(names) if matters(name)]
    if len(chosen) >= most:
        return {chosen[i * len(chosen) // most] for i in range(most)}
    others = sorted(set(range(len(names))) - set(chosen))
    wanted = most - len(chosen)
    return {*chosen, *(others[i * len(others) // wanted] for i in range(wanted))}


def _seen(names: Sequence[str], runs: Sequence[Run], embedded: set[int], side: int) -> Iterator[Seen]:
    """The files of every picture, in order, read by a few threads, a bounded number ahead."""
    step = 256
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), step):
            part = range(start, min(start + step, len(names)))
            yield from pool.map(lambda i: _look(names[i], runs, side if i in embedded else None), part)


def _look(name: str, runs: Sequence[Run], side: int | None) -> Seen:
    found = [(run, record) for run in runs if (record := run.explained(name)) is not None]
    if not found:
        return Seen(None, [None] * len(runs), None, [None] * len(runs), {"error"})
    states: set[str] = set()
    picture = _original(*found[0], states) if side is not None else None
    maps: list[Floats | None] = []
    layers: list[dict[str, str] | None] = []
    for run in runs:
        record = run.explained(name)
        values = None if record is None else _values(run, record, states)
        maps.append(None if values is None else _square(values))
        layer = None
        if record is not None and side is not None and picture is not None and not _found_nothing(record):
            layer = _layer(run, record, values, side, states)
        layers.append(layer)
    if side is None:
        return Seen(None, layers, None, maps, states)
    if picture is None:
        drawn = next((p for run, record in found if (p := _overlay(run, record, states)) is not None), None)
        return Seen(None if drawn is None else _small(drawn, side), layers, None, maps, states)
    square = np.asarray(picture.resize((MEAN_SIDE, MEAN_SIDE), Image.Resampling.BOX)).astype(np.float32)
    return Seen(_small(picture, side), layers, square, maps, states)


def _found_nothing(record: Record) -> bool:
    """Whether a detector found nothing to explain: the picture is shown as it is."""
    return "detected" in record and bool(record.get("is_empty")) and not record["warnings"]


def _original(run: Run, record: Record, states: set[str]) -> Image.Image | None:
    try:
        picture = load_picture(run.folder / record["picture"])
    except PictureError:
        states.add("missing")
        return None
    if record["sha256"] is not None and picture.sha256 != record["sha256"]:
        states.add("changed")
        return None
    return Image.fromarray(picture.rgb)


def _values(run: Run, record: Record, states: set[str]) -> Floats | None:
    """The map (H, W) in [0, 1] as its overlay would show it, or None where no values were kept."""
    path = _inside(run, record, "values")
    if path is None or record["has_nan"]:
        return None
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).astype(np.float32)
        else:
            with Image.open(path) as image:
                values = np.asarray(image).astype(np.float32) / np.float32(65535)
        if list(values.shape) != record["size"]:
            raise ValueError("of another size")
    except _DAMAGE:
        states.add("damaged")
        return None
    if record["normalize"] == "none":
        values = values / max(float(values.max()), float(np.finfo(np.float32).tiny))
    x0, y0, x1, y1 = record["region"]
    return np.clip(clipped(values, (x0, y0, x1, y1), record["clip"]), 0, 1).astype(np.float32)


def _overlay(run: Run, record: Record, states: set[str]) -> Image.Image | None:
    path = _inside(run, record, "overlay")
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except _DAMAGE:
        states.add("damaged")
        return None


def _inside(run: Run, record: Record, kind: str) -> Path | None:
    """The file of a record, where it is there and lies in the audit's folder."""
    relative = (record.get("files") or {}).get(kind)
    if relative is None:
        return None
    path = run.folder / relative
    within = path.resolve().is_relative_to(run.folder.resolve())
    return path if within and path.is_file() else None


def _layer(run: Run, record: Record, values: Floats | None, side: int, states: set[str]) -> dict[str, str] | None:
    if values is None:
        drawn = _overlay(run, record, states)
        return None if drawn is None else {"overlay": _small(drawn, side)}
    x0, y0, x1, y1 = record["region"]
    fine = max(max(grid) for grid in record["grids"]) > MAP_SIDE
    return {"map": _webp(_bytes(_shrunk(values[y0:y1, x0:x1], side if fine else MAP_SIDE)), lossless=True)}


def _shrunk(values: Floats, side: int) -> Floats:
    height, width = values.shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _square(values: Floats) -> Floats:
    return np.asarray(Image.fromarray(values).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BOX))


def _small(picture: Image.Image, side: int) -> str:
    image = picture.copy()
    image.thumbnail((side, side))
    return _webp(np.asarray(image))


def _bytes(values: Floats) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _webp(pixels: npt.NDArray[np.uint8], lossless: bool = False) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else 65)
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass
class _Means:
    """Mean maps of one run: of each explained class, and of the most frequent mistakes."""

    classes: dict[int | None, Mean]
    pairs: dict[tuple[int | None, int | None], Mean]

    @classmethod
    def of(cls, run: Run) -> "_Means":
        if run.detects:  # a map of several boxes is of no class
            return cls({}, {})
        mistakes = Counter((r["expected_index"], _predicted(r)) for r in run.good if r["correct"] is False)
        return cls(
            {r["class_index"]: Mean() for r in run.good}, {pair: Mean() for pair, _ in mistakes.most_common(PAIRS)}
        )

    def add(self, record: Record | None, values: Floats | None, picture: Floats | None) -> None:
        if record is None:
            return
        pair = (record["expected_index"], _predicted(record))
        for mean in (self.classes.get(record["class_index"]), self.pairs.get(pair)):
            if mean is None:
                continue
            if values is not None and not record["warnings"]:
                mean.map += values
                mean.maps += 1
            if picture is not None:
                mean.picture += picture
                mean.pictures += 1

    def to_json(self) -> dict[str, Any]:
        top = max((mean.top for mean in self.classes.values()), default=0.0)
        return {
            "top": top,
            "classes": {str(index): mean.to_json(top) for index, mean in self.classes.items() if index is not None},
            "pairs": {f"{expected},{found}": mean.to_json(1.0) for (expected, found), mean in self.pairs.items()},
        }


def _pointing(record: Record) -> bool | None:
    return (record["localisation"] or {}).get("pointing")


def _predicted(record: Record) -> int | None:
    return record["top"][0]["index"] if record["top"] else None


def _picture(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    first = next(run.records[name] for run in runs if name in run.records)
    entry = {"name": name, "path": first["picture"], "expected": None, "asked": None, "error": None}
    explained = [run.explained(name) for run in runs]
    good = next(filter(None, explained), None)
    if good is None:
        return {**entry, "error": first["error"]}
    height, width = good["size"]
    expected = _first("expected_index", explained)
    return {
        **entry,
        "expected": expected,
        "asked": _first("expected", explained) if expected is None else None,
        "sha256": good["sha256"],
        "size": [width, height],
        "results": [None if r is None else _result(r, run, expected) for r, run in zip(explained, runs, strict=True)],
    }


def _first(field: str, records: Sequence[Record | None]) -> Any:
    """What the first record that knows says: audits of the same pictures may have had different manifests."""
    return next((r[field] for r in records if r is not None and r[field] is not None), None)


def _result(record: Record, run: Run, expected: int | None) -> dict[str, Any]:
    found = {
        "explained": record["class_index"],
        "words": record["label"] if record["class_index"] is None else None,
        "predicted": (predicted := _predicted(record)),
        "right": None if expected is None or predicted is None else predicted == expected,
        "score": record["probability"] if record["probability"] is not None else record["score"],
        "top": [[c["index"], c["score"]] for c in record["top"]],
        "layer": record["layer"],
        "grids": record["grids"],
        "region": record["region"],
        "peak": record["peak"],
        "warnings": record["warnings"],
        "pointing": _pointing(record),
        "energy": (record["localisation"] or {}).get("energy"),
    }
    return found | (_boxes(record, run, expected) if run.detects else {})


def _boxes(record: Record, run: Run, expected: int | None) -> dict[str, Any]:
    """What differs where boxes are found, and classes of the picture are not: `boxes` with [class, score, edges, peak,
    whether it was explained]."""
    wanted = class_number(record["target"], tuple(run.header["labels"] or ()), run.header["classes"])
    boxes = [
        [b["class_index"], b["score"], b["xyxy"], b["peak"], wanted in (-1, b["class_index"])]
        for b in record.get("detected", [])
    ]
    return {
        "explained": None,
        "predicted": None,
        "top": [],
        "right": None if expected is None else any(box[0] == expected for box in boxes),
        "score": max((box[1] for box in boxes if box[4]), default=None),
        "grids": [list(grid) for grid in dict.fromkeys(map(tuple, record["grids"]))],
        "boxes": boxes,
    }


def _classes(runs: Sequence[Run]) -> dict[str, str]:
    """Names of the classes that occur."""
    labels = runs[0].header["labels"]
    if not labels:
        return {}
    used = {
        index
        for run in runs
        for r in run.good
        for index in (r["class_index"], r["expected_index"], *_named(r))
        if index is not None
    }
    return {str(index): labels[index] for index in sorted(used) if index < len(labels)}


def _named(record: Record) -> list[int]:
    """Classes of the highest scores, and of boxes."""
    return [c["index"] for c in record["top"]] + [b["class_index"] for b in record.get("detected", ())]


def _variants(runs: Sequence[Run]) -> list[dict[str, str]]:
    named = [(_method(run), " + ".join(_layers(run))) for run in runs]
    several = len({run.model.get("sha256") for run in runs}) > 1
    result = []
    for run, (method, layer) in zip(runs, named, strict=True):
        parts = [str(run.model.get("name"))] if several else []
        parts += [method, layer]
        if named.count((method, layer)) > 1:
            parts.append(run.folder.name)
        result.append({"method": method, "layer": layer, "name": ", ".join(parts)})
    return result


def _method(run: Run) -> str:
    return str(run.header["provenance"].get("method", "unknown"))


def _layers(run: Run) -> list[str]:
    layer = run.header["provenance"].get("layer")
    return [str(name) for name in layer] if isinstance(layer, list) else [str(layer)]


def _subtitle(runs: Sequence[Run]) -> str:
    first = runs[0]
    how = f"{_method(first)} at {' + '.join(_layers(first))}"
    if len(runs) > 1:
        methods = ", ".join(dict.fromkeys(_method(run) for run in runs))
        how = f"{len(runs)} runs of one set of pictures, by {methods}"
    created = str(first.header.get("created", ""))[:10]
    return f"{how}, {created}" if created else how


_AMISS = {
    "missing": "{} pictures are no longer where the run found them: they are shown as the run drew them, if it did.",
    "changed": "{} pictures have changed since the run: they are shown as the run drew them, if it did.",
    "damaged": "Of {} pictures a file in the output folder is damaged and not shown.",
}


def _notices(runs: Sequence[Run], states: Counter[str], left_out: int, coloured: bool) -> list[str]:
    lines = [text.format(states[state]) for state, text in _AMISS.items() if states[state]]
    if left_out:
        lines.append(f"{left_out} pictures are listed without an image, to keep this file small.")
    if not coloured:
        means = "" if runs[0].detects else ", and there are no mean maps"
        lines.append(
            f"No values were kept: maps are shown as they were drawn{means}. "
            "`onnxcam explain ... --values png16` keeps them."
        )
    asked = {r["name"]: r["expected"] for run in runs for r in run.good if r["expected"] is not None}
    known = {r["name"] for run in runs for r in run.good if r["expected_index"] is not None}
    absent = [f"`{expected}`" for name, expected in asked.items() if name not in known]
    if absent:
        named = list(dict.fromkeys(absent))
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        lines.append(
            f"Pictures whose expected class the model does not have ({', '.join(named[:3])}{more}): {len(absent)}. "
            "They are neither right nor wrong."
        )
    first = runs[0]
    for run in runs[1:]:
        others = {r["name"]: r["sha256"] for r in run.good}
        changed = sum(others.get(r["name"], r["sha256"]) != r["sha256"] for r in first.good)
        if changed:
            lines.append(f"{changed} pictures of {run.folder.name} are not the same files as in {first.folder.name}.")
    return lines


def _localisation(runs: Sequence[Run]) -> list[dict[str, Any]] | None:
    rows = []
    for run in runs:
        found = [r["localisation"] for r in run.good if r["localisation"]]
        hits = [entry["pointing"] for entry in found if entry["pointing"] is not None]
        energy = [entry["energy"] for entry in found if entry["energy"] is not None]
        rows.append(
            {
                "maps": len(found),
                "pointing": sum(hits) / len(hits) if hits else None,
                "energy": sum(energy) / len(energy) if energy else None,
            }
        )
    return rows if any(row["maps"] for row in rows) else None


def _provenance(runs: Sequence[Run], side: int, embedded: int) -> list[tuple[str, Any]]:
    from importlib.metadata import version

    sections: list[tuple[str, Any]] = []
    for run in runs:
        about = {k: v for k, v in run.header.items() if k not in ("provenance", "labels")}
        records = {
            "folder": run.folder.name,
            "records": len(run.records),
            "sha256 of records.jsonl": hashlib.sha256((run.folder / RECORDS).read_bytes()).hexdigest(),
        }
        name = "Run" if len(runs) == 1 else f"Run {run.folder.name}"
        sections += [(name, {**records, **about}), (f"{name}: how every map was made", run.header["provenance"])]
    page = {
        "onnxcam": version("onnxcam"),
        "embedded pictures": f"{embedded}, longest side {side} pixels, WebP of quality 65",
        "embedded maps": f"8 bits, longest side {MAP_SIDE} pixels, of grids finer than that {side}; without loss",
    }
    return [*sections, ("This page", page)]
