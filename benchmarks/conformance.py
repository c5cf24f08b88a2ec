"""Exported files in other runtimes: is the prediction ONNX Runtime's, is the heat map Python's?

    python -m benchmarks.conformance [--overlay] [--markdown] [--models NAME ...] [--runtimes NAME ...] [--ort-web DIR]

Every file is exported with `class_input="required"` and `verify`, then run on photographs that the model knows (on
seeded noise, where it has none), batch 1 and, where the model's batch is open, 3; for the predicted class and for
class 1. A runtime that is not installed is said to be missing (`pip install openvino tract onnx onnxruntime`; `npm
install onnxruntime-web` in a folder, `--ort-web` that folder, and Node). What a runtime refuses is tried once more with
the untouched model, which tells whose fault it is.

prediction: against the untouched model in ONNX Runtime, own: against the untouched model in the same runtime, both as a
share of the largest output; heat map: against `Explainer.explain_tensor`, on maps in [0, 1]. `--overlay`: the file that
takes and returns pictures instead, its overlay against `Explanation.overlay`, in levels of 255.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from PIL import Image

from benchmarks.real import MODELS, QUANTISED, shots
from benchmarks.real import explainer as real_explainer
from onnxcam import Explainer, demo, export, load_picture
from onnxcam.errors import OnnxCamError

SHARED = Path(__file__).parents[2] / "shared" / "models"

Feeds = Mapping[str, Any]
Run = Callable[[Path, Feeds], dict[str, Any]]


def run_onnxruntime(path: Path, feeds: Feeds, optimized: bool = True) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def run_unoptimized(path: Path, feeds: Feeds) -> dict[str, Any]:
    return run_onnxruntime(path, feeds, optimized=False)


def run_reference(path: Path, feeds: Feeds) -> dict[str, Any]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def run_openvino(path: Path, feeds: Feeds) -> dict[str, Any]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "2"})
    results = compiled({name: np.ascontiguousarray(array) for name, array in feeds.items()})
    return {name: np.asarray(array) for key, array in results.items() for name in key.get_names()}


# tract's names of element types.
_TRACT = {"float32": "f32", "float16": "f16", "int64": "i64", "uint8": "u8", "int8": "i8"}


def run_tract(path: Path, feeds: Feeds) -> dict[str, Any]:
    import tract

    model = tract.onnx().load(path)
    ordered = []
    for i in range(model.input_count()):
        array = feeds[model.input_name(i)]
        model.set_input_fact(i, ",".join([*map(str, array.shape), _TRACT[array.dtype.name]]))
        ordered.append(np.ascontiguousarray(array))
    model.analyse()
    results = model.into_model().into_runnable().run(ordered)
    names = [o.name for o in onnx.load(path, load_external_data=False).graph.output]
    return {name: value.to_numpy() for name, value in zip(names, results, strict=True)}


_ORT_WEB = """
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
const [folder, work] = process.argv.slice(1).filter(a => a !== '-');
const ort = await import(pathToFileURL(folder + '/node_modules/onnxruntime-web/dist/ort.wasm.min.mjs'));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';
const job = JSON.parse(readFileSync(work + '/job.json'));
const arrays = { float32: Float32Array, float16: Uint16Array, uint8: Uint8Array, int8: Int8Array,
                 int64: BigInt64Array };
