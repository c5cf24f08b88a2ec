"""What an audit keeps: `run.json`, how every picture was explained, and `records.jsonl`, a line per picture."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxcam.audit.form import is_header, is_record
from onnxcam.errors import OnnxCamError, OutputError, UsageError
from onnxcam.explainer import Prepared
from onnxcam.explanation import Explanation
from onnxcam.jsontext import parsed_json
from onnxcam.metrics.localisation import boxes_mask, energy_pointing_game, pointing_game
from onnxcam.targets import class_number

FORMAT = "onnxcam audit 1"
RUN = "run.json"
RECORDS = "records.jsonl"

Box = tuple[float, float, float, float]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A picture to explain. name: its own in the run, relative, `/` between folders; its files are named after it.

    path: to open it by. target: the class to explain, None for the predicted one. expected: what is in the picture,
    a class index or a label, where it is known. boxes: of the objects, (x0, y0, x1, y1), end-exclusive pixels of the
    upright picture.
    """

    name: str
    path: str
    target: str | int | None = None
    expected: str | int | None = None
    boxes: tuple[Box, ...] | None = None

    def asked(self, folder: str | os.PathLike[str]) -> Record:
        """The part of its record that is known before: what was asked. folder: the record's."""
        return {
            "name": self.name,
            "picture": _relative(self.path, folder),
            "target": self.target,
            "expected": self.expected,
            "boxes": None if self.boxes is None else [list(box) for box in self.boxes],
        }


class Explains(Protocol):
    """Who explains the pictures of an audit: an `Explainer`, a `Detector`. Called from many threads."""

    @property
    def classes(self) -> int:
        """Number of classes C of the model."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Their names."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What all maps have in common, as plain JSON values."""

    @property
    def check(self) -> Callable[..., None]:
        """check(target, **asked) raises UsageError for what no picture can be asked."""

    @property
    def prepare(self) -> Callable[..., Prepared]:
        """prepare(picture, target, **asked): a picture as a sample, and what it is asked."""

    @property
    def explain_prepared(self) -> Callable[[list[Prepared]], Sequence[Explanation]]:
        """explain_prepared(samples): an explanation of each."""


def explained_record(
    item: Item, explanation: Explanation, classes: int, folder: str | os.PathLike[str], files: Mapping[str, str | None]
) -> Record:
    """The record of a picture that was explained; docs/audit-a-folder.md says what each field means.

    classes: how many the model has. folder: the record's, which the picture's path is relative to. files: paths in it
    of what was written, by kind.
    """
    asked, kept = item.asked(folder), explanation.record()
    provenance = kept.pop("provenance")
    picture = provenance["picture"] or {}
    return {
        **asked,
        "status": "ok",
        "sha256": picture.get("sha256"),
        **{field: kept.pop(field) for field in ("class_index", "label", "score", "probability", "top")},
        "expected_index": (expected := _expected(item.expected, explanation.labels, classes)),
        "correct": None if expected is None else explanation.says(expected),
        **{field: value for field, value in kept.items() if field not in asked},
        "found": provenance.get("found", {}),
        "map": _statistics(explanation),
        "localisation": _localisation(explanation, item.boxes) if item.boxes else None,
        "files": dict(files),
    }


def failed_record(item: Item, error: OnnxCamError, folder: str | os.PathLike[str]) -> Record:
    """The record of a picture that could not be explained, and why."""
    said = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    return {**item.asked(folder), "status": "error", "error": said}


@lru_cache(10_000)
def _expected(expected: str | int | None, labels: tuple[str, ...] | None, classes: int) -> int | None:
    """The index of an expected class; None where none is expected, or the model has no such class."""
    try:
        index = class_number(expected, labels, classes)
    except UsageError:
        return None
    return None if index == -1 else index


def _relative(path: str, folder: str | os.PathLike[str]) -> str:
    """The path to a picture from where the folder really is: a link to the folder leads to it all the same."""
    parent, name = os.path.split(os.path.abspath(path))  # noqa: PTH100 - the picture itself may be a link
    picture = os.path.join(_real(parent), name)  # noqa: PTH118
    try:
        return Path(os.path.relpath(picture, _real(os.path.abspath(folder)))).as_posix()  # noqa: PTH100
    except ValueError:  # another drive
        return Path(picture).as_posix()


