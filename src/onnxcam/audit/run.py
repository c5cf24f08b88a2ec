"""An audit: every picture explained and recorded, bad ones as errors; begun again, only what is missing."""

import io
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcam.audit.folder import OutputFolder
from onnxcam.audit.records import Explains, Item, Record, explained_record, failed_record, run_header
from onnxcam.errors import ModelError, OnnxCamError, PictureError, UsageError
from onnxcam.explainer import Prepared
from onnxcam.explanation import Explanation
from onnxcam.picture import MAX_PIXELS, Picture, load_picture
from onnxcam.pipeline import Skipped, pipelined, processors
from onnxcam.render import colormap, encoded

BATCH = 4
"""Pictures in one run of the model. More cost memory and, on a CPU, gain little."""
RUNNERS = 8
"""Most runs of the model at the same time."""


@dataclass(frozen=True)
class Output:
    """What is written of each picture besides its record.

    overlays: the map over the picture, as `overlay_format` `png` or `jpg`, drawn with colormap, opacity and clip as in
    `Explanation.overlay`. values: `npy`, float32 (H, W); `png16`, round(65535 values) as 16-bit grey; or `none`.

    Raises: UsageError for a choice that does not exist.
    """

    overlays: bool = True
    overlay_format: Literal["png", "jpg"] = "png"
    colormap: str = "jet"
    opacity: float = 0.5
    clip: float | None = None
    values: Literal["none", "npy", "png16"] = "none"

    def __post_init__(self) -> None:
        colormap(self.colormap)
        for name, known in (("overlay_format", ("png", "jpg")), ("values", ("none", "npy", "png16"))):
            if (chosen := getattr(self, name)) not in known:
                raise UsageError(f"{name} `{chosen}`", f"use one of {', '.join(known)}")
        if not 0 <= self.opacity <= 1:
            raise UsageError(f"opacity {self.opacity} is outside [0, 1]", "0 is the picture alone, 1 the map alone")
        if self.clip is not None and not 0 < self.clip <= 100:
            raise UsageError(
                f"clip {self.clip} is outside (0, 100]", "99 draws the highest hundredth in the top colour"
            )

    def files(self, explanation: Explanation, name: str) -> dict[str, tuple[str, bytes] | None]:
        """Name and bytes of each file, by kind; None for what is not asked for."""
        drawing = {"colormap": self.colormap, "opacity": self.opacity, "clip": self.clip}
        found: dict[str, tuple[str, bytes] | None] = {"overlay": None, "values": None}
        if self.overlays:
            data = encoded(explanation.overlay(**drawing), f".{self.overlay_format}", compress_level=1)  # type: ignore[arg-type]
            found["overlay"] = f"overlays/{name}.cam.{self.overlay_format}", data
        if self.values == "npy":
            found["values"] = f"values/{name}.cam.npy", _npy(explanation.values)
        elif self.values == "png16":
            found["values"] = f"values/{name}.cam.png", _png16(explanation.values)
        return found


@dataclass(frozen=True)
class Summary:
    """How a run ended: pictures asked for, explained now, left as they were; errors; maps with warnings now.

    unknown: pictures explained now whose expected class the model does not have: they are neither right nor wrong.
    first_errors: name and message of five bad pictures at most. boxes, bare: of a detector, the boxes found in the
    pictures explained now, and how many of these have none; else None.
    """

    pictures: int
    explained: int
    before: int
    errors: int
    flagged: int
    seconds: float
    first_errors: tuple[tuple[str, str], ...] = ()
    unknown: int = 0
    boxes: int | None = None
    bare: int | None = None

    def text(self, folder: str | os.PathLike[str]) -> str:
        """One line for a person."""
        parts = [f"{self.explained} explained"]
        parts += [f"{self.before} done before"] if self.before else []
        parts += [f"{self.errors} bad"] if self.errors else []
        parts += [f"{self.boxes} box{'' if self.boxes == 1 else 'es'}"] if self.boxes is not None else []
        parts += [f"{self.bare} without a box"] if self.bare else []
        parts += [f"{self.flagged} with warnings"] if self.flagged else []
        parts += [f"{self.unknown} whose expected class the model does not have"] if self.unknown else []
        rate = f", {self.explained / self.seconds:.1f}/s" if self.explained and self.seconds > 0 else ""
        return f"{self.pictures} picture{'' if self.pictures == 1 else 's'}: {', '.join(parts)}{rate} -> {folder}"


