"""The serving example, really started: concurrent requests get Python's results, wrong ones a designed 4xx."""

import base64
import http.client
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxcam import Explainer, demo, export
from onnxcam.explanation import Explanation

for name in ("onnxruntime", "fastapi", "uvicorn"):
    pytest.importorskip(name, reason=f"the serving example needs {name}")

APP = Path(__file__).parents[2] / "examples" / "serving" / "fastapi_app.py"
DEMO = demo.FOLDER / "demo.onnx"
PICTURES = sorted(p for p in demo.PICTURES.iterdir() if p.suffix in (".jpg", ".png"))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    data: bytes

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.data))


@dataclass(frozen=True)
class Server:
    port: int

    def post(self, path: str, data: Any, headers: dict[str, str] | None = None, chunked: bool = False) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, data, headers or {}, encode_chunked=chunked)
        found = connection.getresponse()
        answer = Answer(found.status, found.headers, found.read())
        connection.close()
        return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("served") / "demo.cam.onnx"
    export(DEMO, file, with_class=True, with_raw=True, threads=1)
    command = [sys.executable, str(APP), str(file), "--port", "0", "--workers", "4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            pytest.fail("".join(said))
        try:
            yield Server(int(found[1]))
        finally:
            process.terminate()
            process.stderr.read()


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(DEMO, threads=1)


def same(answer: dict[str, Any], expected: Explanation, explainer: Explainer) -> None:
    assert (answer["class_index"], answer["label"]) == (expected.class_index, expected.label)
    assert answer["score"] == pytest.approx(float(expected.scores[expected.class_index]), abs=1e-6)
    assert [t["class_index"] for t in answer["top"]] == [t.index for t in expected.top]
    assert tuple(answer["region"]) == expected.region
    assert expected.picture is not None
    (tensor,) = explainer.explain_tensor(explainer.preprocess(expected.picture)[0], expected.class_index)
    got = np.frombuffer(base64.b64decode(answer["heatmap"]["float32"]), np.float32).reshape(answer["heatmap"]["size"])
    assert np.abs(got - tensor.values).max() <= 1e-5
    assert answer["is_empty"] == expected.is_empty


def test_concurrent_requests_get_pythons_results(server: Server, explainer: Explainer) -> None:
    jobs = [(picture, target) for picture in PICTURES for target in (None, "umbrella", "3")] * 2
    expected = {job: explainer(job[0], job[1]) for job in set(jobs)}
    assert len({e.class_index for e in expected.values()}) > 3
    assert len({e.is_empty for e in expected.values()}) == 2

    def ask(job: tuple[Path, str | None]) -> Answer:
        path = "/explain" if job[1] is None else f"/explain?target={job[1]}"
        return server.post(path, job[0].read_bytes())

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, jobs))
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.status == 200, answer.data
        same(answer.json, expected[job], explainer)


def test_the_overlay_is_pythons(server: Server, explainer: Explainer) -> None:
    found = server.post("/overlay?target=key&opacity=0.4&colormap=viridis&format=png", PICTURES[0].read_bytes())
    assert (found.status, found.headers["Content-Type"]) == (200, "image/png")
    expected = explainer(PICTURES[0], "key")
    assert found.headers["X-Class-Index"] == str(expected.class_index)
    drawn = np.asarray(Image.open(io.BytesIO(found.data)), np.int16)
    assert np.abs(drawn - np.asarray(expected.overlay("viridis", 0.4), np.int16)).max() <= 1
    smaller = server.post("/overlay?target=key&opacity=0.4&colormap=viridis", PICTURES[0].read_bytes())
    assert smaller.headers["Content-Type"] == "image/jpeg"
    assert np.abs(np.asarray(Image.open(io.BytesIO(smaller.data)), np.int16) - drawn).mean() < 4


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "data", "status", "says"),
    [
        ("/explain", b"", 400, "no picture"),
        ("/explain", b"GIF89a not really", 415, "the body is not a picture"),
        ("/explain", PICTURES[0].read_bytes()[:2000], 422, "damaged or cut short"),
        ("/explain", png(8000, 7000), 413, "more than 50000000 pixels"),
        ("/explain?target=dog", PICTURES[0].read_bytes(), 422, "no class is called `dog`"),
        ("/explain?target=10", PICTURES[0].read_bytes(), 422, "class 10"),
        ("/overlay?colormap=pink", PICTURES[0].read_bytes(), 422, "unknown colormap `pink`"),
        ("/overlay?opacity=2", PICTURES[0].read_bytes(), 422, "less than or equal to 1"),
    ],
)
def test_what_a_client_did_wrong_is_said(server: Server, path: str, data: bytes, status: int, says: str) -> None:
    found = server.post(path, data)
    assert (found.status, says in found.data.decode()) == (status, True), found.data


def test_a_body_that_is_too_large_is_refused_unread_and_whatever_it_says_of_itself(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/explain")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders(b"x")  # and nothing more: an answer means that the rest was not waited for
    found = connection.getresponse()
    assert (found.status, b"more than 10485760 bytes" in found.read()) == (413, True)
    connection.close()
    parts = (b"x" * 2**20 for _ in range(11))
    try:
        answer = server.post("/explain", parts, {"Transfer-Encoding": "chunked"}, chunked=True)
        assert answer.status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server hung up while the rest was sent
    assert server.post("/explain", PICTURES[0].read_bytes()).status == 200
