"""The folder of a page: the exported model, ONNX Runtime's files, one HTML and what it has to know."""

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto

from onnxcam.errors import OutputError, UnsupportedError, UsageError
from onnxcam.explained import Size, open_graph
from onnxcam.explainer import Explainer, PreprocessLike
from onnxcam.exported import METADATA_KEY, Exported, export
from onnxcam.graph.head import Head, classifier_head
from onnxcam.graph.read import ModelFile, ModelSource, read
from onnxcam.graph.signature import ImageInput
from onnxcam.methods import METHODS
from onnxcam.preprocess import Preprocess, load_picture
from onnxcam.render import colormap as colormap_of
from onnxcam.web.ort_files import ort_web_files

MADE_BY = "onnxcam web"
RECORD = "model.json"
MAX_BYTES = 2**31 - 1
"""Of a model with its weights: what one buffer of a browser holds."""


@dataclass(frozen=True)
class Site:
    """What was written. files: relative to `folder`. ort_web: the version of onnxruntime-web."""

    folder: Path
    files: tuple[str, ...]
    bytes: int
    ort_web: str
    exported: Exported
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        facts = {"folder": str(self.folder), "files": list(self.files), "bytes": self.bytes, "ort_web": self.ort_web}
        return {**facts, "notes": list(self.notes), "model": self.exported.to_json()}


def write_site(
    model: ModelSource,
    folder: str | os.PathLike[str],
    *,
    ort_web: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    method: str = "gradcam",
    method_options: Mapping[str, Any] | None = None,
    layer: str | Sequence[str] | None = None,
    layer_layout: str | None = None,
    score: str = "logit",
    output: str | None = None,
    normalize: str = "minmax",
    fuse: str = "mean",
    colormap: str = "jet",
    opacity: float = 0.5,
    preprocess: PreprocessLike = None,
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
    size: Size | None = None,
    input_layout: str | None = None,
    verify: bool = True,
    threads: int | None = None,
) -> Site:
    """Write a static page that runs the exported model in the browser; `folder` appears complete, or not at all.

    A folder that an earlier call wrote is replaced. ort_web: where onnxruntime-web lies, else npm fetches the pinned
    version; say: is told what happens. The others: as for `Explainer` and `export`.

    Raises: what `export` and `ort_web_files` raise; OutputError for a folder that holds something else,
    UnsupportedError for a model that no browser can hold.
    """
    target = Path(folder)
    _check_place(target)
    if normalize == "none":
        raise UsageError("a page draws maps in [0, 1]", "leave out `normalize=none`")
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity {opacity} is outside [0, 1]", "0 is the picture alone, 1 the map alone")
    colors = colormap_of(colormap)
    file = read(model)
    weights = sorted({e.value for t in _tensors(file.model.graph) for e in t.external_data if e.key == "location"})
    _check_size(file, weights)
    options: dict[str, Any] = {
        "method": method, "method_options": method_options, "layer": layer, "layer_layout": layer_layout,
        "score": score, "output": output, "normalize": normalize, "fuse": fuse, "preprocess": preprocess,
        "labels": labels, "size": size, "input_layout": input_layout, "threads": threads,
        "float32": True,  # browsers run it on the CPU
    }  # fmt: skip
    python = Explainer(model, **options)
    graph, image, _ = open_graph(file, size=python.preprocess.size, input_layout=input_layout)
    head = classifier_head(graph, output)
    name = "model.onnx" if "model.onnx" not in weights else "model.cam.onnx"
    new = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        (new / "model").mkdir(parents=True)
        exported = export(
            model, new / "model" / name, class_input="required", with_class=True, with_scores=True, verify=verify,
            **options,
        )  # fmt: skip
        version, runtime = ort_web_files(ort_web, say)
        (new / "ort").mkdir()
        for part, data in runtime.items():
            (new / "ort" / part).write_bytes(data)
        (new / "index.html").write_text(page(), "utf-8")
        complete = onnx.load(new / "model" / name, load_external_data=False)
        record = _record(complete, file, python, image, head)
        record["model"] |= {
            "file": f"model/{name}",
            "weights": weights,
            "bytes": sum(p.stat().st_size for p in _files(new / "model")),
        }
        record["drawing"] = {"colormap": _text(colors.tobytes()), "opacity": opacity}
        files = tuple(sorted([*(p.relative_to(new).as_posix() for p in _files(new)), RECORD]))
        (new / RECORD).write_text(json.dumps({**record, "files": files}, indent=1), "utf-8")
        total = sum(p.stat().st_size for p in _files(new))
        _put(new, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}", "free space, or choose another") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    exported = replace(exported, path=target / "model" / name)
    return Site(target, files, total, version, exported, tuple(dict.fromkeys([*python.notes, *exported.notes])))


