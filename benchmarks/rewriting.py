"""Time to rewrite a model held in memory: parse, check, index, differentiate, assemble. No runtime is involved."""

import time

from benchmarks.graphs import NETWORKS, chain
from benchmarks.measure import Row, Rows, Settings, seconds_row
from onnxcam import OnnxCamError, rewrite

TARGETS = {"ResNet-50": 0.3, "ViT-B/16": 1.5}
SIZES = (500, 1000, 2000, 4000)


def rewriting(settings: Settings) -> Rows:
    repeats = 3 if settings.quick else 7
    for name, build in NETWORKS.items():
        data = build().SerializeToString()
        try:
            seconds = [_seconds(data, None) for _ in range(repeats)]
        except OnnxCamError as error:
            yield Row("rewrite", name, note=f"not explained: {error.message}")
            continue
        yield seconds_row("rewrite", f"{name}, last layer, {len(data) >> 20} MB", seconds, TARGETS.get(name))
    medians = []
    for size in SIZES:
        model = chain(size)
        first, data = model.graph.node[0].output[0], model.SerializeToString()
        row = seconds_row("rewrite", f"{len(model.graph.node)} nodes, gradient through all of them",
                          [_seconds(data, first) for _ in range(repeats)], 2.0 if size == 2000 else None)  # fmt: skip
        medians.append(row.value or 0.0)
        yield row
    growth = medians[-1] / medians[0]
    yield Row("rewrite", f"growth from {SIZES[0]} to {SIZES[-1]} nodes", against=f"{SIZES[-1] // SIZES[0]} is linear",
              value=growth, target=1.25 * SIZES[-1] / SIZES[0])  # fmt: skip


def _seconds(data: bytes, layer: str | None) -> float:
    start = time.perf_counter()
    rewrite(data, layer=layer)
    return time.perf_counter() - start
