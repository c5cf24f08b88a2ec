"""The folder of a page: complete or not there, nothing of someone else's touched, no file that is not npm's."""

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from onnxcam import demo
from onnxcam.errors import OnnxCamError, OutputError, UnsupportedError, UsageError, VerificationError
from onnxcam.web import ort_files
from onnxcam.web.local_server import local_server
from onnxcam.web.site import page, write_site

pytest.importorskip("onnxruntime")
import onnxruntime

DEMO = demo.FOLDER / "demo.onnx"


def files(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


def quick(folder: Path, ort: Path, **options: Any) -> Any:
    return write_site(DEMO, folder, ort_web=ort, verify=False, threads=1, **options)


def test_a_site_holds_the_model_the_page_the_runtime_and_nothing_else(foreign_ort: Path, tmp_path: Path) -> None:
    said: list[str] = []
    site = quick(tmp_path / "site", foreign_ort, say=said.append)
    tried = f"not {ort_files.VERSION}, which was tried, so no checksum is compared"
    assert site.ort_web == "0.0.1" and said == [f"onnxruntime-web 0.0.1 from {foreign_ort}; {tried}"]
    assert set(files(tmp_path / "site")) == set(site.files) == {
        "index.html", "model.json", "model/model.onnx", "ort/ort.wasm.min.mjs", "ort/ort-wasm-simd-threaded.mjs",
        "ort/ort-wasm-simd-threaded.wasm",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node_modules", "site"]
    session = onnxruntime.InferenceSession(tmp_path / "site" / "model" / "model.onnx")
    record = json.loads((tmp_path / "site" / "model.json").read_text("utf-8"))
    names = record["names"]
    assert [i.name for i in session.get_inputs()] == [record["input"]["name"], names["class_index"]]
    (own,) = (o.name for o in onnx.load(DEMO).graph.output)
    made = {own, names["heatmap"], names["heatmap_class"], names["class_scores"]}
    assert {o.name for o in session.get_outputs()} == made
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "site").stat().st_mode) == 0o777 & ~umask


def test_the_same_call_writes_the_same_bytes_and_replaces_its_own_site(foreign_ort: Path, tmp_path: Path) -> None:
    quick(tmp_path / "site", foreign_ort)
    first = files(tmp_path / "site")
    quick(tmp_path / "site", foreign_ort)
    assert files(tmp_path / "site") == first
    quick(tmp_path / "site", foreign_ort, method="hirescam")
    assert json.loads((tmp_path / "site" / "model.json").read_text("utf-8"))["method"] == "hirescam"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node_modules", "site"]


def test_files_of_someone_else_are_not_touched(foreign_ort: Path, tmp_path: Path) -> None:
    quick(tmp_path / "site", foreign_ort)
    (tmp_path / "site" / "CNAME").write_text("mine")
    before = files(tmp_path / "site")
    with pytest.raises(OutputError, match="holds files that `onnxcam web` did not write, such as CNAME"):
        quick(tmp_path / "site", foreign_ort)
    assert files(tmp_path / "site") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.json").write_text('{"files": ["model.json"]}')
    with pytest.raises(OutputError, match=r"such as model\.json"):
        quick(tmp_path / "mine", foreign_ort)


def test_what_fails_leaves_the_earlier_site_and_nothing_else(
    foreign_ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(tmp_path / "site", foreign_ort)
    before = files(tmp_path / "site")

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OutputError, match="No space left on device"):
        quick(tmp_path / "site", foreign_ort)
    monkeypatch.undo()
    assert files(tmp_path / "site") == before
    real = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if target.name == "site" and not self.name.endswith(".old"):
            raise OSError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OutputError, match="Permission denied"):
        quick(tmp_path / "site", foreign_ort)
    assert files(tmp_path / "site") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node_modules", "site"]


