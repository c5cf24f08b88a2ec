"""Where Chromium and onnxruntime-web come from; without them the tests that need them are skipped."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

from onnxcam.errors import OnnxCamError
from onnxcam.web.local_server import local_server
from onnxcam.web.ort_files import VERSION, ort_web_files


@pytest.fixture(scope="session")
def ort_web(request: pytest.FixtureRequest) -> Path:
    """The folder ONNXCAM_ORT_WEB, else pytest's cache, filled from npm's without the network; checksums compared."""
    kept = request.config.cache.mkdir("onnxruntime-web")
    given = os.environ.get("ONNXCAM_ORT_WEB") or (kept if any(kept.iterdir()) else None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("npm_config_offline", "true")
            _, files = ort_web_files(given, lambda text: None)
    except OnnxCamError as error:
        pytest.skip(f"no onnxruntime-web in ONNXCAM_ORT_WEB or npm's cache: {error.message}")
    if given is None:
        for name, data in files.items():
            (kept / name).write_bytes(data)
    return Path(given or kept)


@pytest.fixture(scope="session")
def chromium(ort_web: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with Browser("--window-size=1200,900") as browser:
        yield browser


@pytest.fixture(scope="module")
def served() -> Iterator[Callable[[Path], str]]:
    """Serves a folder; its origin."""
    running = []

    def serve(folder: Path) -> str:
        server = local_server(folder, 0)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def foreign_ort(tmp_path: Path) -> Path:
    """Files of a version that is not the pinned one, for sites that no browser opens."""
    folder = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    assert VERSION != "0.0.1"
    (folder / "ort.wasm.min.mjs").write_text("/*!\n * ONNX Runtime Web v0.0.1\n */")
    (folder / "ort-wasm-simd-threaded.mjs").write_text("glue")
    (folder / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    return tmp_path
