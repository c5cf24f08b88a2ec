"""What people hand over: each mistaken file is named, with the way out."""

import gzip
import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import onnx
import pytest
from onnx import parser

from onnxcam.errors import ModelError, UsageError
from onnxcam.graph.read import MAX_BYTES, read

MODEL = parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }'
)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights")
    return buffer.getvalue()


MISTAKEN = {
    "model.ort": (b"\x1c\0\0\0ORTM" + bytes(64), "an ORT-format model", "the `.onnx` file that it was made from"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite model", "python -m tf2onnx.convert --tflite"),
    "model.pt": (zipped(), "a PyTorch checkpoint", "torch.onnx.export"),
    "model.pth": (pickle.dumps({"weight": 1}, protocol=2), "a Python pickle", "torch.onnx.export"),
    "pickle4.pth": (pickle.dumps({"weight": 1}, protocol=4), "a PyTorch checkpoint", "torch.onnx.export"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file", "python -m tf2onnx.convert --keras"),
    "model.keras": (zipped(), "a Keras archive", ""),
    "model.engine": (b"ftrt" + bytes(64), "a TensorRT engine", "the `.onnx` file that it was built from"),
    "model.plan": (b"ptrt" + bytes(64), "a TensorRT engine", "the `.onnx` file that it was built from"),
    "other.trt": (b"\xff\xff\xff\xff" + bytes(64), "a TensorRT engine", "the `.onnx` file that it was built from"),
    "graph.pb": (b"\x0a\xff\xff\xff\xff" + bytes(64), "a TensorFlow graph", "tf2onnx.convert --graphdef"),
    "pointer.onnx": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 98\n",
        "a Git LFS pointer, not the model",
        "git lfs pull",
    ),
    "page.onnx": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "an HTML page", "fetch the raw file"),
    "page2.onnx": (b"\n\n<!doctype html>\n<html><body>Not found</body></html>", "an HTML page", "fetch the raw file"),
    "page3.onnx": (b"<HTML><body>Not found</body></HTML>", "an HTML page", "fetch the raw file"),
    "model.xml": (b'<?xml version="1.0"?><net name="m"/>', "an XML file, as OpenVINO IR is", "`.onnx` file"),
    "model.onnx.gz": (gzip.compress(b"model"), "a gzip archive", "unpack it first"),
    "dog.png": (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture", "`onnxcam explain MODEL IMAGE`"),
    "dog.jpg": (b"\xff\xd8\xff\xe0" + bytes(64), "a JPEG picture", "`onnxcam explain MODEL IMAGE`"),
    "truncated.onnx": (MODEL.SerializeToString()[:-5], "truncated, or not an ONNX model", "download it again"),
    "text.onnx": (b"hello, I am a text file\n", "not an ONNX model", ""),
    "empty.onnx": (b"", "empty", "make it again"),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_a_file_handed_over_by_mistake_is_named_with_the_way_out(name: str, tmp_path: Path) -> None:
    content, what, way_out = MISTAKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as error:
        read(tmp_path / name)
    assert name in error.value.message and what in error.value.message
    assert way_out in error.value.hint and error.value.hint
    assert error.value.exit_code == 3


@pytest.mark.parametrize("name", MISTAKEN)
def test_bytes_are_recognised_like_files(name: str) -> None:
    content, _, _ = MISTAKEN[name]
    with pytest.raises(ModelError, match="<bytes>"):
        read(content)


def test_a_file_cut_at_any_byte_is_refused_or_is_whole(tmp_path: Path) -> None:
    data = MODEL.SerializeToString()
    for length in range(len(data)):
        with pytest.raises(ModelError):
            _ = read_and_check(data[:length])


def read_and_check(data: bytes) -> None:
    """A cut between two fields parses; then the checker is what refuses it."""
    from onnxcam.graph.load import load

    load(read(data))


def test_a_model_without_a_graph_is_refused() -> None:
    for model in (onnx.ModelProto(), onnx.ModelProto(ir_version=8)):
        with pytest.raises(ModelError, match=r"has no ONNX graph|is empty"):
            read(model.SerializeToString())


def test_a_missing_file_suggests_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "resnet50.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="no such file") as error:
        read(tmp_path / "resnet5.onnx")
    assert error.value.hint == f"did you mean `{tmp_path / 'resnet50.onnx'}`?"
    with pytest.raises(ModelError) as error:
        read(tmp_path / "nowhere" / "x.onnx")
    assert error.value.hint == "check the path"


def test_a_folder_lists_the_models_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder") as error:
        read(tmp_path)
    assert error.value.hint == "give the path of an `.onnx` file"
    (tmp_path / "b.onnx").touch()
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ModelError) as error:
        read(tmp_path)
    assert error.value.hint == "it holds `a.onnx`, `b.onnx`"


def test_more_than_two_gibibytes_in_one_file_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no room
    with pytest.raises(ModelError, match="2,147,483,648 bytes, but one ONNX file holds at most 2 GiB") as error:
        read(path)
    assert "save_as_external_data=True" in error.value.hint


def test_path_string_bytes_and_proto_give_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(MODEL, path)
    data = path.read_bytes()
    sources = [path, str(path), data, bytearray(data), memoryview(data), MODEL]
    files = [read(s) for s in sources]
    assert all(f.model == MODEL for f in files)
    assert {f.sha256 for f in files[:5]} == {hashlib.sha256(data).hexdigest()}
    assert [f.name for f in files] == ["model.onnx", "model.onnx", "<bytes>", "<bytes>", "<bytes>", "<ModelProto>"]
    assert [f.folder for f in files] == [tmp_path, tmp_path, None, None, None, None]


def test_something_that_is_no_model_source_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="a model is a path, bytes or a ModelProto, not int"):
        read(7)


