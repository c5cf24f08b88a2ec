"""The written repository in a real Triton: it takes the configuration as it stands and answers like ONNX Runtime.

Needs the server of the wheel nvidia-pytriton, of which nothing is imported:

    pip install --no-deps nvidia-pytriton        # or with --target DIR, and TRITON_DIR=DIR/pytriton/tritonserver
    pytest tests/serving/test_triton_server.py

That server has no C++ `onnxruntime` backend; triton_onnxruntime.py stands in for it.
"""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from onnxcam import demo, export

onnxruntime = pytest.importorskip("onnxruntime")

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "examples" / "serving" / "triton_repository.py"
DEMO = demo.FOLDER / "demo.onnx"
# prctl(PR_SET_PDEATHSIG, SIGTERM): the server ends even where the test run is killed.
STOPPED_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


def found_triton() -> Path | None:
    if folder := os.environ.get("TRITON_DIR"):
        return Path(folder)
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.origin).parent / "tritonserver" if spec is not None and spec.origin else None


TRITON = found_triton()
STUB = Path("python_backend_stubs", f"{sys.version_info.major}.{sys.version_info.minor}", "triton_python_backend_stub")
if TRITON is None:
    pytest.skip("no Triton: pip install --no-deps nvidia-pytriton, or set TRITON_DIR", allow_module_level=True)
if not (TRITON / STUB).exists():
    pytest.skip(f"{TRITON} has no {STUB}", allow_module_level=True)


@dataclass(frozen=True)
class Server:
    url: str
    repository: Path

    def ask(self, path: str, body: Any = None, tensors: bytes = b"") -> tuple[int, Any]:
        """Status and JSON; by POST where there is a body, `tensors` being the binary part behind it."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v2{path}", data)
        if data and tensors:
            request.add_header("Inference-Header-Content-Length", str(len(data)))
            request.data = data + tensors
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or "null")

    def infer(self, model: str, feeds: dict[str, np.ndarray], **outputs: dict[str, int]) -> tuple[int, Any]:
        """Status and the error, or the outputs as arrays; `outputs`: those asked for, with parameters."""
        kinds = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
        inputs = [
            {"name": n, "shape": v.shape, "datatype": kinds[v.dtype.name], "parameters": {"binary_data_size": v.nbytes}}
            for n, v in feeds.items()
        ]
        body: dict[str, Any] = {"inputs": inputs}
        if outputs:
            body["outputs"] = [{"name": name, "parameters": parameters} for name, parameters in outputs.items()]
        status, told = self.ask(f"/models/{model}/infer", body, b"".join(v.tobytes() for v in feeds.values()))
        if status != 200:
            return status, told["error"]
        dtypes = {"FP32": "float32", "INT64": "int64", "BYTES": "object"}
        return status, {
            o["name"]: np.array(o["data"], dtypes[o["datatype"]]).reshape(o["shape"]) for o in told["outputs"]
        }

    def directly(self, model: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What ONNX Runtime alone returns for the file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = self.repository / model / "1" / "model.onnx"
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


def write_models(repository: Path, folder: Path) -> None:
    """`shapes` with an open batch, `one` with a batch of 1 and a scalar output, and `shapes` with two wrong
    configurations."""
    spec = importlib.util.spec_from_file_location("triton_repository", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    export(DEMO, folder / "shapes.cam.onnx", class_input="required", with_class=True, threads=1)
    for name, right, wrong in (
        ("shapes", "", ""),
        ("swapped", "dims: [ 3, 128, 128 ]", "dims: [ 128, 128, 3 ]"),
        ("unreshaped", "    reshape: { shape: [ ] }\n", ""),
    ):
        text = script.write_repository(folder / "shapes.cam.onnx", repository, name, max_batch=4) / "config.pbtxt"
        assert right in text.read_text("utf-8")
        text.write_text(text.read_text("utf-8").replace(right, wrong), "utf-8")

    model = onnx.load(DEMO)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.node.append(helper.make_node("ReduceMax", ["probabilities"], ["highest"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("highest", TensorProto.FLOAT, []))
    onnx.save(model, folder / "one.onnx")
    export(folder / "one.onnx", folder / "one.cam.onnx", class_input="required", picture_input=True, threads=1)
    script.write_repository(folder / "one.cam.onnx", repository, "one")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert TRITON is not None
    folder = tmp_path_factory.mktemp("triton")
    write_models(folder / "repository", folder)
    backend = folder / "backends" / "onnxruntime"  # copies: Triton refuses links that lead out of the folder
    shutil.copytree(TRITON / "backends" / "python", backend)
    shutil.copy(TRITON / STUB, backend)
    shutil.copy(HERE / "triton_onnxruntime.py", backend / "model.py")
    libraries = (
        str(TRITON.parents[1] / "nvidia_pytriton.libs"),
        sysconfig.get_config_var("LIBDIR"),  # where libpython is
        os.environ.get("LD_LIBRARY_PATH"),
    )
    environment = os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-c", STOPPED_WITH_US, str(TRITON / "bin" / "tritonserver"),
        f"--model-repository={folder / 'repository'}", f"--backend-directory={folder / 'backends'}",
        "--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false",
        "--exit-on-error=false", "--strict-readiness=false",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        made = Server(f"http://127.0.0.1:{port}", folder / "repository")
        until = time.monotonic() + 60
        while True:
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(log.read_text("utf-8", "replace"))
            with suppress(OSError):
                if made.ask("/health/ready")[0] == 200:
                    break
            time.sleep(0.1)
        yield made
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            with suppress(ProcessLookupError):  # what is left of the group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def pictures(*names: str) -> np.ndarray:
    """(N, 128, 128, 3) uint8."""
    return np.stack([np.asarray(Image.open(demo.PICTURES / n).convert("RGB").resize((128, 128))) for n in names])


def feeds(classes: list[int], *names: str) -> dict[str, np.ndarray]:
    """For `shapes` as the file wants them."""
    image = (pictures(*names).transpose(0, 3, 1, 2) / 255).astype(np.float32)
    return {"image": image, "class_index": np.array(classes, np.int64)}


def columns(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As Triton wants them: one number per sample on an axis of its own."""
    return given | {"class_index": given["class_index"][:, None]}


