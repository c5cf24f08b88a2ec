"""What the package never does with what it is given, and that the same input gives the same bytes."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import seeds
from PIL import Image

SOURCE = seeds.ROOT / "src" / "onnxcam"
TREES = {p.relative_to(SOURCE).as_posix(): ast.parse(p.read_text("utf-8")) for p in sorted(SOURCE.rglob("*.py"))}

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle", "ctypes", "xml"}
NETWORK = {
    "socket",
    "urllib",
    "http",
    "requests",
    "httpx",
    "ftplib",
    "smtplib",
    "ssl",
    "asyncio",
    "xmlrpc",
    "webbrowser",
}
# The one server is the user's own wish, on this machine alone; the one command is npm's, which fetches the runtime of a
# page where the user asks for one.
ALLOWED = {("web/local_server.py", "http"), ("web/ort_files.py", "subprocess")}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_module_unpickles_or_reaches_the_network() -> None:
    unsafe = UNSAFE_MODULES | NETWORK | {"subprocess"}
    assert {(name, m) for name, tree in TREES.items() for m in imported(tree) if m in unsafe} <= ALLOWED


def test_the_scan_sees_what_it_forbids() -> None:
    code = "import pickle\nfrom urllib.request import urlopen\ndef f():\n    import socket\n    eval('1')\n"
    assert {*imported(ast.parse(code))} == {"pickle", "urllib", "socket"}
    assert "eval" in dict(calls(ast.parse(code)))


def test_no_module_runs_text_as_code() -> None:
    for name, called, node in ((name, *call) for name, tree in TREES.items() for call in calls(tree)):
        assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), f"{name}:{node.lineno}"
        assert not called.startswith(("pickle.", "marshal.", "yaml.load", "yaml.unsafe", "yaml.full")), name
        if called == "subprocess.run":
            assert not any(k.arg == "shell" for k in node.keywords), name


def test_numpy_never_unpickles_and_yaml_is_safe() -> None:
    for name, called, node in ((name, *call) for name, tree in TREES.items() for call in calls(tree)):
        if called in ("np.load", "numpy.load"):
            assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("allow_pickle") == "False", name
        if called.startswith("yaml."):
            assert called in ("yaml.safe_load", "yaml.parse"), name


def test_json_of_others_is_parsed_strictly_everywhere() -> None:
    """`json.loads` reads what the package itself wrote or carries; what may come from others is `parsed_json`'s."""
    own = {"jsontext.py", "demo.py", "ray.py", "web/site.py"}
    assert {name for name, tree in TREES.items() if "json.loads" in dict(calls(tree))} <= own


RUN = """
import io, json, sys
from pathlib import Path
from onnxcam.audit.run import Output, audit
from onnxcam.audit.sources import Sources
from onnxcam.explainer import Explainer
from onnxcam.exported import export
from onnxcam.report.page import write_report
model, pictures, out = sys.argv[1:]
out = Path(out)
explainer = Explainer(model, threads=1)
for name in ("gradcam", "rise"):
    options = {"masks": 16} if name == "rise" else None
    explained = Explainer(model, method=name, method_options=options, threads=1)(sorted(Path(pictures).iterdir())[0])
    explained.overlay().save(out / f"{name}.png")
    (out / f"{name}.json").write_text(json.dumps(explained.record()))
export(model, out / "exported.onnx")
sources = Sources()
sources.add_inputs([pictures])
audit(explainer, sources.items, out / "run", output=Output(values="png16"))
header = json.loads((out / "run" / "run.json").read_text())
(out / "run" / "run.json").write_text(json.dumps(header | {"created": "2026-01-01T00:00:00+00:00"}, indent=2))
write_report([out / "run"], out / "report.html")
"""


def made(seed: int, model: Path, pictures: Path, out: Path) -> dict[str, bytes]:
    out.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", RUN, model, pictures, out], check=True, env=environment, timeout=120)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_two_processes_write_the_same_bytes(tmp_path) -> None:
    """Overlays, records, values, the exported model, the report: with another hash seed too; timestamps aside."""
    pictures = tmp_path / "in"
    pictures.mkdir()
    for number, (_, data) in enumerate(seeds.pictures()[:3]):
        (pictures / f"{number}.png").write_bytes(data)
    model = tmp_path / "model.onnx"
    model.write_bytes(seeds.described().SerializeToString(deterministic=True))
    first = made(1, model, pictures, tmp_path / "a")
    second = made(2, model, pictures, tmp_path / "b")
    assert {"gradcam.png", "rise.json", "exported.onnx", "report.html", "run/records.jsonl"} <= {*first}
    assert any(name.startswith("run/overlays/") for name in first)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&\'"]]>'


def test_labels_and_names_reach_the_report_as_text_only(tmp_path) -> None:
    from onnxcam.audit.run import Output, audit
    from onnxcam.audit.sources import Sources
    from onnxcam.explainer import Explainer
    from onnxcam.report.page import write_report

    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    sources = Sources()
    sources.add(str(tmp_path / "a.png"), HOSTILE.replace("/", "_") + ".png", expected=HOSTILE)
    explainer = Explainer(seeds.convolutional(), labels=[HOSTILE, "b", "c", "d"], threads=1)
    audit(explainer, sources.items, tmp_path / "run", output=Output(values="png16"))
    text = write_report([tmp_path / "run"], tmp_path / "r.html", title=HOSTILE).path.read_text("utf-8")
    assert "<script>alert" not in text and "<img src=x" not in text
    assert "default-src 'none'" in text


def test_names_reach_the_notebook_as_text_only() -> None:
    from onnx import helper

    from onnxcam.explainer import Explainer

    model = seeds.convolutional()
    for node in model.graph.node:
        node.input[:] = [HOSTILE if v == "r" else v for v in node.input]
        node.output[:] = [HOSTILE if v == "r" else v for v in node.output]
    helper.set_model_props(model, {"onnxcam.labels": json.dumps([HOSTILE] * 4)})
    explainer = Explainer(model, threads=1)
    assert explainer.layer == HOSTILE
    bundle = explainer(np.zeros((9, 9, 3), np.uint8))._repr_mimebundle_()
    for html in (explainer._repr_html_(), bundle["text/html"]):
        assert "<script" not in html and "<img src=x" not in html
        assert "&lt;script&gt;alert(1)" in html