@lru_cache(1000)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _statistics(explanation: Explanation) -> Record:
    x0, y0, x1, y1 = explanation.region
    seen = explanation.values[y0:y1, x0:x1]
    raw, top = explanation.raw, seen.max()
    return {
        "mean": _number(seen.mean(dtype=np.float64)),
        "half": np.count_nonzero(seen >= 0.5 * top) / seen.size if top > 0 else 0.0,
        "raw_min": _number(raw.min()),
        "raw_max": _number(raw.max()),
    }


def _localisation(explanation: Explanation, boxes: Sequence[Box]) -> Record:
    values = explanation.values
    mask = boxes_mask(boxes, (values.shape[0], values.shape[1]))
    return {
        "pointing": None if explanation.is_empty or explanation.has_nan else bool(pointing_game(values, mask)),
        "energy": _number(energy_pointing_game(values, mask)),
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def line(record: Mapping[str, Any]) -> bytes:
    """A record as one line of JSON, ASCII; a name that is no Unicode survives as lone surrogates."""
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def run_header(explainer: Explains, settings: Mapping[str, Any]) -> Record:
    """The content of `run.json`. settings: what was asked of the output."""
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
        "classes": explainer.classes,
        "labels": list(explainer.labels) if explainer.labels else None,
        "provenance": explainer.provenance,
    }


def read_run(folder: str | os.PathLike[str]) -> Record:
    """The header of an audit: `settings` of the output, `classes`, `labels`, and the `provenance` of every map.

    Raises: UsageError where the folder holds no audit.
    """
    path = Path(folder) / RUN
    make = "`onnxcam explain MODEL PICTURES -o FOLDER` makes an audit"
    try:
        header = parsed_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if Path(folder).is_dir():
            raise UsageError(f"{folder} holds no audit: there is no `{RUN}` in it", make) from error
        if Path(folder).exists():
            raise UsageError(f"{folder} is a file, not the folder of an audit", f"name its folder; {make}") from error
        raise UsageError(f"{folder}: no such folder", f"check the path; {make}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "check the path and permissions") from error
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UsageError(f"{folder} holds no audit: `{RUN}` is not of the format `{FORMAT}`", make)
    if not is_header(header):
        raise UsageError(f"{path}: its fields are not those of an audit", "take the file as the run wrote it")
    return header


def read_records(folder: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of an audit, finished or not, one per picture, in the file's order; memory does not hold them.

    Of a picture that was tried again the last record counts, and a torn last line does not.

    Raises: UsageError where the folder holds no audit, OutputError where its records are damaged.
    """
    read_run(folder)
    index = RecordIndex(Path(folder) / RECORDS)
    for record in index.records():
        if not is_record(record):
            raise OutputError(
                f"{index.path}: the record of `{record['name']}` lacks fields, or has others",
                "delete its line to have the picture explained again",
            )
        yield record


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a record lies in the file, and what it answers."""

    offset: int
    size: int
    ok: bool
    asked: int


class RecordIndex:
    """Where the last record of every name lies in a file of records, in the order of the lines that count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.end = 0
        try:
            with path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    if not text.endswith(b"\n"):  # torn: the process was killed while it wrote this line
                        break
                    try:
                        self.add(parsed_json(text), len(text))
                    except (ValueError, KeyError, TypeError) as error:
                        raise OutputError(
                            f"{path}, line {number}: not a record",
                            "delete this line to have its picture explained again",
                        ) from error
        except FileNotFoundError:
            pass
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error

    def add(self, record: Mapping[str, Any], size: int) -> None:
        """Count the record of the next `size` bytes. Raises: KeyError where it is none."""
        name = record["name"]
        self.entries.pop(name, None)
        self.entries[name] = Entry(self.end, size, record["status"] == "ok", question(record))
        self.end += size

    def records(self) -> Iterator[Record]:
        """The records that count."""
        if not self.entries:
            return
        with self.path.open("rb") as file:
            for entry in self.entries.values():
                file.seek(entry.offset)
                yield parsed_json(file.read(entry.size))


def question(record: Mapping[str, Any]) -> int:
    """A number that tells records of one name apart that were asked different things."""
    return hash(json.dumps([record["picture"], record["target"], record["expected"], record["boxes"]]))
