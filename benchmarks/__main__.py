"""`python -m benchmarks [ROW ...] [--json FILE] [--quick] [--threads N] [--cpu-time]`: measure, print, write JSON."""

import argparse
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.classes import classes
from benchmarks.exporting import exporting
from benchmarks.folder import folder
from benchmarks.gradients import input_gradient
from benchmarks.installed import installed
from benchmarks.kernels import kernels
from benchmarks.measure import Row, Rows, Settings
from benchmarks.memory import memory
from benchmarks.methods import methods
from benchmarks.overhead import overhead
from benchmarks.peers import peers
from benchmarks.real import real
from benchmarks.rewriting import rewriting
from benchmarks.second_runtime import second_runtime
from benchmarks.startup import startup

ROWS: dict[str, Callable[[Settings], Rows]] = {
    "overhead": overhead,
    "rewrite": rewriting,
    "startup": startup,
    "input_gradient": input_gradient,
    "kernels": kernels,
    "export": exporting,
    "classes": classes,
    "peers": peers,
    "methods": methods,
    "memory": memory,
    "installed": installed,
    "openvino": second_runtime,
    "folder": folder,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure onnxcam side by side with others."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}, or real (default: all but real)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--quick", action="store_true", help="small cases, a fifth of the repetitions")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of every runtime (default: all cores)"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="CPU time instead of wall time; with --threads 1, for a busy machine"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    unknown = [r for r in arguments.rows if r not in {*ROWS, "real"}]
    if unknown:
        parser.error(f"no row `{unknown[0]}`; rows: {', '.join(ROWS)}, real")
    settings = Settings(arguments.quick, arguments.threads, clock)
    where = machine(settings)
    print(", ".join(f"{k} {v}" for k, v in where.items()))
    print("ORT sessions with session.force_spinning_stop=1; ratios: median of interleaved calls (quartiles)")
    rows: list[Row] = []
    for name in arguments.rows or ROWS:
        if name == "real":
            real()
            continue
        print()
        for row in ROWS[name](settings):
            rows.append(row)
            print(line(row), flush=True)
    if arguments.json:
        document = {"machine": where, "rows": [r.to_json() for r in rows]}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    missed = [f"{r.row}: {r.case}" for r in rows if r.met is False]
    print(f"\n{sum(r.met is True for r in rows)} targets met, {len(missed)} missed", *missed, sep="\n  ")


def line(row: Row) -> str:
    if row.value is None:
        return f"{row.row:<15} {row.case:<58} {row.note}"
    unit = " s" if row.unit == "s" else "x"
    digits = 3 if row.unit == "s" or row.better == "lower" else 1
    value = f"{row.value:.{digits}f}{unit}"
    spread = f"({row.low:.{digits}f}-{row.high:.{digits}f})" if row.low is not None else ""
    against = f"{row.ours:9.2f} ms" if row.ours is not None else " " * 12
    if row.against:
        against += f" : {row.theirs:9.2f} ms {row.against}" if row.theirs is not None else f"   {row.against}"
    sign, verdict = ("<=" if row.better == "lower" else ">="), {True: "met", False: "MISSED", None: ""}[row.met]
    target = f"{sign} {row.target:g}{unit} {verdict}" if row.target is not None else ""
    return f"{row.row:<15} {row.case:<58} {value:>9} {spread:<15} {target:<17} {against}  {row.note}".rstrip()


def machine(settings: Settings) -> dict[str, Any]:
    packages = ["onnxcam", "onnx", "onnxruntime", "numpy", "pillow"]
    known = (("torch", "torch"), ("grad-cam", "pytorch_grad_cam"))
    packages += [package for package, module in known if importlib.util.find_spec(module)]
    return {
        "date": date.today().isoformat(),
        "cpu": f"{processor()} ({os.cpu_count()} cores)",
        "load": round(os.getloadavg()[0], 1),
        "threads": settings.threads,
        "clock": "CPU time" if settings.clock is time.process_time else "wall time",
        "python": platform.python_version(),
        **{p: metadata.version(p) for p in packages},
    }


def processor() -> str:
    """The processor's name, family and model, and the widest vector instructions it has."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().split("\n\n", 1)[0].replace("\t", "").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    widest = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "")
    return f"{fields.get('model name', platform.machine()).strip()} {widest}".strip()


if __name__ == "__main__":
    main()
