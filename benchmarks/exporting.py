"""`python -m benchmarks export`: the exported file against the untouched model, in ONNX Runtime, batch 1.

Grad-CAM at the automatic layer, the predicted class; `overlay`: uint8 picture in, uint8 overlay out, against the model
alone, which is given its tensor, and against the same file without map and overlay, which is given the picture too.
Pools calls over several pairs of fresh sessions, as `overhead` does and for the same reason. A row each also for the
size. Reads `shared/models` beside the repository; without it the bundled model alone.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.measure import Row, Rows, Settings, paired, session_options
from onnxcam import OnnxCamError, demo, export

SHARED = Path(__file__).parents[2] / "shared" / "models"
PAIRS_OF_SESSIONS = 4
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}


def exporting(settings: Settings) -> Rows:
    found = [demo.FOLDER / "demo.onnx", *sorted(SHARED.glob("*.onnx"))]
    for source in found[:1] if settings.quick else found:
        for overlay in (False, True):
            yield from _rows(source, overlay, settings)


def _rows(source: Path, overlay: bool, settings: Settings) -> Rows:
    case = source.stem + (", overlay" if overlay else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.onnx"
        try:
            done = export(source, file, overlay=overlay, threads=settings.threads)
        except OnnxCamError as error:
            if not overlay:
                yield Row("export", case, note=f"not exported: {error.message.splitlines()[0][:90]}")
            return
        against = {"plain run": source}
        if overlay:
            against["picture to prediction"] = predicting(source, file, Path(folder) / "p.onnx")
        for name, other in against.items():
            ours: list[float] = []
            theirs: list[float] = []
            ratios: list[float] = []
            for _ in range(PAIRS_OF_SESSIONS):
                plain, mine = (_call(path, settings) for path in (other, file))
                a, b, each = paired(mine, plain, settings, 6.0 / PAIRS_OF_SESSIONS, 0.0)
                ours.append(a)
                theirs.append(b)
                ratios += each
            low, middle, high = statistics.quantiles(ratios, n=4)
            label = case if other is source else f"{case}, of {name}"
            yield Row("export", label, statistics.median(ours), name, statistics.median(theirs), middle, low, high,
                      1.10 if overlay else 1.05, note=f"{done.added_nodes:+} nodes, {done.added_bytes:+,} bytes, "
                      f"{PAIRS_OF_SESSIONS} pairs of sessions")  # fmt: skip
    if not overlay:
        before = done.bytes - done.added_bytes
        share = done.added_bytes / (0.01 * before + 20_000)
        yield Row("export", f"{case}: bytes added / (1 % + 20 kB)", value=share, target=1.0,
                  note=f"{done.added_bytes:+,} of {before:,} bytes")  # fmt: skip


def predicting(source: Path, exported: Path, path: Path) -> Path:
    """The exported file with the outputs of the model alone, and what these need; written to `path`."""
    own = {o.name for o in onnx.load(source, load_external_data=False).graph.output}
    model = onnx.load(exported)
    outputs = [o for o in model.graph.output if o.name in own]
    live, nodes = set(own), []
    for node in reversed(model.graph.node):
        if live & set(node.output):
            nodes.append(node)
            live.update(node.input)
    inputs = [i for i in model.graph.input if i.name in live]
    constants = [t for t in model.graph.initializer if t.name in live]
    graph = onnx.helper.make_graph(nodes[::-1], "predicting", inputs, outputs, constants)
    onnx.save(onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version), path)
    return path


def _call(path: Path, settings: Settings) -> Any:
    """A run of the file on seeded noise; open sizes are 1, or 224 for height and width."""
    session = ort.InferenceSession(path, session_options(settings), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else (1 if axis == 0 else 224) for axis, d in enumerate(given.shape)]
    dtype = DTYPES[given.type]
    noise = np.random.default_rng(0).uniform(0, 1, shape)
    x = (noise * (127 if dtype.endswith("int8") else 1)).astype(dtype)
    return partial(session.run, None, {given.name: x})