const feeds = {};
for (const [name, [type, dims]] of Object.entries(job.feeds)) {
  const bytes = readFileSync(work + '/' + Object.keys(job.feeds).indexOf(name) + '.in');
  const data = new arrays[type](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  feeds[name] = new ort.Tensor(type, data, dims);
}
const session = await ort.InferenceSession.create(readFileSync(job.model), { executionProviders: ['wasm'] });
const results = await session.run(feeds);
const told = [];
for (const [i, name] of session.outputNames.entries()) {
  const { type, dims, data } = results[name];
  writeFileSync(work + '/' + i + '.out', Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  told.push([name, type, dims]);
}
writeFileSync(work + '/told.json', JSON.stringify(told));
"""

_web_folder: Path | None = None


def run_web(path: Path, feeds: Feeds) -> dict[str, Any]:
    """onnxruntime-web's wasm in Node: the code that a browser runs, without the browser."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        job = {"model": str(path), "feeds": {n: [a.dtype.name, a.shape] for n, a in feeds.items()}}
        (work / "job.json").write_text(json.dumps(job))
        for i, array in enumerate(feeds.values()):
            (work / f"{i}.in").write_bytes(np.ascontiguousarray(array).tobytes())
        call = ["node", "--input-type=module", "-e", _ORT_WEB, str(_web_folder), name]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if line.lstrip().startswith("Error")]
            raise RuntimeError(said[0] if said else done.stderr[-200:])
        told = json.loads((work / "told.json").read_text())
        return {
            output: np.frombuffer((work / f"{i}.out").read_bytes(), dtype).reshape(dims)
            for i, (output, dtype, dims) in enumerate(told)
        }


RUNTIMES: dict[str, tuple[str, Run]] = {
    "ONNX Runtime": ("onnxruntime", run_onnxruntime),
    "ONNX Runtime, unoptimised": ("onnxruntime", run_unoptimized),
    "onnx reference": ("onnx", run_reference),
    "OpenVINO": ("openvino", run_openvino),
    "tract": ("tract", run_tract),
    "ONNX Runtime Web": ("onnxruntime-web", run_web),
}


@dataclass(frozen=True)
class Row:
    """One model in one runtime: the largest differences over batches and classes, or what went wrong."""

    model: str
    runtime: str
    batches: tuple[int, ...] = ()
    prediction: float = 0.0
    own: float = 0.0
    same_class: bool = True
    heatmap: float = 0.0
    problem: str = ""

    def cells(self) -> list[str]:
        if self.problem:
            return [self.model, self.runtime, "fails", "", "", "", self.problem.replace("|", "/")]
        batches = ", ".join(map(str, self.batches))
        top = "" if self.same_class else " (another class)"
        differences = [f"{self.prediction:.0e}{top}", f"{self.own:.0e}", f"{self.heatmap:.0e}"]
        return [self.model, self.runtime, batches, *differences, ""]


@dataclass(frozen=True)
class OverlayRow:
    """One model's overlay in one runtime, batch 1: levels of 255 that it is off, or what went wrong."""

    model: str
    runtime: str
    largest: int = 0
    mean: float = 0.0
    problem: str = ""

    def cells(self) -> list[str]:
        if self.problem:
            return [self.model, self.runtime, "fails", "", self.problem.replace("|", "/")]
        return [self.model, self.runtime, str(self.largest), f"{self.mean:.3f}", ""]


def overlay_rows(source: Path, wanted: list[str], folder: Path) -> Iterator[OverlayRow]:
    file = folder / f"{source.stem}.cam.onnx"
    known = next((m for m in (*MODELS, *QUANTISED) if m.file == source.name), None)
    settings = (real_explainer(known) if known else Explainer(source, threads=2)).preprocess
    whole = replace(settings, fit="squash", crop_pct=1.0, resize=None)  # the file takes pictures of its own size
    try:
        export(source, file, class_input="required", overlay=True, preprocess=whole, threads=2)
    except OnnxCamError as error:
        yield OverlayRow(source.stem, "export", problem=error.message)
        return
    photograph = shots(known.shots)[0].picture if known else load_picture(demo.FOLDER / "pictures" / "demo.jpg")
    pixels = np.asarray(Image.fromarray(photograph.rgb).resize(whole.size[::-1]))
    overlay = np.asarray(Explainer(source, preprocess=whole, threads=2)(pixels).overlay()).astype(int)
    for name in wanted:
        package, run = RUNTIMES[name]
        if version(package) is None:
            yield OverlayRow(source.stem, name, problem=f"missing: {package} is not installed")
            continue
        try:
            got = run(file, {"picture": pixels[None], "class_index": np.array([-1])})["overlay"][0]
        except Exception as error:  # every runtime raises its own classes
            yield OverlayRow(source.stem, name, problem=first_line(error))
            continue
        off = np.abs(got - overlay)
        yield OverlayRow(source.stem, name, int(off.max()), float(off.mean()))


def rows(source: Path, wanted: list[str], folder: Path) -> Iterator[Row]:
    file = folder / f"{source.stem}.cam.onnx"
    try:
        export(source, file, class_input="required", threads=2)
    except OnnxCamError as error:
        yield Row(source.stem, "export", problem=error.message)
        return
    explainer = Explainer(source, threads=2)
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    picture = session.get_inputs()[0]
    output = session.get_outputs()[0].name
    sizes = [d if isinstance(d, int) else None for d in picture.shape]
    batches = (sizes[0],) if sizes[0] else (1, 3)
    for name in wanted:
        package, run = RUNTIMES[name]
        if version(package) is None:
            yield Row(source.stem, name, problem=f"missing: {package} is not installed")
            continue
        prediction, own, heatmap, same, done = 0.0, 0.0, 0.0, True, []
        problem = ""
        for batch in batches:
            x = samples(source, picture.type, (batch, *sizes[1:]))
            expected = run_onnxruntime(source, {picture.name: x})[output]
            for asked in (-1, 1):
                maps = np.stack([e.values for e in explainer.explain_tensor(x, asked)])
                try:
                    got = run(file, {picture.name: x, "class_index": np.full(batch, asked)})
                except Exception as error:  # every runtime raises its own classes
                    problem = first_line(error) + untouched(run, source, {picture.name: x})
                    break
                prediction = max(prediction, gap(expected, got[output]))
                rows_, mine = expected.reshape(batch, -1), np.asarray(got[output]).reshape(batch, -1)
                same &= bool((rows_[np.arange(batch), mine.argmax(1)] == rows_.max(1)).all())
                heatmap = max(heatmap, float(np.abs(got["heatmap"] - maps).max()))
            if problem:
                break
            own = max(own, gap(run(source, {picture.name: x})[output], got[output]))
            done.append(batch)
        yield Row(source.stem, name, tuple(done), prediction, own, same, heatmap, problem)


def gap(expected: Any, got: Any) -> float:
    a, b = (np.asarray(v).astype(np.float64) for v in (expected, got))
    return float(np.abs(a - b).max() / np.abs(a).max())


def samples(source: Path, kind: str, shape: tuple[Any, ...]) -> Any:
    """The first photographs that the model knows, as it takes them, or noise."""
    known = next((m for m in (*MODELS, *QUANTISED) if m.file == source.name), None)
    if known is not None:
        prepared = [real_explainer(known).preprocess(shot.picture)[0] for shot in shots(known.shots)[: shape[0]]]
        return np.concatenate((prepared * shape[0])[: shape[0]])
    drawn = np.random.default_rng(11).uniform(0, 1, shape)
    names = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}
    return (drawn * (127 if kind.endswith("int8)") else 1)).astype(names[kind])


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:240]


