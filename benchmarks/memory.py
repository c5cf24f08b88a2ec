"""Peak resident memory of whole processes: one that explains against one that only runs the model.

Both import the same and read the same file. What loading and rewriting leave free in glibc's heap counts as resident;
explainers give it back before the first picture.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from benchmarks.graphs import NETWORKS
from benchmarks.measure import Row, Rows, Settings

# Not `ru_maxrss`, which a process inherits from the one that started it.
_PEAK = "import re; print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"

_START = """
import sys, time, numpy as np
from benchmarks.graphs import pictures
from benchmarks.measure import Settings, session, session_options
from onnxcam import Explainer
path, settings, x = sys.argv[1], Settings(True, {threads}, time.perf_counter), pictures({batch})
"""
_PLAIN = """
plain = session(open(path, "rb").read(), settings)
for _ in range(3): plain.run(None, {"image": x})
"""
_EXPLAIN = """
explainer = Explainer(path, method="{method}", session_options=session_options(settings), threads={threads})
for _ in range(3): explainer.explain_tensor(x)
"""

TARGETS = {"gradcam": ("last layer", 1.10), "saliency": ("gradient at the input", 2.0)}


def memory(settings: Settings) -> Rows:
    batch = 8
    start = _START.format(threads=settings.threads, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ResNet-50",) if settings.quick else ("ResNet-50", "MobileNetV2"):
            path = Path(folder) / f"{name}.onnx"
            onnx.save(NETWORKS[name](), path)
            plain = peak(start + _PLAIN, path)
            for method, (what, target) in TARGETS.items():
                ours = peak(start + _EXPLAIN.format(method=method, threads=settings.threads), path)
                note = f"{ours / 2**20:.0f} MiB against {plain / 2**20:.0f} MiB"
                yield Row("memory", f"{name}, batch {batch}, {what}", against="plain run", value=ours / plain,
                          target=target if name == "ResNet-50" else None, note=note)  # fmt: skip


def peak(code: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> int:
    """Peak resident bytes of a Python process that runs some code."""
    command = [sys.executable, "-c", f"{code}\n{_PEAK}", *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **(environment or {})}
    )
    return int(result.stdout) * 1024
