"""A contact sheet of Grad-CAM at the candidate layers of a model, best first: which layer shows what?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from PIL import Image

from onnxcam.check import CheckReport, LayerReport
from onnxcam.errors import UnsupportedError
from onnxcam.explainer import PIXEL_CLIP, Explainer, TargetLike
from onnxcam.explanation import Explanation
from onnxcam.graph.read import ModelSource
from onnxcam.preprocess import PictureLike, load_picture
from onnxcam.saliency import saliency_maps
from onnxcam.sheet import Panel, Row, sheet

COLUMNS = 4


def preview(
    model: ModelSource,
    report: CheckReport,
    picture: PictureLike,
    target: TargetLike = None,
    count: int = 12,
    **options: Any,
) -> tuple[Image.Image, Explanation, tuple[LayerReport, ...]]:
    """The sheet, the explanation of all its layers together, and the layers shown; one run of the model.

    report: of the same model. count: how many layers are shown at most. Of every grid the deepest layers are taken in
    turn, the automatic one first. options: as for Explainer.

    Raises: UnsupportedError where gradients reach no layer; what Explainer raises.
    """
    shown = spread([r for r in report.layers if "gradcam" in r.methods], count)
    if not shown:
        raise UnsupportedError("gradients reach no layer", "`onnxcam check MODEL` says what blocks them")
    explainer = Explainer(model, layer=[r.layer.name for r in shown], **options)
    loaded = load_picture(picture)
    explanation = explainer(loaded, target)
    view = explainer.preprocess(loaded)[1]
    panels = []
    for one, raw in zip(shown, explanation.raws, strict=True):
        (values,) = saliency_maps([raw[None]], [view])
        clip = PIXEL_CLIP if raw.shape == explainer.preprocess.size else 100.0
        image = replace(explanation, values=values, raws=(raw,), clip=clip).overlay()
        panels.append(Panel(image, caption(one, report, empty=bool(raw.max() <= 0))))
    rows = [Row("", panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    rows[0] = replace(rows[0], heading=f"Grad-CAM for {explanation.name}, {explanation.strength}; best layer first")
    return sheet([""] * min(COLUMNS, len(panels)), rows), explanation, shown


def spread(layers: Sequence[LayerReport], count: int) -> tuple[LayerReport, ...]:
    """At most `count` of the layers in their order, as many of every grid as of the others."""
    grids: dict[tuple[int, ...], list[LayerReport]] = {}
    for one in layers:
        grids.setdefault(one.layer.layout.shape, []).append(one)
    in_turn: Iterator[LayerReport] = (one for turn in zip_longest(*grids.values()) for one in turn if one is not None)
    taken = {one.layer.name for one, _ in zip(in_turn, range(count), strict=False)}
    return tuple(one for one in layers if one.layer.name in taken)


def caption(one: LayerReport, report: CheckReport, empty: bool) -> tuple[str, ...]:
    """A layer's name and what it is, in two or three lines."""
    layer = one.layer
    grid = "x".join(map(str, layer.layout.shape))
    name = layer.name + ("  (automatic)" if one is report.automatic else "")
    facts = f"{layer.op_type}, {grid}, K={layer.channels or '?'}, depth {layer.depth + 1}/{report.depth}"
    return (name, facts, "empty: no cell speaks for this class") if empty else (name, facts)
