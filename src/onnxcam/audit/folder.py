"""The output folder of a run: one writer at a time, whole files only, and what is already done."""

import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from onnxcam.audit.records import RECORDS, RUN, Item, Record, RecordIndex, line, question, read_run
from onnxcam.errors import OutputError, UsageError

PARTIAL = ".partial"
"""Where files are written before they are renamed into place; what a killed run left there is removed."""

_FREE = ("created",)


class OutputFolder:
    """A folder of records and the files that belong to them, as a context manager; records are on disk once added.

    header: of `run.json`. An audit that was begun is gone on with where its header says the same, but for the time;
    restart: its records and files are deleted first.

    Raises: OutputError where nothing can be written or another run writes, UsageError where the header differs.
    """

    def __init__(self, folder: str | os.PathLike[str], header: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = Path(folder)
        self._parents: set[Path] = set()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._home = self.path.resolve()
            self._lock = _locked(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            self._open(header, restart)
        except BaseException:
            self._unlock()
            raise

    def _open(self, header: Mapping[str, Any], restart: bool) -> None:
        try:
            shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
            (self.path / PARTIAL).mkdir()
            if restart:
                self._clear()
            self._begin(header)
            self.index = RecordIndex(self.path / RECORDS)
            self._file: IO[bytes] = (self.path / RECORDS).open("ab")
            self._file.truncate(self.index.end)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _unlock(self) -> None:
        shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)

    def _clear(self) -> None:
        if not (self.path / RUN).exists():
            return
        for record in RecordIndex(self.path / RECORDS).records():
            for name in filter(None, record.get("files", {}).values()):
                target = self.path / name
                if target.resolve().is_relative_to(self._home):
                    target.unlink(missing_ok=True)
        (self.path / RECORDS).unlink(missing_ok=True)
        (self.path / RUN).unlink()

    def _begin(self, header: Mapping[str, Any]) -> None:
        if not (self.path / RUN).exists():
            if (self.path / RECORDS).exists():
                raise OutputError(f"{self.path} holds `{RECORDS}` without `{RUN}`", "choose another folder")
            self.write(RUN, json.dumps(header, indent=2).encode() + b"\n")
            return
        before = read_run(self.path)
        differences = list(_differences(before, header))
        if differences:
            raise UsageError(
                f"{self.path} was made with other settings\n  " + "\n  ".join(differences),
                "choose another folder, go on with the settings that it was made with, or begin anew with `--restart`",
            )

    def state(self, item: Item) -> str | None:
        """The status of the picture's record, `ok` or `error`; None where it has none for the same question."""
        entry = self.index.entries.get(item.name)
        if entry is None or entry.asked != question(item.asked(self.path)):
            return None
        return "ok" if entry.ok else "error"

    def add(self, record: Record) -> None:
        """Append the record; the picture is done once this returns. Call from one thread."""
        data = line(record)
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path / RECORDS, error) from error
        self.index.add(record, len(data))

    def write(self, name: str, data: bytes) -> str:
        """A file at a path relative to the folder, whole or not there; the name. Call from any thread."""
        target = self.path / name
        temporary = self.path / PARTIAL / str(threading.get_ident())
        try:
            if target.parent != self.path and target.parent not in self._parents:
                if not target.parent.resolve().is_relative_to(self._home):
                    raise OutputError(f"{target.parent} leads out of {self.path}", "remove this link")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._parents.add(target.parent)
            temporary.write_bytes(data)
            temporary.replace(target)
        except OSError as error:
            raise _unwritable(target, error) from error
        return name

    def sort(self, names: Iterable[str]) -> None:
        """Put the records into this order, others after them as they were, each picture once."""
        self._file.flush()
        entries = self.index.entries
        ordered = {name: entries[name] for name in names if name in entries}
        ordered |= {name: entry for name, entry in entries.items() if name not in ordered}
        if list(ordered) == list(entries) and sum(e.size for e in entries.values()) == self.index.end:
            return
        sorted_path = self.path / PARTIAL / RECORDS
        try:
            with (self.path / RECORDS).open("rb") as old, sorted_path.open("wb") as new:
                for entry in ordered.values():
                    old.seek(entry.offset)
                    new.write(old.read(entry.size))
            self._file.close()
            sorted_path.replace(self.path / RECORDS)
        except OSError as error:
            raise _unwritable(self.path / RECORDS, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._unlock()


def _locked(folder: Path) -> int | None:
    """A lock on the folder, which ends with the process; None where the system has none."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"another run is writing to {folder}", "wait for it to end, or choose another folder"
        ) from error
    except OSError:  # a file system without locks
        pass
    return handle


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """What differs, one line each, in words such as `provenance.method: was gradcam, now hirescam`."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [k for k in (before | now) if where or k not in _FREE]
        found = [_differences(before.get(k), now.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [one for several in found for one in several]
    return [] if before == now else [f"{where}: was {_short(before)}, now {_short(now)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}",
        "free space and permissions there, or choose another folder; what is finished is kept",
    )
