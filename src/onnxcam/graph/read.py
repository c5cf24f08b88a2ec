"""From a path, bytes or a ModelProto to a parsed model; files that are handed over by mistake are named."""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxcam.errors import ModelError, UsageError
from onnxcam.profiling import stage

# Two gibibytes is protobuf's own limit for one message; larger models keep their weights in external files.
MAX_BYTES = 2**31 - 1
MAX_MODEL_BYTES = 2**34
"""Most bytes that a model and its external files may have together by default: 16 GiB."""

MAX_ELEMENTS = 2**40
"""Most elements of one weight."""
_DAMAGED = "the file is damaged; export or download it again"
# Types of which several elements share a byte.
_BITS: dict[int, int] = {
    int(getattr(TensorProto, name)): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(TensorProto, name)
}

_PYTORCH = "export it first: `torch.onnx.export(model.eval(), example_input, 'model.onnx')`"
_TENSORFLOW = "convert it first: `python -m tf2onnx.convert --{} {} --output model.onnx`"

# What the first bytes, or the bytes from 4 on, or the suffix say that a file is, and the way out.
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (4, b"ORTM", "an ORT-format model (.ort)", "use the `.onnx` file that it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model", _TENSORFLOW.format("tflite", "model.tflite")),
    (0, b"PK\x03\x04", "a PyTorch checkpoint, a Keras archive or another zip", _PYTORCH),
    (0, b"\x80\x02", "a Python pickle, as PyTorch checkpoints are", _PYTORCH),
    (0, b"\x89HDF", "an HDF5 file, as Keras weights are", _TENSORFLOW.format("keras", "model.h5")),
    (0, b"ftrt", "a TensorRT engine", "engines hold no graph; use the `.onnx` file that it was built from"),
    (0, b"ptrt", "a TensorRT engine", "engines hold no graph; use the `.onnx` file that it was built from"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model", "run `git lfs pull` in its repository"),
    (0, b"<?xml", "an XML file, as OpenVINO IR is", "use the `.onnx` file that it was converted from"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x89PNG", "a PNG picture", "the model comes first: `onnxcam explain MODEL IMAGE`"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "the model comes first: `onnxcam explain MODEL IMAGE`"),
)
_HTML = (b"<!doctype html", b"<html")
_SUFFIX = {
    ".engine": ("a TensorRT engine", "engines hold no graph; use the `.onnx` file that it was built from"),
    ".plan": ("a TensorRT engine", "engines hold no graph; use the `.onnx` file that it was built from"),
    ".trt": ("a TensorRT engine", "engines hold no graph; use the `.onnx` file that it was built from"),
    ".pt": ("a PyTorch checkpoint", _PYTORCH),
    ".pth": ("a PyTorch checkpoint", _PYTORCH),
    ".tflite": ("a TensorFlow Lite model", _TENSORFLOW.format("tflite", "model.tflite")),
    ".h5": ("an HDF5 file, as Keras weights are", _TENSORFLOW.format("keras", "model.h5")),
    ".pb": ("a TensorFlow graph", _TENSORFLOW.format("graphdef", "model.pb")),
}


@dataclass(frozen=True)
class ModelFile:
    """A parsed model: its name for messages, the folder of its external data, the sha256 of its bytes."""

    model: ModelProto
    name: str
    folder: Path | None
    sha256: str


ModelSource = str | os.PathLike[str] | bytes | ModelProto | ModelFile


@stage("read")
def read(source: ModelSource, *, max_bytes: int = MAX_MODEL_BYTES) -> ModelFile:
    """Parse a model; external data stay on disk. What is read already stays as it is.

    max_bytes: of the model and its external files together.

    Raises: ModelError (exit code 3) where the file is missing, empty, truncated, too large or something else than ONNX.
    """
    if isinstance(source, ModelFile):
        return source
    if isinstance(source, ModelProto):
        _check_external(source, None, None, "<ModelProto>")
        _check_order(source, "<ModelProto>")
        _check_tensors(source, "<ModelProto>")
        data = source.SerializeToString(deterministic=True)
        return ModelFile(source, "<ModelProto>", None, hashlib.sha256(data).hexdigest())
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        model = _parse(data, "<bytes>", "")
        _check_external(model, None, None, "<bytes>")
        _check_order(model, "<bytes>")
        _check_tensors(model, "<bytes>")
        return ModelFile(model, "<bytes>", None, hashlib.sha256(data).hexdigest())
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"a model is a path, bytes or a ModelProto, not {type(source).__name__}")
    path = Path(source)
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.onnx"))
        hint = f"it holds {', '.join(f'`{p}`' for p in inside[:5])}" if inside else "give the path of an `.onnx` file"
        raise ModelError(f"{path} is a folder", hint)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"{path} is no file but a device or a pipe", "copy it to a file first")
        if size > MAX_BYTES:
            raise ModelError(
                f"{path}: {size:,} bytes, but one ONNX file holds at most 2 GiB",
                "save the model with external data: `onnx.save(model, path, save_as_external_data=True)`",
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file", _nearby(path)) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    model = _parse(data, str(path), path.suffix.lower())
    folder = path.parent.resolve()
    external = _check_external(model, folder, path.resolve().parent, str(path))
    _check_order(model, path.name)
    _check_tensors(model, path.name)
    if (total := size + sum((folder / f).stat().st_size for f in external)) > max_bytes:
        raise ModelError(
            f"{path}: {total:,} bytes with its external files, more than {max_bytes:,}",
            "if you trust it, raise `max_bytes` of `onnxcam.graph.read.read`, or `--max-model-bytes`",
        )
    return ModelFile(model, path.name, folder, hashlib.sha256(data).hexdigest())


def _nearby(path: Path) -> str:
    from difflib import get_close_matches

    names = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
    close = get_close_matches(path.name, names, 1)
    return f"did you mean `{path.parent / close[0]}`?" if close else "check the path"


def _parse(data: bytes, name: str, suffix: str) -> ModelProto:
    if not data:
        raise ModelError(f"{name} is empty", "the download or export was cut off; make it again")
    for offset, magic, what, way_out in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            raise ModelError(f"{name} is not an ONNX model: it is {what}", way_out)
    if data[:256].lstrip().lower().startswith(_HTML):
        raise ModelError(
            f"{name} is not an ONNX model: it is an HTML page",
            "the download link led to a web page; fetch the raw file",
        )
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        what, way_out = _SUFFIX.get(suffix, ("truncated, or not an ONNX model", "export or download it again"))
        raise ModelError(f"{name} cannot be read: it is {what}", way_out) from error
    if not model.ir_version or not model.HasField("graph") or not (model.graph.node or model.graph.output):
        what, way_out = _SUFFIX.get(suffix, ("not an ONNX model", "give an `.onnx` file that holds a graph"))
        raise ModelError(f"{name} has no ONNX graph: it is {what}", way_out)
    return model


@dataclass(frozen=True)
class _Form:
    """What an operator's schema says of its nodes."""

    inputs: range
    outputs: range
    required: frozenset[str]
    types: Mapping[str, int]

    def contradiction(self, node: NodeProto) -> str | None:
        """What is wrong with a node, in words."""
        if len(node.input) not in self.inputs or len(node.output) not in self.outputs:
            return f"has {len(node.input)} inputs and {len(node.output)} outputs, which it cannot have"
        if missing := self.required - {a.name for a in node.attribute}:
            return f"lacks the attribute `{min(missing)}`"
        wrong = (a.name for a in node.attribute if self.types.get(a.name, a.type) != a.type)
        return f"has an attribute `{wrong_name}` of another type" if (wrong_name := next(wrong, None)) else None


@cache
def _form(op_type: str, opset: int) -> _Form | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    stated = schema.attributes
    return _Form(
        range(schema.min_input, schema.max_input + 1),
        range(schema.min_output, schema.max_output + 1),
        frozenset(name for name, a in stated.items() if a.required),
        {name: int(a.type.value) for name, a in stated.items()},  # type: ignore[attr-defined]
    )


def _check_order(model: ModelProto, name: str) -> None:
    """Nodes are as their schemas say and read what nodes before them made, once; versions are numbers that can be.

    Raises: ModelError for the first that does not.
    """
    if any(not 0 < o.version < 2**31 for o in model.opset_import):
        raise ModelError(f"{name} is not a valid ONNX model: opset {[o.version for o in model.opset_import]}", _DAMAGED)
    if any(isinstance(text, bytes) for text in _texts(model)):  # what protobuf makes of a string that is no UTF-8
        raise ModelError(f"{name} is not a valid ONNX model: a name in it is no UTF-8 text", _DAMAGED)
    made: dict[str, int] = {}
    for i, node in enumerate(model.graph.node):
        for output in filter(None, node.output):
            if made.setdefault(output, i) != i:
                raise ModelError(f"{name} is not a valid ONNX model: two nodes make `{output}`", _DAMAGED)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    for node in model.graph.node:
        if any(a.ref_attr_name for a in node.attribute):
            raise ModelError(f"{name} is not a valid ONNX model: a node refers to a parameter of no function", _DAMAGED)
        form = _form(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
        if form is not None and (problem := form.contradiction(node)) is not None:
            raise ModelError(f"{name} is not a valid ONNX model: {node.op_type} node `{node.name}` {problem}", _DAMAGED)
    for i, node in enumerate(model.graph.node):
        for value in node.input:
            if made.get(value, -1) >= i:
                reader = node.name or node.op_type
                raise ModelError(
                    f"{name} is not a valid ONNX model: node `{reader}` reads `{value}` before it is made",
                    _DAMAGED,
                )


def _check_tensors(model: ModelProto, name: str) -> None:
    """Every constant has a known type, a possible shape, and as much data as they need.

    Raises: ModelError for the first that has not.
    """
    for tensor in (t for part in (model.graph, *model.functions) for t in _tensors(part)):
        if not tensor.ListFields():
            continue
        if tensor.data_type not in TensorProto.DataType.values()[1:]:
            raise ModelError(
                f"{name}: weight `{tensor.name}` has the unknown type {tensor.data_type}",
                "the file is damaged, or newer than the installed onnx: `pip install -U onnx`",
            )
        count = math.prod(tensor.dims)
        if any(d < 0 for d in tensor.dims) or count > MAX_ELEMENTS:
            raise ModelError(f"{name}: weight `{tensor.name}` has the shape {tuple(tensor.dims)}", _DAMAGED)
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        is_text = tensor.data_type == TensorProto.STRING
        bits = _BITS.get(tensor.data_type) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.HasField("raw_data") and not is_text:
            held, needed, unit = len(tensor.raw_data), -(-count * bits // 8), "bytes"
        else:
            packed: dict[int, int] = {TensorProto.COMPLEX64: 2 * count, TensorProto.COMPLEX128: 2 * count}
            needed = packed.get(tensor.data_type, -(-count * bits // 8) if tensor.data_type in _BITS else count)
            held, unit = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), "values"
        if held != needed:
            raise ModelError(
                f"{name}: weight `{tensor.name}` holds {held:,} {unit} where its shape {tuple(tensor.dims)} needs "
                f"{needed:,}",
                _DAMAGED,
            )


def _texts(model: ModelProto) -> Iterator[str | bytes]:
    yield from (o.domain for o in model.opset_import)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for part in (model.graph, *model.functions):
        yield from _names(part)


def _names(graph: GraphProto | FunctionProto) -> Iterator[str | bytes]:
    yield graph.name
    if isinstance(graph, GraphProto):
        yield from (t.name for t in graph.initializer)
        for value in (*graph.input, *graph.output, *graph.value_info):
            yield value.name
            yield from (d.dim_param for d in value.type.tensor_type.shape.dim)
    else:
        yield from (graph.domain, *graph.input, *graph.output, *graph.attribute)
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        for attribute in node.attribute:
            yield from (attribute.name, attribute.ref_attr_name)
            for subgraph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _names(subgraph)


def _tensors(graph: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Every constant of a graph, those of its nodes' attributes and subgraphs included."""
    if isinstance(graph, GraphProto):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _tensors(subgraph)


def _check_external(model: ModelProto, folder: Path | None, linked: Path | None, name: str) -> set[str]:
    """The external files; every one lies inside the model's folder and exists, as ONNX requires.

    linked: the folder that a linked model lies in; its data may be links there too (Hugging Face's cache).
    """
    locations = {
        entry.value
        for part in (model.graph, *model.functions)
        for tensor in _tensors(part)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if not locations:
        return locations
    if folder is None:
        raise ModelError(
            f"{name} keeps weights in external files: {', '.join(sorted(locations))}",
            "pass the path of the `.onnx` file, so that they can be found beside it",
        )
    homes = [home for home in (folder, linked) if home is not None]
    outside = sorted(f for f in locations if not any((folder / f).resolve().is_relative_to(h) for h in homes))
    if outside:
        raise ModelError(
            f"{name} takes weights from outside its folder: {', '.join(outside)}",
            "this is refused for safety; save the model again with its data beside it",
        )
    missing = sorted(f for f in locations if not (folder / f).is_file())
    if missing:
        raise ModelError(
            f"{name}: external weights are missing: {', '.join(missing)}", "copy these files beside the model"
        )
    return locations
