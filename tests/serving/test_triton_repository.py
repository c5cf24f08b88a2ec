"""The Triton configuration is the exported file's signature: parsed by protobuf with the field numbers of Triton's
schema, and its shapes held against a run of the file."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import helper

from onnxcam import demo, export

onnxruntime = pytest.importorskip("onnxruntime")

SCRIPT = Path(__file__).parents[2] / "examples" / "serving" / "triton_repository.py"
DEMO = demo.FOLDER / "demo.onnx"
TYPES = {
    "TYPE_BOOL": np.bool_, "TYPE_UINT8": np.uint8, "TYPE_INT8": np.int8, "TYPE_INT32": np.int32, "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64,
}  # fmt: skip
# Of DataType in Triton's model_config.proto.
NUMBERS = {"TYPE_BOOL": 1, "TYPE_UINT8": 2, "TYPE_INT8": 6, "TYPE_INT32": 8, "TYPE_INT64": 9, "TYPE_FP16": 10,
           "TYPE_FP32": 11, "TYPE_FP64": 12}  # fmt: skip


def model_config() -> Any:
    """The part of Triton's ModelConfig that is used here, as a message class."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    kinds.value.add(name="TYPE_INVALID", number=0)
    for name, number in NUMBERS.items():
        kinds.value.add(name=name, number=number)
    F = descriptor_pb2.FieldDescriptorProto
    plain = {"string": F.TYPE_STRING, "int32": F.TYPE_INT32, "int64": F.TYPE_INT64}
    messages = {
        "ModelTensorReshape": [("shape", 1, "int64*")],
        "ModelInput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 4, "int64*"),
                       ("reshape", 5, "ModelTensorReshape")],
        "ModelOutput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 3, "int64*"),
                        ("label_filename", 4, "string"), ("reshape", 5, "ModelTensorReshape")],
        "ModelDynamicBatching": [],
        "ModelConfig": [("name", 1, "string"), ("platform", 2, "string"), ("max_batch_size", 4, "int32"),
                        ("input", 5, "ModelInput*"), ("output", 6, "ModelOutput*"),
                        ("dynamic_batching", 11, "ModelDynamicBatching")],
    }  # fmt: skip
    for message, fields in messages.items():
        made = file.message_type.add(name=message)
        for name, number, kind in fields:
            base = kind.removesuffix("*")
            label = F.LABEL_REPEATED if kind.endswith("*") else F.LABEL_OPTIONAL
            field = made.field.add(name=name, number=number, label=label)
            if base in plain:
                field.type = plain[base]
            else:
                field.type = F.TYPE_ENUM if base == "DataType" else F.TYPE_MESSAGE
                field.type_name = f".inference.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parsed(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), model_config()())


@pytest.fixture(scope="module")
def triton() -> Any:
    spec = importlib.util.spec_from_file_location("triton_repository", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def declared(entry: Any, batch: int) -> tuple[int, ...]:
    """The shape that Triton hands to the file, or expects of it."""
    inside = tuple(entry.reshape.shape) if entry.HasField("reshape") else tuple(entry.dims)
    assert np.prod(inside, dtype=int) == np.prod(entry.dims, dtype=int)
    return (batch, *inside) if batch else inside


def fed_and_returned(config: Any, file: Path, batch: int) -> None:
    """Runs the file with what the configuration says, and holds what comes back against it."""
    names = {number: name for name, number in NUMBERS.items()}
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds = {i.name: np.zeros(declared(i, batch), TYPES[names[i.data_type]]) for i in config.input}
    assert set(feeds) == {i.name for i in session.get_inputs()}
    outputs = [o.name for o in config.output]
    assert outputs == [o.name for o in session.get_outputs()]
    for entry, value in zip(config.output, session.run(outputs, feeds), strict=True):
        assert (value.shape, value.dtype) == (declared(entry, batch), TYPES[names[entry.data_type]]), entry.name


def test_an_open_batch_is_batched_by_triton(triton: Any, tmp_path: Path) -> None:
    file = tmp_path / "demo.cam.onnx"
    export(DEMO, file, class_input="required", with_class=True, with_raw=True, threads=1)
    folder = triton.write_repository(file, tmp_path / "repository", "shapes", max_batch=16)
    config = parsed(folder)
    assert (config.name, config.platform, config.max_batch_size) == ("shapes", "onnxruntime_onnx", 16)
    assert config.HasField("dynamic_batching")
    assert {i.name: list(i.dims) for i in config.input} == {"image": [3, 128, 128], "class_index": [1]}
    assert [i.name for i in (*config.input, *config.output) if i.HasField("reshape")] == [
        "class_index",
        "heatmap_class",
    ]
    for batch in (1, 5):
        fed_and_returned(config, folder / "1" / "model.onnx", batch)
    labels = (folder / "labels.txt").read_text("utf-8").splitlines()
    told = {p.key: p.value for p in onnx.load(DEMO).metadata_props}
    assert labels == json.loads(told["onnxcam.labels"])
    assert [o.name for o in config.output if o.label_filename] == ["probabilities"]


def test_a_batch_that_is_built_in_stays_an_axis(triton: Any, tmp_path: Path) -> None:
    model = onnx.load(DEMO)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "one.onnx")
    export(tmp_path / "one.onnx", tmp_path / "one.cam.onnx", class_input="required", picture_input=True, threads=1)
    config = parsed(triton.write_repository(tmp_path / "one.cam.onnx", tmp_path / "repository", "one"))
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert {i.name: list(i.dims) for i in config.input} == {"picture": [1, 128, 128, 3], "class_index": [1]}
    fed_and_returned(config, tmp_path / "repository" / "one" / "1" / "model.onnx", 0)


def test_a_scalar_beside_a_built_in_batch_is_one_axis_without_a_reshape(triton: Any) -> None:
    # An empty reshape is refused by Triton where max_batch_size is 0: "scalar tensors are not supported".
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, d) for n, d in (("x", [1, 4]), ("highest", []))]
    node = helper.make_node("ReduceMax", ["x"], ["highest"], keepdims=0)
    text = triton.configuration(helper.make_model(helper.make_graph([node], "g", values[:1], values[1:])), "m", 4)
    config = text_format.Parse(text, model_config()())
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (0, [1, 4], [1])
    assert not config.output[0].HasField("reshape")


def test_external_weights_lie_beside_the_model(triton: Any, tmp_path: Path) -> None:
    onnx.save(onnx.load(DEMO), tmp_path / "d.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    export(tmp_path / "d.onnx", tmp_path / "d.cam.onnx", class_input="none", threads=1)
    folder = triton.write_repository(tmp_path / "d.cam.onnx", tmp_path / "repository", "d")
    assert sorted(p.name for p in (folder / "1").iterdir()) == ["model.onnx", "w.bin"]
    fed_and_returned(parsed(folder), folder / "1" / "model.onnx", 2)


def test_names_are_quoted(triton: Any) -> None:
    name = 'a"b\\c/é:0'
    value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4])
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([helper.make_node("Relu", [name], ["out"])], "g", [value], [out])
    text = triton.configuration(helper.make_model(graph), "m", 4)
    assert text_format.Parse(text, model_config()()).input[0].name == name


def test_a_class_with_a_default_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    export(DEMO, tmp_path / "demo.cam.onnx", verify=False)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "demo.cam.onnx"), str(tmp_path / "repository")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: input `class_index` has a default, which Triton cannot batch: export with --class-input required\n"
    )
    assert not (tmp_path / "repository").exists()
