"""Which pictures: folders, files, patterns, a list on stdin, a manifest; every one an Item with a name of its own."""

import csv
import difflib
import glob
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onnxcam.audit.names import distinct, stable_name
from onnxcam.audit.records import Box, Item
from onnxcam.errors import UsageError
from onnxcam.jsontext import parsed_json

SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .jp2 .avif .tga .ico".split()
)
"""What a file in a folder must end in to be taken for a picture; a file that is named is tried whatever it ends in."""

FIELDS = ("picture", "target", "expected", "boxes")
CORNERS = ("x0", "y0", "x1", "y1")


class Sources:
    """Collects pictures in the order they are asked for; `items` as they will be explained.

    left_out: files in folders that do not end as pictures do. unused: fields of a manifest that mean nothing here.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.left_out: list[str] = []
        self.unused: tuple[str, ...] = ()
        self._taken: set[str] = set()

    @property
    def notes(self) -> list[str]:
        """What was not used, in words."""
        found = []
        if self.left_out:
            shown = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
            files = (
                "1 file does not end as a picture does and is"
                if len(self.left_out) == 1
                else (f"{len(self.left_out)} files do not end as pictures do and are")
            )
            found.append(f"{files} left out: {shown}")
        if self.unused:
            found.append(f"fields of the manifest that mean nothing here: {', '.join(self.unused[:10])}")
        return found

    def add(self, path: str, relative: str | None = None, **asked: Any) -> None:
        """A picture. relative: what it is named after; default the path."""
        name = distinct(stable_name(relative or path), json.dumps([path, *map(repr, asked.values())]), self._taken)
        self.items.append(Item(name, path, **asked))

    def add_inputs(self, inputs: Sequence[str], *, recursive: bool = False, without: Path | None = None) -> None:
        """Folders, files and glob patterns. Pictures of a folder are named from there, of several with its name.

        without: a folder that is not looked into, where the output goes.

        Raises: UsageError for a pattern that fits nothing or an input that is not there.
        """
        folders = [i for i in inputs if Path(i).is_dir()]
        for given in inputs:
            if given in folders:
                prefix = "" if len(inputs) == 1 else Path(given).resolve().name
                for path in pictures_in(given, recursive=recursive, without=without, left_out=self.left_out):
                    relative = Path(path).relative_to(given)
                    self.add(path, (Path(prefix) / relative).as_posix())
            elif Path(given).exists() or not glob.has_magic(given):
                self.add(given)
            else:
                matches = (Path(p) for p in glob.glob(given, recursive=True))  # noqa: PTH207 - may be absolute
                found = sorted(os.fspath(p) for p in matches if ".cam." not in p.name and not p.is_dir())
                if not found:
                    raise UsageError(f"no picture fits `{given}`", "check the pattern; `**` goes into folders")
                for path in found:
                    self.add(path)

    def add_list(self, data: bytes) -> None:
        """Paths, one per line, or apart by NUL (`find -print0`)."""
        for line in data.split(b"\0") if b"\0" in data else data.splitlines():
            if line.strip():
                self.add(os.fsdecode(line))

    def add_manifest(self, manifest: str | os.PathLike[str]) -> None:
        """A CSV with a header, or JSON lines: `picture` (relative to the manifest), `target`, `expected`, `boxes`.

        boxes: a list of [x0, y0, x1, y1], in a CSV as JSON; or one box in four columns x0, y0, x1, y1.

        Raises: UsageError that names the lines at fault.
        """
        path = Path(manifest)
        try:
            text = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UsageError(
                f"{path} cannot be read: {reason}", "give a manifest, CSV or JSON lines, in UTF-8"
            ) from error
        suffix = path.suffix.lower()
        if suffix not in (".csv", ".jsonl", ".ndjson"):
            raise UsageError(f"{path}: a manifest ends in .csv or .jsonl", "rename it for what it holds")
        rows = _csv_rows(text, path) if suffix == ".csv" else _json_rows(text)
        problems: list[str] = []
        unused: dict[str, None] = {}
        for number, row in rows:
            try:
                if not isinstance(row, dict):
                    raise ValueError(row if isinstance(row, str) else "not a JSON object")
                unused |= dict.fromkeys(str(k) for k in row if k not in (*FIELDS, *CORNERS))
                picture, asked = _asked(row)
            except ValueError as error:
                problems.append(f"line {number}: {error}")
                continue
            self.add(os.path.join(path.parent, picture), picture, **asked)  # noqa: PTH118 - a `..` of the user's stays
        if problems:
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise UsageError(
                f"{path}: {len(problems)} line{'' if len(problems) == 1 else 's'} cannot be used\n  "
                + "\n  ".join(problems[:5])
                + more,
                "docs/audit-a-folder.md says what a manifest holds",
            )
        self.unused = tuple(unused)


def pictures_in(
    folder: str | os.PathLike[str],
    *,
    recursive: bool = False,
    without: Path | None = None,
    left_out: list[str] | None = None,
) -> Iterator[str]:
    """Paths of the pictures in a folder, by name, files before folders; links are followed, no folder twice.

    What onnxcam wrote (`NAME.cam.png`) is no picture. left_out: extended by the other files.
    """
    seen = {_identity(folder)} | ({_identity(without)} if without is not None and without.is_dir() else set())
    waiting = [Path(folder)]
    while waiting:
        current = waiting.pop()
        inside: list[Path] = []
        try:
            paths = sorted(current.iterdir(), key=lambda path: path.name)
        except OSError as error:
            raise UsageError(
                f"{current}: the folder cannot be read: {error.strerror}", "check its permissions"
            ) from error
        for path in paths:
            if path.is_dir():
                if recursive and (identity := _identity(path)) not in seen:
                    seen.add(identity)
                    inside.append(path)
            elif ".cam." in path.name:
                continue
            elif path.suffix.lower() in SUFFIXES:
                yield os.fspath(path)
            elif left_out is not None:
                left_out.append(os.fspath(path))
        waiting.extend(reversed(inside))


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    found = Path(folder).stat()
    return found.st_dev, found.st_ino


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if "picture" not in columns:
            close = difflib.get_close_matches("picture", columns, 1, 0.4)
            near = f"; is it `{close[0]}`? name it `picture`" if close else ""
            raise UsageError(f"{path} has no column `picture`", f"its columns are {', '.join(columns) or 'none'}{near}")
        for row in reader:
            if None in row:
                yield reader.line_num, "more values than columns"
            else:
                yield reader.line_num, {k: v for k, v in row.items() if v not in (None, "")}
    except csv.Error as error:
        raise UsageError(
            f"{path}, near line {reader.line_num}: {error}", "write it as CSV with commas and a header"
        ) from error


def _json_rows(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, parsed_json(line)
            except ValueError as error:
                yield number, f"not JSON: {error}"


def _asked(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The picture of a row and what is asked of it. Raises: ValueError that says what is wrong."""
    picture = row.get("picture")
    if not isinstance(picture, str) or not picture.strip() or "\0" in picture:
        raise ValueError("`picture` is no path")
    asked: dict[str, Any] = {}
    for field in ("target", "expected"):
        value = row.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise ValueError(f"`{field}` is neither a label nor an index")
        asked[field] = value
    boxes = row.get("boxes")
    if isinstance(boxes, str):
        try:
            boxes = parsed_json(boxes)
        except ValueError:
            raise ValueError("`boxes` is not JSON, such as [[10, 20, 110, 220]]") from None
    corners = [row[c] for c in CORNERS if row.get(c) is not None]
    if corners and (len(corners) < 4 or boxes is not None):
        raise ValueError("one box in x0, y0, x1, y1, or several in `boxes`")
    asked["boxes"] = _boxes([corners] if corners else boxes)
    return picture, asked


def _boxes(boxes: Any) -> tuple[Box, ...] | None:
    if boxes is None:
        return None
    if not isinstance(boxes, list) or not all(isinstance(b, list) and len(b) == 4 for b in boxes):
        raise ValueError("`boxes` is not a list of [x0, y0, x1, y1]")
    found = []
    for box in boxes:
        try:
            x0, y0, x1, y1 = (float(v) for v in box)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"a box of {box}: four numbers are needed") from None
        if not (0 <= x0 < x1 < 1e9 and 0 <= y0 < y1 < 1e9):  # also false for NaN
            raise ValueError(f"the box {box} is not x0 < x1 and y0 < y1, from 0")
        found.append((x0, y0, x1, y1))
    return tuple(found) or None