def test_triton_takes_the_configuration_as_written(server: Server) -> None:
    status, told = server.ask("")
    assert (status, told["name"]) == (200, "triton")
    print(f"Triton {told['version']}")
    _, shapes = server.ask("/models/shapes/config")
    assert (shapes["backend"], shapes["max_batch_size"]) == ("onnxruntime", 4)
    assert "dynamic_batching" in shapes
    assert [
        (i["name"], i["data_type"], i["dims"], i.get("reshape")) for i in (*shapes["input"], *shapes["output"])
    ] == [
        ("image", "TYPE_FP32", [3, 128, 128], None),
        ("class_index", "TYPE_INT64", [1], {"shape": []}),
        ("probabilities", "TYPE_FP32", [10], None),
        ("heatmap", "TYPE_FP32", [128, 128], None),
        ("heatmap_class", "TYPE_INT64", [1], {"shape": []}),
    ]
    assert [o["label_filename"] for o in shapes["output"]] == ["labels.txt", "", ""]
    _, one = server.ask("/models/one/config")
    assert (one["max_batch_size"], "dynamic_batching" in one) == (0, False)
    assert [(i["name"], i["data_type"], i["dims"], i.get("reshape")) for i in (*one["input"], *one["output"])] == [
        ("picture", "TYPE_UINT8", [1, 128, 128, 3], None),
        ("class_index", "TYPE_INT64", [1], None),
        ("probabilities", "TYPE_FP32", [1, 10], None),
        ("highest", "TYPE_FP32", [1], None),
        ("heatmap", "TYPE_FP32", [1, 128, 128], None),
    ]


def test_a_configuration_that_is_not_the_files_is_not_served(server: Server) -> None:
    _, index = server.ask("/repository/index", {})
    state = {m["name"]: (m["state"], "the configuration says" in m.get("reason", "")) for m in index}
    assert state == {
        "shapes": ("READY", False),
        "one": ("READY", False),
        "swapped": ("UNAVAILABLE", True),
        "unreshaped": ("UNAVAILABLE", True),
    }


