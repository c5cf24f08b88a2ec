"""What methods beyond one gradient cost, on a ResNet-50-sized graph: `OMP_NUM_THREADS=1 python -m benchmarks methods`.

One thread, CPU time, so that a busy machine does not count. Memory is the peak resident size of a process of its own.
"""

from functools import partial
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from benchmarks.graphs import pictures, resnet50
from benchmarks.measure import Row, Rows, Settings, milliseconds, ratio_row, session, session_options
from benchmarks.memory import peak
from onnxcam import Explainer
from onnxcam.methods import METHODS, Loop, looped
from onnxcam.methods.ablation import ablationcam
from onnxcam.methods.projection import first_component

SETTINGS = Settings(quick=True, threads=1, clock=process_time)
BATCH = 32
K = 2048  # channels of the last layer, 7 x 7 cells
SAMPLE = 8  # channels of which Ablation-CAM is measured by running the whole model


def explainer(model: ModelProto, method: str, **options: Any) -> Explainer:
    return Explainer(
        model,
        method=method,
        method_options=options,
        batch_size=BATCH,
        threads=1,
        session_options=session_options(SETTINGS),
    )


def ablation() -> Rows:
    """All channels through the head, against running the whole model, of which SAMPLE channels are run and scaled."""
    model, x = resnet50(), pictures(1)
    row, found = METHODS["ablationcam"], []

    @looped("ablationcam, kept", formula="", paper="", passes=row.passes, cut=row.cut, options=row.options)
    def kept(loop: Loop) -> list[np.ndarray]:
        found[:] = ablationcam(loop)
        return found

    ours = explainer(model, "ablationcam, kept")
    (explanation,) = ours.explain_tensor(x)
    masked = ModelProto()
    masked.CopyFrom(model)
    position = next(i for i, n in enumerate(masked.graph.node) if ours.layer in n.output)
    masked.graph.node[position].output[0] = "before"
    masked.graph.node.insert(position + 1, helper.make_node("Mul", ["before", "mask"], [ours.layer]))
    masked.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", K, 1, 1]))
    whole = session(masked.SerializeToString(), SETTINGS)
    channels = np.linspace(0, K - 1, SAMPLE).astype(int)
    mask = np.ones((SAMPLE, K, 1, 1), np.float32)
    mask[np.arange(SAMPLE), channels] = 0
    rerun = partial(whole.run, None, {"image": np.repeat(x, SAMPLE, axis=0), "mask": mask})
    scores = rerun()[0][:, explanation.class_index]
    expected = (explanation.score - scores) / explanation.score
    gap = np.abs(found[0][0, channels, 0, 0] - expected).max() / np.abs(found[0]).max()
    mine = median(milliseconds(partial(ours.explain_tensor, x), process_time) for _ in range(7))
    theirs = median(milliseconds(rerun, process_time) for _ in range(7)) / SAMPLE * K
    note = f"{SAMPLE} channels run, time scaled; alpha differs by {gap:.0e} of the largest"
    yield Row("methods", f"Ablation-CAM, {K} channels", mine, "whole runs", theirs, theirs / mine, target=500,
              better="higher", note=note)  # fmt: skip


def score() -> Rows:
    """A picture and 32 of its channels as masks, against a plain run of one picture and one of 32."""
    model = resnet50()
    ours, plain = explainer(model, "scorecam", channels=BATCH), session(model.SerializeToString(), SETTINGS)
    one, batch = pictures(1), pictures(BATCH)

    def theirs() -> None:
        plain.run(None, {"image": one})
        plain.run(None, {"image": batch})

    mine = partial(ours.explain_tensor, one)
    yield ratio_row(
        "methods", f"Score-CAM, {BATCH} channels", mine, "plain runs of 1 + 32", theirs, SETTINGS, target=1.1
    )


def eigen() -> Rows:
    """The first component by the smaller Gram matrix, against NumPy's full decomposition, as pytorch-grad-cam's."""
    a = np.maximum(np.random.default_rng(0).standard_normal((K, 49)), 0)

    def full() -> np.ndarray:
        centred = a.T - a.T.mean(axis=0)
        _, _, vectors = np.linalg.svd(centred, full_matrices=True)
        return np.asarray(centred @ vectors[0])

    mine, theirs = first_component(a), full()
    gap = min(np.abs(mine - theirs).max(), np.abs(mine + theirs).max()) / np.abs(theirs).max()
    note = f"maps differ by {gap:.0e} of the largest, but for the sign"
    yield ratio_row("methods", f"EigenCAM's component, {K} x 7 x 7", partial(first_component, a), "full SVD", full,
                    SETTINGS, target=20, better="higher", note=note)  # fmt: skip


PLAIN = "whole = session(resnet50().SerializeToString(), SETTINGS); whole.run(None, {'image': pictures(BATCH)})"


def memory() -> Rows:
    """Peak resident memory of two batches under masks, against one plain run of a batch, after the same imports.

    Once as it is, and once with glibc told to give large blocks back when they are freed: what loading and rewriting
    leaves free in its heap is not held by anything, but counts as resident.
    """

    start = "from benchmarks.methods import *; "
    for how, settings in (("", {}), (", freed blocks returned", {"MALLOC_MMAP_THRESHOLD_": "1048576"})):
        plain = peak(start + PLAIN, environment=settings)
        for name, method in (
            ("Score-CAM", f"'scorecam', channels={2 * BATCH}"),
            ("RISE", f"'rise', masks={2 * BATCH}"),
        ):
            code = f"{start}explainer(resnet50(), {method}).explain_tensor(pictures(1))"
            ours = peak(code, environment=settings)
            note = f"{ours / 2**20:.0f} MiB against {plain / 2**20:.0f} MiB at a batch of {BATCH}"
            case = f"{name}, peak memory{how}"
            yield Row("methods", case, against="plain run", value=ours / plain, target=1.2, note=note)


def methods(_: Settings) -> Rows:
    """One thread and CPU time, whatever the settings."""
    for rows in (ablation, score, eigen, memory):
        yield from rows()