def page() -> str:
    """The HTML, its policy filled in: own files, the script and the style that stand in it, and nothing else."""
    html = resources.files("onnxcam.web").joinpath("page.html").read_text("utf-8")
    script, style = (_hash(html, tag) for tag in ('script type="module"', "style"))
    policy = (
        f"default-src 'none'; script-src 'self' '{script}' 'wasm-unsafe-eval'; style-src '{style}'; "
        "connect-src 'self'; worker-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
    )
    return html.replace("$POLICY", policy)


def _hash(html: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag.split()[0]}>", html, re.S)
    assert found is not None
    return f"sha256-{_text(hashlib.sha256(found[1].encode()).digest())}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _check_place(target: Path) -> None:
    """Raises: OutputError, before any work is done, where the folder cannot be written or is someone else's."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"{target} is a file", "name a folder")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}", f"make it first: `mkdir -p {target.parent}`")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: the folder {target.parent} is not writable", "choose another with `--output`")
    if not target.exists():
        return
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir() or p.is_symlink()}
    foreign = sorted(found - _written_before(target))
    if foreign:
        raise OutputError(
            f"{target} holds files that `{MADE_BY}` did not write, such as {foreign[0]}",
            "choose a new folder; nothing was touched",
        )


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def _written_before(target: Path) -> set[str]:
    """The files that the record of an earlier site names."""
    try:
        record = json.loads((target / RECORD).read_text("utf-8"))
        return set(record["files"]) if record["made_by"] == MADE_BY else set()
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def _put(new: Path, target: Path) -> None:
    """Rename the folder into place; an earlier one is moved aside, and back where that fails."""
    if not target.exists():
        new.rename(target)
        return
    old = new.with_name(f"{new.name}.old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors(subgraph)


def _check_size(file: ModelFile, weights: Sequence[str]) -> None:
    """Raises: UnsupportedError."""
    size = file.model.ByteSize() + sum((file.folder / name).stat().st_size for name in weights if file.folder)
    if size > MAX_BYTES:
        raise UnsupportedError(
            f"{file.name} has {size:,} bytes with its weights; a browser's buffer holds at most 2 GiB",
            "quantise it or make it float16 first, or leave it on a server: docs/serve.md",
        )


def _record(complete: ModelProto, file: ModelFile, python: Explainer, image: ImageInput, head: Head) -> dict[str, Any]:
    """What the page has to know, as plain JSON values."""
    done = json.loads(next(p.value for p in complete.metadata_props if p.key == METADATA_KEY))
    return {
        "made_by": MADE_BY,
        "version": metadata.version("onnxcam"),
        "model": {"name": file.name, "sha256": file.sha256},
        "method": done["method"],
        "layers": [one["name"] for one in done["layers"]],
        "input": {
            "name": image.name,
            "dtype": image.dtype,
            "batch": image.batch or 1,
            "preprocess": python.preprocess.to_json(),
            "table": _text(_table(python.preprocess)),
        },
        "scores": "probability" if head.activation else "score",
        "names": done["names"],
        "per_class": METHODS[done["method"]].class_discriminative,
        "classes": head.classes,
        "labels": list(python.labels) if python.labels else None,
    }


def _table(preprocess: Preprocess) -> bytes:
    """(C, 256) of the input's type: what each pixel value becomes in each channel."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[np.newaxis, :, np.newaxis], 3, axis=2)
    plain = replace(preprocess, size=(1, 256), fit="squash", resize=None, layout="nchw")
    return plain(load_picture(ramp))[0].tobytes()
