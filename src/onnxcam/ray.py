"""Explaining with Ray Data: a stage with one explainer per worker, which makes the records of a local audit."""

import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnxcam.audit.folder import PARTIAL, OutputFolder
from onnxcam.audit.names import stable_name
from onnxcam.audit.records import RUN, Box, Item, Record, read_run, run_header
from onnxcam.audit.run import BATCH, Output, Stages
from onnxcam.errors import OnnxCamError, OutputError, PictureError, UsageError
from onnxcam.explainer import Explainer
from onnxcam.explanation import Explanation
from onnxcam.picture import MAX_PIXELS, Picture, picture_from_bytes
from onnxcam.pipeline import pipelined

ROWS = 32
"""Pictures that a worker is given at once; what is lost and done again when it dies."""

# Stores of objects, which have no folders and show a file only once it is whole.
_OBJECT_STORES = ("s3", "gcs", "abfs")


def explained(
    pictures: Any,
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    root: str = "",
    target: str | int | None = None,
    output: Output | None = None,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    rows: int = ROWS,
    batch: int = BATCH,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Any:
    """A `ray.data.Dataset` of pictures as one of records, a row per picture; nothing runs until it is consumed.

    pictures: rows with `path`, and with `bytes` where the file has been read (`ray.data.read_binary_files(...,
    include_paths=True)`); workers read it otherwise. Optional columns: `name`, `target`, `expected`, `boxes`, as in a
    manifest. Rows of the result: `record`, the JSON that a local run writes, and of it `name`, `status`, `sha256`,
    `class_index`, `label`, `score`, `probability`, `expected_index`, `correct`, `flagged`, `error`, `overlay`,
    `values`.

    folder: a local path that all machines see, or any URI that pyarrow knows (`s3://bucket/out`); `run.json` is
    written at once, overlays and values as `output` says (default: none). root: what names and the paths in it lose at
    their beginning. concurrency: workers, or fewest and most. num_cpus, num_gpus: of each worker, fractions too; the
    model runs on as many threads as there are whole processors. rows: handed to a worker at once. batch: in one run of
    the model. options: of `Explainer`. A worker that is lost is replaced by Ray and its rows are explained again.

    Raises: UsageError where Ray is not installed or the folder holds another audit, ModelError, OutputError.
    """
    pool = _actor_pool(concurrency)
    output = output or Output(overlays=False)
    options = {"threads": max(1, int(num_cpus)), **options}
    explainer = Explainer(model, **options)
    explainer.check(target)
    store = Store(folder)
    _begin(store, run_header(explainer, asdict(output) | {"target": target}))
    worker = {
        "model": os.path.abspath(model),  # noqa: PTH100 - workers run in folders of their own
        "store": store,
        "root": root,
        "target": target,
        "output": output,
        "batch": batch,
        "threads": max(1, math.ceil(num_cpus)),
        "max_pixels": max_pixels,
        "options": options,
    }
    return pictures.map_batches(
        Worker,
        fn_constructor_kwargs=worker,
        batch_format="pyarrow",
        batch_size=rows,
        compute=pool,
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )


def collect(records: Any, folder: str | os.PathLike[str]) -> int:
    """Append the records of a dataset to the local folder that `explained` was given; how many there were.

    It is then what `onnxcam explain` leaves, ordered by name: `onnxcam report` and `read_records` take it.

    Raises: UsageError where the folder has no `run.json`, OutputError.
    """
    done = 0
    with OutputFolder(folder, read_run(folder)) as out:
        for table in records.iter_batches(batch_format="pyarrow", batch_size=1024):
            for text in table["record"].to_pylist():
                out.add(json.loads(text))
                done += 1
        out.sort(sorted(out.index.entries))
    return done


class Store:
    """A folder that workers write to and read pictures through: a local one, or any that pyarrow knows by a URI."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        given = os.fspath(folder)
        self.remote = "://" in given
        self.folder = given.rstrip("/") if self.remote else os.path.abspath(given)  # noqa: PTH100 - links stay

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @cached_property
    def _system(self) -> tuple[Any, str]:
        return _filesystem(self.folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder,)

    def read(self, name: str) -> bytes | None:
        """A file of the folder; None where there is none."""
        try:
            return _read(f"{self.folder}/{name}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be read: {error}", "check the path and its permissions") from error

    def write(self, name: str, data: bytes) -> str:
        """A file at a path relative to the folder, whole or not there; the name. Raises: OutputError."""
        try:
            if self.remote:
                self._put(name, data)
            else:
                target, partial = self.path / name, self.path / PARTIAL
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.mkdir(exist_ok=True)
                temporary = partial / uuid.uuid4().hex
                temporary.write_bytes(data)
                temporary.replace(target)
        except OSError as error:
            raise OutputError(
                f"{self.folder}/{name} cannot be written: {error}", "free space and permissions there"
            ) from error
        return name

    def _put(self, name: str, data: bytes) -> None:
        system, base = self._system
        target = f"{base}/{name}"
        if system.type_name in _OBJECT_STORES:
            with system.open_output_stream(target) as file:
                file.write(data)
            return
        temporary = f"{base}/{PARTIAL}/{uuid.uuid4().hex}"
        for path in (target, temporary):
            system.create_dir(path.rpartition("/")[0], recursive=True)
        with system.open_output_stream(temporary) as file:
            file.write(data)
        system.move(temporary, target)


@dataclass(frozen=True, slots=True)
class Row(Item):
    """A picture of a dataset: its bytes, or None where they are still to be read from its path."""

    data: bytes | None = None


class Worker:
    """What an actor of `map_batches` holds: one explainer; called with a table of pictures, a table of records."""

    def __init__(
        self,
        model: str,
        store: Store,
        root: str,
        target: str | int | None,
        output: Output,
        batch: int,
        threads: int,
        max_pixels: int,
        options: Mapping[str, Any],
    ) -> None:
        self.root, self.target, self.batch, self.threads = root, target, batch, threads
        self.stages = _RowStages(Explainer(model, **options), output, store, max_pixels)

    def __call__(self, table: Any) -> Any:
        import pyarrow

        if "path" not in table.column_names:
            raise UsageError(
                f"the dataset has no column `path`, but {', '.join(table.column_names)}",
                "`ray.data.read_binary_files(..., include_paths=True)` has",
            )
        stages, items = self.stages, [self._item(row) for row in table.to_pylist()]
        records = pipelined(
            items, stages.prepare, stages.run, stages.finish, batch_size=self.batch, workers=self.threads
        )
        return pyarrow.Table.from_pylist([_columns(record) for record in records], schema=_schema())

    def _item(self, row: Mapping[str, Any]) -> Row:
        path = str(row["path"])
        asked: dict[str, Any] = {field: row.get(field) for field in ("target", "expected")}
        if asked["target"] is None:
            asked["target"] = self.target
        name = stable_name(row.get("name") or path.removeprefix(self.root).lstrip("/"))
        return Row(name, path, **asked, boxes=_boxes(row.get("boxes")), data=row.get("bytes"))


class _RowStages(Stages):
    """The stages of a local audit, with pictures from anywhere."""

    def __init__(self, explainer: Explainer, output: Output, store: Store, max_pixels: int) -> None:
        super().__init__(explainer, output, store, max_pixels)
        self.remote = store.remote

    def load(self, item: Item) -> Picture:
        data = item.data if isinstance(item, Row) else None
        if data is None:
            try:
                data = _read(item.path)
            except FileNotFoundError as error:
                raise PictureError(f"{item.path}: no such file", "check the path") from error
            except (OSError, ValueError) as error:
                raise PictureError(f"{item.path}: cannot be read: {error}", "check the path") from error
        return picture_from_bytes(data, item.path, max_pixels=self.max_pixels)

    def finish(self, item: Item, result: Explanation | OnnxCamError) -> Record:
        record = super().finish(item, result)
        # Nothing is relative to a URI, and what is in a store has no place relative to a folder.
        if self.remote or not Path(item.path).is_absolute():
            record["picture"] = item.path
        return record


def _begin(store: Store, header: Record) -> None:
    """Write `run.json`, or see that the one that is there says the same, but for the time."""
    before = store.read(RUN)
    if before is None:
        store.write(RUN, json.dumps(header, indent=2).encode() + b"\n")
        return
    try:
        found = json.loads(before)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found | {"created": None} != json.loads(json.dumps(header)) | {"created": None}:
        raise UsageError(f"{store.folder} was made with other settings", "choose another folder")


def _boxes(given: Any) -> tuple[Box, ...] | None:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in given) if given else None


def _columns(record: Record) -> dict[str, Any]:
    """A record as a row: its line of JSON, and what one filters by."""
    files = record.get("files") or {}
    same = ("name", "status", "sha256", "class_index", "label", "score", "probability", "expected_index", "correct")
    return {
        **{field: record.get(field) for field in same},
        "flagged": bool(record.get("warnings")),
        "error": (record.get("error") or {}).get("message"),
        "overlay": files.get("overlay"),
        "values": files.get("values"),
        "record": json.dumps(record, allow_nan=False),
    }


def _schema() -> Any:
    import pyarrow as pa

    text, number, flag = pa.string(), pa.float64(), pa.bool_()
    kinds = {"class_index": pa.int64(), "expected_index": pa.int64(), "score": number, "probability": number}
    kinds |= {"correct": flag, "flagged": flag}
    order = "name status sha256 class_index label score probability expected_index correct flagged error overlay values"
    return pa.schema([(field, kinds.get(field, text)) for field in [*order.split(), "record"]])


def _read(path: str) -> bytes:
    """A file at a local path or a URI."""
    if "://" not in path:
        return Path(path).read_bytes()
    system, inner = _filesystem(path)
    with system.open_input_stream(inner) as file:
        data: bytes = file.read()
    return data


def _filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it. Raises: UsageError for one that pyarrow does not know."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(uri)
    except (ArrowException, ValueError) as error:
        raise UsageError(f"{uri}: {error}", "give a local path or a URI that pyarrow knows, such as s3://") from error
    return system, path


def _actor_pool(workers: int | tuple[int, int]) -> Any:
    try:
        from ray.data import ActorPoolStrategy
    except ImportError as error:
        raise UsageError("Ray is not installed", "`pip install onnxcam[ray]`") from error
    if isinstance(workers, int):
        return ActorPoolStrategy(size=workers)
    return ActorPoolStrategy(min_size=workers[0], max_size=workers[1])