@pytest.mark.parametrize(
    ("folder", "options", "error", "says"),
    [
        ("a.txt", {}, OutputError, "is a file"),
        ("missing/site", {}, OutputError, "there is no folder"),
        ("site", {"normalize": "none"}, UsageError, r"maps in \[0, 1\]"),
        ("site", {"opacity": 1.5}, UsageError, "outside"),
        ("site", {"colormap": "pink"}, UsageError, "pink"),
        ("site", {"method": "ablationcam"}, UnsupportedError, "ablationcam"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    folder: str, options: dict[str, Any], error: type[OnnxCamError], says: str, foreign_ort: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(error, match=says):
        quick(tmp_path / folder, foreign_ort, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "node_modules"]


def test_a_model_that_no_browser_can_hold_is_refused(foreign_ort: Path, tmp_path: Path) -> None:
    model = onnx.load(DEMO)
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    os.truncate(tmp_path / "weights", 2**31)
    with pytest.raises(UnsupportedError, match="bytes with its weights; a browser's buffer holds at most 2 GiB"):
        write_site(tmp_path / "big.onnx", tmp_path / "site", ort_web=foreign_ort)
    assert not (tmp_path / "site").exists()


def test_a_model_that_is_no_classifier_is_refused(foreign_ort: Path, tmp_path: Path) -> None:
    segmenter = """<ir_version: 8, opset_import: ["" : 18]> segmenter (float[1, 3, 16, 16] x) => (float[1, 3, 16, 16] y)
      <float[3, 3, 1, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { c = Conv(x, w)  y = Relu(c) }"""
    onnx.save(onnx.parser.parse_model(segmenter), tmp_path / "s.onnx")
    with pytest.raises(UnsupportedError, match="no output holds one score per class"):
        write_site(tmp_path / "s.onnx", tmp_path / "site", ort_web=foreign_ort)
    assert not (tmp_path / "site").exists()


def test_the_policy_names_the_very_script_and_style_of_the_page() -> None:
    html = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ") and "unsafe-inline" not in policy[1]
    assert "innerHTML" not in html and not re.search(r"""(src|href)="?https?:""", html)


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program called npm, a Python script, on an otherwise empty path."""

    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "npm").write_text(f"#!{sys.executable}\nimport sys\n{script}")
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return put


def package(folder: Path, content: bytes) -> Path:
    """npm's package with other content."""
    inside = folder / "package" / "dist"
    inside.mkdir(parents=True)
    for name in ort_files.FILES:
        (inside / name).write_bytes(content)
    with tarfile.open(folder / "x.tgz", "w:gz") as archive:
        archive.add(folder / "package", "package")
    return folder / "x.tgz"


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a script")
def test_a_package_with_another_checksum_is_refused_and_leaves_nothing(
    npm: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = package(tmp_path / "forged", b"/*! ONNX Runtime Web v1.30.0 */ stolen()")
    npm(f"import shutil; shutil.copy({str(forged)!r}, sys.argv[-1])")
    said: list[str] = []
    with pytest.raises(VerificationError, match="the package itself is not that of onnxruntime-web") as error:
        write_site(DEMO, tmp_path / "site", say=said.append, threads=1)
    assert error.value.exit_code == 1
    assert said == [f"fetching onnxruntime-web {ort_files.VERSION} by `npm pack` (33 MB; its checksum is compared)"]
    assert not (tmp_path / "site").exists() and not list(tmp_path.glob(".site*"))
    # Even where the package were npm's: each file has a checksum of its own.
    monkeypatch.setattr(ort_files, "INTEGRITY", base64.b64encode(hashlib.sha512(forged.read_bytes()).digest()).decode())
    with pytest.raises(VerificationError, match=r"ort\.wasm\.min\.mjs is not that"):
        ort_files.ort_web_files(None, said.append)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for npm is a script")
def test_npm_is_asked_for_the_pinned_version_and_no_script_runs(npm: Callable[[str], None], tmp_path: Path) -> None:
    record = f"open({str(tmp_path / 'asked')!r}, 'w').write(' '.join(sys.argv[1:]))"
    npm(f"{record}; print('npm error 404', file=sys.stderr); sys.exit(1)")
    with pytest.raises(UsageError, match="failed: npm error 404") as error:
        ort_files.ort_web_files(None, lambda text: None)
    assert "--ort-web DIR" in error.value.hint
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith(f"pack onnxruntime-web@{ort_files.VERSION} --ignore-scripts --pack-destination ")


def test_without_npm_and_without_a_folder_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"npm, .* is not installed") as error:
        ort_files.ort_web_files(None, lambda text: None)
    assert "--ort-web DIR" in error.value.hint
    with pytest.raises(UsageError, match="holds no onnxruntime-web"):
        ort_files.ort_web_files(tmp_path, lambda text: None)


def test_a_folder_that_claims_the_pinned_version_has_to_have_its_checksums(foreign_ort: Path) -> None:
    script = foreign_ort / "node_modules" / "onnxruntime-web" / "dist" / "ort.wasm.min.mjs"
    script.write_text(script.read_text().replace("0.0.1", ort_files.VERSION))
    with pytest.raises(VerificationError, match="its checksum differs"):
        ort_files.ort_web_files(foreign_ort, lambda text: None)


def test_npms_own_package_has_the_pinned_checksums(ort_web: Path) -> None:
    said: list[str] = []
    version, found = ort_files.ort_web_files(ort_web, said.append)
    assert (version, said) == (ort_files.VERSION, [])
    assert {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == ort_files.FILES


def answer(port: int, path: str, host: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    found = connection.getresponse()
    found.read()
    connection.close()
    return found


def test_the_server_is_this_machines_alone_and_isolates_the_page(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "secret").write_text("secret")
    for name in ("index.html", "a.mjs", "a.wasm"):
        (tmp_path / "site" / name).write_text("x")
    (tmp_path / "site" / "ort").mkdir()
    server = local_server(tmp_path / "site", 0)
    assert server.server_address[0] == "127.0.0.1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        port = server.server_port
        here = f"localhost:{port}"
        found = answer(port, "/", here)
        assert found.status == 200
        assert found.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert found.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        kinds = {name: answer(port, f"/{name}", here).headers["Content-Type"] for name in ("a.mjs", "a.wasm")}
        assert kinds == {"a.mjs": "text/javascript", "a.wasm": "application/wasm"}
        assert answer(port, "/", "evil.example").status == 421
        assert answer(port, "/ort/", here).status == 404
        assert answer(port, "/../secret", here).status == 404
        with pytest.raises(UsageError, match=f"port {port} cannot be used"):
            local_server(tmp_path, port)
    finally:
        server.shutdown()
        server.server_close()


def cli(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxcam.cli", "web", *words]
    plain = {**os.environ, "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=plain, check=False)


def test_the_command_writes_a_site_and_says_where_to_go(foreign_ort: Path, tmp_path: Path) -> None:
    done = cli(str(DEMO), "--ort-web", str(foreign_ort), "--no-verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("demo.web: gradcam at ")
    assert "python -m http.server -d demo.web" in done.stderr
    refused = cli(str(DEMO), "--custom-ops", "x.so", cwd=tmp_path)
    assert refused.returncode == 2 and "--custom-ops is nothing that a page can do" in refused.stderr


@pytest.mark.skipif(os.name == "nt", reason="interrupts are sent otherwise")
def test_the_command_serves_until_interrupted(foreign_ort: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "onnxcam.cli", "web", str(DEMO), "--ort-web", str(foreign_ort), "--no-verify"]
    process = subprocess.Popen(
        [*command, "--serve", "0"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    with process:
        line = next(line for line in process.stderr if "shows it" in line)
        port = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert port is not None
        found = answer(int(port[1]), "/model.json", f"127.0.0.1:{port[1]}")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert (found.status, process.returncode, rest) == (200, 0, "")