def untouched(run: Run, source: Path, feeds: Feeds) -> str:
    try:
        run(source, feeds)
    except Exception as error:  # every runtime raises its own classes
        return f" (so does the untouched model: {first_line(error)[:120]})"
    return " (the untouched model runs)"


HEADER = ("model", "runtime", "batch", "prediction", "own", "heat map", "problem")
OVERLAY_HEADER = ("model", "runtime", "largest", "mean", "problem")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conformance", description=__doc__)
    parser.add_argument("--overlay", action="store_true", help="of files with preprocessing and overlay baked in")
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/conformance.md")
    parser.add_argument("--models", nargs="*", default=[], help="file names without .onnx (default: demo and all)")
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--ort-web", type=Path, metavar="DIR", help="where `npm install onnxruntime-web` was done")
    arguments = parser.parse_args()
    found = [demo.FOLDER / "demo.onnx", *sorted(SHARED.glob("*.onnx"))]
    chosen = [p for p in found if p.stem in arguments.models] if arguments.models else found
    global _web_folder
    _web_folder = arguments.ort_web
    versions = ", ".join(f"{p} {v}" for p in dict.fromkeys(p for p, _ in RUNTIMES.values()) if (v := version(p)))
    print(f"{versions}; Python {sys.version.split()[0]}\n")
    header = OVERLAY_HEADER if arguments.overlay else HEADER
    if arguments.markdown:
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen:
            found_here = (overlay_rows if arguments.overlay else rows)(path, arguments.runtimes, Path(folder))
            for row in found_here:
                failed |= bool(row.problem) and row.runtime != "export"
                line = row.cells()
                shown = "| " + " | ".join(line) + " |" if arguments.markdown else "  ".join(f"{c:36}" for c in line)
                print(shown.rstrip(), flush=True)
    return int(failed)


def version(package: str) -> str | None:
    """Of an installed package, of npm's in the folder given; None where there is none."""
    if package == "onnxruntime-web":
        found = _web_folder / "node_modules" / package / "package.json" if _web_folder else None
        return json.loads(found.read_text())["version"] if found and found.is_file() else None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