def audit(
    explainer: Explains,
    items: Sequence[Item],
    folder: str | os.PathLike[str],
    *,
    target: str | int | None = None,
    asked: Mapping[str, Any] | None = None,
    output: Output | None = None,
    batch: int = BATCH,
    workers: int | None = None,
    runners: int | None = None,
    max_pixels: int = MAX_PIXELS,
    restart: bool = False,
    retry: bool = True,
    progress: Callable[[int, int, int], None] = lambda done, total, errors: None,
) -> Summary:
    """Explain every picture and keep a record of each in `folder`; docs/audit-a-folder.md says what it holds.

    A picture is done when its record is on disk. Begun again with the same settings, after an end of any kind, a run
    does what is missing, tries bad pictures again, and ends with the folder that one run would have left.

    explainer: an `Explainer` or a `Detector`. target: of items that ask for none. asked: what else every picture is
    asked, arguments of the explainer's `prepare`, such as `inside` of a Detector's. batch: pictures in one run of the
    model. runners: runs at the same time, default as many as the explainer's `threads` fit into the processors; several
    of one thread each are the fastest on CPUs. workers: threads that decode and write, default one per processor, none
    where runners fill them. max_pixels: of one picture. restart: delete what an earlier run recorded and begin anew.
    retry: try bad pictures again. progress: called with pictures done, all of them, and errors.

    Decoding, the model, and drawing and writing overlap; 2 + runners batches are in memory, however many pictures.

    Raises: OutputError, UsageError (settings, target), ModelError where the model fails on the first pictures.
    """
    begun, output = time.monotonic(), output or Output()
    if batch < 1:
        raise UsageError(f"a batch of {batch} pictures", "give 1 or more")
    made, asked = explainer.provenance, dict(asked or {})
    if output.values == "png16" and made["normalize"] == "none":
        raise UsageError("16-bit grey holds [0, 1] only", "use `--values npy`, or another `--normalize`")
    runners = runners or _runners(made["threads"])
    explainer.check(target, **asked)
    if target is not None:
        items = [i if i.target is not None else replace(i, target=target) for i in items]
    header = run_header(explainer, asdict(output) | {"target": target} | asked)
    with OutputFolder(folder, header, restart=restart) as out:
        states = [out.state(i) for i in items]
        todo = [i for i, state in zip(items, states, strict=True) if state is None or (state == "error" and retry)]
        stages = Stages(explainer, output, out, max_pixels, asked)
        first: list[tuple[str, str]] = []
        before, flagged, unknown = len(items) - len(todo), 0, 0
        left = errors = 0 if retry else states.count("error")
        boxes: list[int] = []
        records = pipelined(
            todo, stages.prepare, stages.run, stages.finish, batch_size=batch, workers=workers, runners=runners
        )
        for done, record in enumerate(records, before + 1):
            out.add(record)
            if record["status"] == "error":
                errors += 1
                first += [(record["name"], record["error"]["message"])] if len(first) < 5 else []
            else:
                flagged += bool(record["warnings"])
                boxes += [len(record["detected"])] if "detected" in record else []
                unknown += record["expected"] is not None and record["expected_index"] is None
            progress(done, len(items), errors)
        out.sort(i.name for i in items)
    seconds = time.monotonic() - begun
    explained, found = len(todo) - errors + left, (sum(boxes), boxes.count(0)) if boxes else (None, None)
    return Summary(len(items), explained, before, errors, flagged, seconds, tuple(first), unknown, *found)


def fitting_threads(provider: str | None) -> int | None:
    """Threads of one run of the model, so that RUNNERS of them use all processors; None for other providers' own."""
    return -(-processors() // RUNNERS) if provider in (None, "cpu", "CPUExecutionProvider") else None


def _runners(threads: int) -> int:
    return max(1, min(RUNNERS, processors() // threads)) if threads else 1


class Destination(Protocol):
    """Where the files of a run go."""

    @property
    def path(self) -> Path:
        """What the paths in records are relative to."""

    def write(self, name: str, data: bytes) -> str:
        """A file at a path relative to the folder, whole or not there; the name."""


class Stages:
    """What happens to a picture: decoded and made a tensor; explained; drawn, written and recorded."""

    def __init__(
        self,
        explainer: Explains,
        output: Output,
        out: Destination,
        max_pixels: int,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        self.explainer, self.output, self.out, self.max_pixels = explainer, output, out, max_pixels
        self.asked = asked or {}
        self._worked = False

    def load(self, item: Item) -> Picture:
        """The picture of an item. Raises: PictureError."""
        _check_file(item.path)
        return load_picture(item.path, max_pixels=self.max_pixels)

    def prepare(self, item: Item) -> Prepared | Skipped[Explanation | OnnxCamError]:
        """The picture decoded and made a tensor, or what is wrong with it."""
        try:
            prepared = self.explainer.prepare(self.load(item), item.target, **self.asked)
        except (PictureError, UsageError) as error:
            return Skipped(error)
        if not self.output.overlays:  # the size is all that is still needed
            picture = prepared.picture
            bare = replace(picture, rgb=np.broadcast_to(np.uint8(0), picture.rgb.shape))
            prepared = replace(prepared, picture=bare)
        return prepared

    def run(self, batch: list[Prepared]) -> Sequence[Explanation | OnnxCamError]:
        """The model on a batch; one by one where it fails on the batch.

        Raises: ModelError where it fails on every picture of it and has not worked on any before.
        """
        try:
            found: list[Explanation | OnnxCamError] = list(self.explainer.explain_prepared(batch))
        except ModelError as error:
            found = list(self._one_by_one(batch)) if len(batch) > 1 else [error]
            if not self._worked and all(isinstance(f, ModelError) for f in found):
                raise
        self._worked = True
        return found

    def _one_by_one(self, batch: list[Prepared]) -> Iterator[Explanation | OnnxCamError]:
        for prepared in batch:
            try:
                yield self.explainer.explain_prepared([prepared])[0]
            except ModelError as error:
                yield error

    def finish(self, item: Item, result: Explanation | OnnxCamError) -> Record:
        """The record of an item, its files written before."""
        if isinstance(result, OnnxCamError):
            return failed_record(item, result, self.out.path)
        files = self.output.files(result, item.name)
        written = {kind: file and self.out.write(*file) for kind, file in files.items()}
        return explained_record(item, result, self.explainer.classes, self.out.path, written)


def _check_file(path: str) -> None:
    """Raises: PictureError for a device or a pipe, which might never end."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - what is no path at all is left to `load_picture`
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise PictureError(f"{path}: is no file but a device or a pipe", "copy it to a file first")


def _npy(values: npt.NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _png16(values: npt.NDArray[np.float32]) -> bytes:
    """16-bit grey; NaN, which the record tells, is black."""
    grey = np.rint(np.nan_to_num(values) * np.float32(65535)).astype(np.uint16)
    return encoded(Image.fromarray(grey), ".png", compress_level=1)
