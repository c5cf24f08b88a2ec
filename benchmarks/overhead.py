"""Grad-CAM at the automatic layer, tensor in, full-size map out, against a plain run of the untouched model.

Two sessions of one and the same model differ by some percent, by where in memory their weights happen to lie: every
row pools pairs of calls over several pairs of fresh sessions.
"""

import statistics
from functools import partial

from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, paired, session, session_options
from onnxcam import Explainer, OnnxCamError

CNNS = ("ResNet-50", "MobileNetV2", "EfficientNet-B0", "ConvNeXt-T")
SESSIONS = {1: 5, 8: 2, 32: 1}  # by batch


def overhead(settings: Settings) -> Rows:
    for name in CNNS[:2] if settings.quick else tuple(NETWORKS):
        for batch in (1, 8) if settings.quick or name not in CNNS[:2] else (1, 8, 32):
            try:
                yield _row(name, batch, settings)
            except OnnxCamError as error:
                yield Row("overhead", name, against="plain run", note=f"not explained: {error.message}")
                break


def _row(name: str, batch: int, settings: Settings) -> Row:
    model, x = NETWORKS[name](), pictures(batch)
    ours: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    layer = ""
    for _ in range(SESSIONS[batch]):
        plain = session(model.SerializeToString(), settings)
        explainer = Explainer(model, session_options=session_options(settings), threads=settings.threads)
        layer = explainer.layer
        explained, ran = partial(explainer.explain_tensor, x), partial(plain.run, None, {"image": x})
        mine, other, found = paired(explained, ran, settings, 12.0 / SESSIONS[batch], 0.0)
        ours.append(mine)
        theirs.append(other)
        ratios += found
    low, middle, high = statistics.quantiles(ratios, n=4)
    target = 1.05 if name.startswith("ViT") else 1.03
    return Row("overhead", f"{name}, batch {batch}", statistics.median(ours), "plain run", statistics.median(theirs),
               middle, low, high, target, note=f"layer {layer}, {SESSIONS[batch]} pairs of sessions")  # fmt: skip