def external(folder: Path, location: str) -> Path:
    """A model whose one weight lies in the file `location`."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Mul(x, w) }'
    )
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_of_the_model_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match="takes weights from outside its folder") as error:
        read(external(tmp_path / "model", location))
    assert location in error.value.message and "safety" in error.value.hint


def test_a_link_out_of_the_folder_is_refused_as_external_data(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(4))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside its folder"):
        read(external(tmp_path / "model", "weights.bin"))


def test_missing_external_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"external weights are missing: weights\.bin") as error:
        read(external(tmp_path, "weights.bin"))
    assert error.value.hint == "copy these files beside the model"


def test_external_data_of_bytes_and_protos_have_no_folder_and_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(4))
    read(path)
    for source in (path.read_bytes(), onnx.load(path, load_external_data=False)):
        with pytest.raises(ModelError, match="external"):
            read(source)


def test_external_data_of_functions_and_sparse_tensors_are_looked_at_too(tmp_path: Path) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "f" : 1]> g (float[N,3] x) => (float[N,3] y) { y = f.half(x) }\n'
        '<domain: "f", opset_import: ["" : 18]> half (x) => (y) '
        "{ c = Constant <value: tensor = float {0.5}> () y = Mul(x, c) }"
    )
    hidden = onnx.ModelProto.FromString(model.SerializeToString())
    tensor = hidden.functions[0].node[0].attribute[0].t
    sparse = model.graph.sparse_initializer.add().values
    for one in (tensor, sparse):
        one.data_location = onnx.TensorProto.EXTERNAL
        one.external_data.add(key="location", value="../secret.bin")
    for name, proto in (("function.onnx", hidden), ("sparse.onnx", model)):
        (tmp_path / name).write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="takes weights from outside its folder"):
            read(tmp_path / name)


def test_a_model_and_its_external_data_have_a_limit_together(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    size = path.stat().st_size + 1000
    assert read(path, max_bytes=size).name == "model.onnx"
    with pytest.raises(ModelError, match=f"{size:,} bytes with its external files, more than {size - 1:,}"):
        read(path, max_bytes=size - 1)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no such device")
def test_a_device_is_no_model() -> None:
    with pytest.raises(ModelError, match="is no file but a device or a pipe"):
        read("/dev/zero")
