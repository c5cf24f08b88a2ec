"""Time to rewrite a model held in memory: parse, check, index, differentiate, assemble. No runtime is involved."""

from benchmarks.graphs import NETWORKS, chain
from benchmarks.measure import Row, Rows, Settings, milliseconds, seconds_row
from onnxcam import OnnxCamError, rewrite

TARGETS = {"ResNet-50": 0.3, "ViT-B/16": 1.5}
SIZES = (500, 1000, 2000, 4000)


def rewriting(settings: Settings) -> Rows:
    repeats = 3 if settings.quick else 7
    for name, build in NETWORKS.items():
        data = build().SerializeToString()
        try:
            seconds = [_seconds(data, None, settings) for _ in range(repeats)]
        except OnnxCamError as error:
            yield Row("rewrite", name, note=f"not explained: {error.message}")
            continue
        yield seconds_row("rewrite", f"{name}, last layer, {len(data) >> 20} MB", seconds, TARGETS.get(name))
    medians = []
    for size in SIZES:
        model = chain(size)
        first, data = model.graph.node[0].output[0], model.SerializeToString()
        seconds = [_seconds(data, first, settings) for _ in range(repeats)]
        case = f"{len(model.graph.node)} nodes, gradient through all of them"
        row = seconds_row("rewrite", case, seconds, 2.0 if size == 2000 else None)
        medians.append(row.value or 0.0)
        yield row
    growth = medians[-1] / medians[0]
    yield Row("rewrite", f"growth from {SIZES[0]} to {SIZES[-1]} nodes", against=f"{SIZES[-1] // SIZES[0]} is linear",
              value=growth, target=1.25 * SIZES[-1] / SIZES[0])  # fmt: skip


def _seconds(data: bytes, layer: str | None, settings: Settings) -> float:
    return milliseconds(lambda: rewrite(data, layer=layer), settings.clock) / 1e3
