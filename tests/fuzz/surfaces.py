"""Where files of others enter the package. Each surface takes damaged ones; only designed errors may come out."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import seeds
from mutations import damaged, damaged_model, damaged_text
from onnx import ModelProto

from onnxcam.audit.folder import OutputFolder
from onnxcam.audit.records import read_records, read_run
from onnxcam.audit.sources import Sources
from onnxcam.check import check
from onnxcam.errors import OnnxCamError
from onnxcam.explainer import Explainer
from onnxcam.exported import export
from onnxcam.graph.beside import beside
from onnxcam.metrics.evaluation import read_boxes
from onnxcam.picture import load_picture
from onnxcam.preprocess import Preprocess
from onnxcam.presets import preset, read_labels
from onnxcam.report.page import write_report

METHODS = ("gradcam", "gradcam", "gradcam++", "layercam", "eigencam", "saliency", "scorecam", "fullgrad")


def models(rng: Random, folder: Path) -> None:
    data = seeds.demo() if rng.random() < 0.03 else rng.choice(seeds.models())
    _use_model(damaged_model(data, rng) if rng.random() < 0.75 else damaged(data, rng), rng, folder)


def _use_model(data: bytes, rng: Random, folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(data)
    use = rng.random()
    if use < 0.15:
        check(path).to_json()
    elif use < 0.25:
        export(path, folder / "out.onnx")
    else:
        explainer = Explainer(path, method=rng.choice(METHODS), threads=1)
        noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
        explanation = explainer(noise)
        explanation.overlay()
        explanation.record()


def pictures(rng: Random, folder: Path) -> None:
    suffix, data = rng.choice(seeds.pictures())
    path = folder / f"picture.{suffix}"
    path.write_bytes(_bomb(rng) if rng.random() < 0.02 else damaged(data, rng))
    picture = load_picture(path, max_pixels=10**7)
    Preprocess((8, 8), fit=rng.choice(("crop", "squash", "letterbox")))(picture)


def _bomb(rng: Random) -> bytes:
    """A small PNG that says it holds up to 2^62 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width, height = rng.choice((1, 5_000, 2**31 - 1)), rng.choice((20_000, 2**31 - 1))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 10**7)) if rng.random() < 0.5 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))


def settings(rng: Random, folder: Path) -> None:
    stated = rng.choice(seeds.SETTINGS)
    text = damaged_text(stated, rng)
    name = rng.choice(("preprocessor_config.json", "config.json", "mine.json", "mine.yaml"))
    path = folder / name
    path.write_bytes(_aliases(rng) if name.endswith("yaml") and rng.random() < 0.2 else text)
    found = preset(path, rng.choice((None, (8, 8))))
    size = found.size or (8, 8)
    if size[0] * size[1] < 10**6:
        Preprocess.from_json({"size": list(size)} | {k: v for k, v in found.settings.items() if k != "size"})


def _aliases(rng: Random) -> bytes:
    """YAML whose aliases stand for 10^n values; or with a Python object."""
    if rng.random() < 0.3:
        return b"size: !!python/object/apply:os.system ['true']"
    lines = ["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 25))]
    return "\n".join([*lines, "size: *a24"]).encode()


def labels(rng: Random, folder: Path) -> None:
    path = folder / rng.choice(("labels.json", "labels.txt", "labels.json"))
    path.write_bytes(damaged_text(rng.choice(seeds.LABELS), rng))
    read_labels(path)


def metadata(rng: Random, folder: Path) -> None:
    """Settings and labels inside a model, which are read without being asked for, and the files beside it."""
    model = ModelProto.FromString(rng.choice(_with_metadata()))
    entry = rng.choice(model.metadata_props)
    value: Any = entry.value
    with suppress(ValueError):
        value = json.loads(entry.value)
    data = damaged_text(value, rng) if not isinstance(value, str) else damaged(value.encode(), rng)
    entry.value = data.decode("utf-8", "replace")
    if rng.random() < 0.3:
        del model.metadata_props[:]
        (folder / "config.json").write_bytes(damaged_text(rng.choice(seeds.SETTINGS), rng))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    Explainer(path, threads=1)


@cache
def _with_metadata() -> tuple[bytes, ...]:
    return tuple(seeds.MODELS[name]().SerializeToString() for name in ("described", "ultralytics"))


def manifests(rng: Random, folder: Path) -> None:
    if rng.random() < 0.5:
        data, suffix = damaged(seeds.CSV, rng), "csv"
    elif rng.random() < 0.5:
        rows = [json.loads(line) for line in seeds.JSONL.splitlines()]
        data, suffix = b"\n".join(damaged_text(row, rng) for row in rows), "jsonl"
    else:
        data, suffix = damaged(seeds.JSONL, rng), "jsonl"
    path = folder / f"list.{suffix}"
    path.write_bytes(data)
    sources = Sources()
    sources.add_manifest(path)
    sources.add_list(data)
    for item in sources.items:
        item.asked(folder)
        assert not Path(item.name).is_absolute() and ".." not in Path(item.name).parts, item.name


def boxes(rng: Random, folder: Path) -> None:
    path = folder / "boxes.json"
    path.write_bytes(damaged_text(seeds.BOXES, rng))
    read_boxes(path)


def arrays(rng: Random, folder: Path) -> None:
    path = folder / "a.npy"
    np.save(path, np.ones((1, 3), np.float32))
    path.write_bytes(damaged(path.read_bytes(), rng))
    beside(_two_inputs(), "model", "x", {"other": str(path)})


@cache
def _two_inputs() -> ModelProto:
    model = seeds.convolutional()
    other = model.graph.input.add()
    other.CopyFrom(model.graph.input[0])
    other.name = "other"
    del other.type.tensor_type.shape.dim[2:]
    return model


def audits(rng: Random, folder: Path) -> None:
    files = dict(seeds.audit())
    damaged_one = rng.choice([name for name in files if name.startswith("out/")])
    if damaged_one.endswith("run.json"):
        files[damaged_one] = damaged_text(json.loads(files[damaged_one]), rng)
    elif damaged_one.endswith(".jsonl"):
        lines = files[damaged_one].splitlines()
        at = rng.randrange(len(lines))
        lines[at] = damaged_text(json.loads(lines[at]), rng)
        files[damaged_one] = b"\n".join(lines) + b"\n"
    else:
        files[damaged_one] = damaged(files[damaged_one], rng)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    evaluation = folder / "evaluation.json"
    evaluation.write_bytes(damaged_text(seeds.EVALUATION, rng))
    run = folder / "out"
    if rng.random() < 0.2:
        for _ in read_records(run):
            pass
        with OutputFolder(run, json.loads(seeds.audit()["out/run.json"])):
            return
    read_run(run)
    write_report([run], folder / "report.html", evaluation=evaluation if rng.random() < 0.2 else None)


SURFACES: dict[str, Callable[[Random, Path], None]] = {
    f.__name__: f for f in (models, pictures, settings, labels, metadata, manifests, boxes, arrays, audits)
}


def attempt(surface: str, number: int) -> str:
    """One case; how it ended: `taken`, or the name of the designed error. Anything else is raised."""
    rng = Random(f"{surface}:{number}")
    with TemporaryDirectory() as folder:
        try:
            SURFACES[surface](rng, Path(folder))
        except OnnxCamError as error:
            assert error.message.strip(), "an error without words"
            return type(error).__name__
    return "taken"