@pytest.mark.parametrize("asked, explained", [(-1, 7), (4, 4)])
def test_a_batch_of_one_is_answered_like_onnxruntime(server: Server, asked: int, explained: int) -> None:
    given = feeds([asked], "key-spiral.jpg")
    expected = server.directly("shapes", given)
    status, told = server.infer("shapes", columns(given))
    assert status == 200, told
    assert told["heatmap_class"].tolist() == [[explained]]
    assert expected["heatmap_class"].tolist() == [explained]
    for name in ("probabilities", "heatmap"):
        np.testing.assert_allclose(told[name], expected[name], rtol=0, atol=1e-6, strict=True)


@pytest.mark.parametrize("asked", [-1, 4])
def test_a_batch_that_is_built_in_is_answered_like_onnxruntime(server: Server, asked: int) -> None:
    given = {"picture": pictures("key-spiral.jpg"), "class_index": np.array([asked])}
    expected = server.directly("one", given)
    status, told = server.infer("one", given)
    assert status == 200, told
    expected["highest"] = expected["highest"].reshape(1)
    assert set(told) == set(expected) == {"probabilities", "highest", "heatmap"}
    for name, value in told.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, strict=True)


def test_joined_requests_each_get_the_map_of_their_own_class(server: Server) -> None:
    asked = [[0], [1, 2], [3], [4, -1, 6], [9], [8], [5, 0], [2]]
    requests = [feeds(c, *["key-spiral.jpg", "ladder-ring.jpg", "demo.jpg"][: len(c)]) for c in asked]
    expected = [server.directly("shapes", r) for r in requests]
    first = [e["heatmap"][0] for e in expected]  # of one picture, for eight classes
    assert min(np.abs(a - b).max() for i, a in enumerate(first) for b in first[:i]) > 0.1

    def statistics() -> dict[str, Any]:
        return dict(server.ask("/models/shapes/stats")[1]["model_stats"][0])

    before = statistics()
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda r: server.infer("shapes", columns(r)), requests))
    after = statistics()
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] - before["execution_count"] < len(requests), "nothing was joined"
    for classes, (status, told), right in zip(asked, answers, expected, strict=True):
        assert status == 200, told
        assert told["heatmap_class"].shape == (len(classes), 1)
        np.testing.assert_array_equal(told["heatmap_class"][:, 0], right["heatmap_class"])
        for name in ("probabilities", "heatmap"):
            np.testing.assert_allclose(told[name], right[name], rtol=0, atol=1e-6, strict=True)


def test_triton_refuses_what_does_not_fit(server: Server) -> None:
    right = columns(feeds([4], "demo.jpg"))
    assert server.infer("shapes", right)[0] == 200
    for wrong, message in (
        ({"image": right["image"][:, :, :64]}, "unexpected shape for input 'image'"),
        ({"class_index": np.array([4])}, "unexpected shape for input 'class_index'"),
        ({"class_index": np.array([[4], [5]])}, "batch size"),
        ({k: np.repeat(v, 5, 0) for k, v in right.items()}, "batch-size must be <= 4"),
    ):
        status, error = server.infer("shapes", right | wrong)
        assert (status, message in error) == (400, True), error
    status, error = server.infer("one", {"picture": pictures("demo.jpg", "demo.jpg"), "class_index": np.array([4])})
    assert (status, "unexpected shape for input 'picture'" in error) == (400, True), error


def test_labels_come_with_the_classification_extension(server: Server) -> None:
    given = feeds([-1], "key-spiral.jpg")
    probabilities = server.directly("shapes", given)["probabilities"][0]
    labels = json.loads({p.key: p.value for p in onnx.load(DEMO).metadata_props}["onnxcam.labels"])
    status, told = server.infer("shapes", columns(given), probabilities={"classification": 3})
    assert (status, told["probabilities"].shape) == (200, (1, 3))
    answers = [entry.split(":") for entry in told["probabilities"][0]]
    top = np.argsort(-probabilities)[:3]
    assert [(int(i), label) for _, i, label in answers] == [(i, labels[i]) for i in top]
    np.testing.assert_allclose([float(score) for score, _, _ in answers], probabilities[top], rtol=0, atol=1e-6)
