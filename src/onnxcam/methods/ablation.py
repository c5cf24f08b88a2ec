"""Methods that change the layer's activations and run the head alone: the part before the layer runs once."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcam.autodiff.engine import INTEGERS
from onnxcam.errors import UnsupportedError
from onnxcam.graph.cut import past_channelwise
from onnxcam.graph.head import Head
from onnxcam.graph.index import Graph
from onnxcam.graph.layers import Layer
from onnxcam.graph.layout import Layout
from onnxcam.methods.loop import Floats, Loop
from onnxcam.methods.projection import first_component
from onnxcam.methods.registry import Option, looped

PEER = "pytorch-grad-cam"


def float_layer(graph: Graph, head: Head, layer: Layer) -> None:
    """Raises: UnsupportedError where the layer holds integers, in which 0 is not a value of its own."""
    if graph.dtype(layer.name) in INTEGERS:
        raise UnsupportedError(
            f"layer `{layer.name}` holds integers: its activations cannot be replaced", "choose a layer of floats"
        )


def _ablated_at(graph: Graph, layer: Layer, options: Mapping[str, Any]) -> str:
    movable = layer.layout.kind == "nchw" and options["quirks"] == "none"
    return past_channelwise(graph, layer.name) if movable else layer.name


@looped(
    "ablationcam",
    formula="alpha_k = (y - y_k) / y, y_k the score with channel k set to 0",
    paper="Desai and Ramaswamy, Ablation-CAM, WACV 2020",
    passes="1 + K heads",
    requires=float_layer,
    cut=_ablated_at,
    options={
        "ratio": Option(1.0, "share of the channels to ablate, the most and the least object-like", low=0.0, high=1.0),
        "quirks": Option("none", "another's numbers: see the docstring", choices=("none", PEER)),
    },
)
def ablationcam(loop: Loop) -> list[Floats]:
    """alpha (N, K, 1, 1): how much the score drops without the channel; a negative y turns the sign, as in the paper.

    Where y is 0 alpha is NaN. `ratio` r below 1 ablates the r K channels that lie most inside the object as EigenCAM
    sees it, and the r K that lie least inside; the others weigh 0 (as pytorch-grad-cam). `quirks="pytorch-grad-cam"`
    gives its numbers where activations can be negative: there a channel is not set to 0 but far below the minimum of
    all activations in its batch of 32, lower from channel to channel.
    """
    alphas = []
    for layer, a in enumerate(loop.cuts):
        weights = np.zeros(loop.activations[layer].shape[:2], np.float32)
        axis = loop.layouts[layer].channel_axis - 1
        for sample in range(len(a)):
            channels = _channels(loop.activations[layer][sample], loop.options["ratio"])
            fill = _drifting_fill(a[sample], channels) if loop.options["quirks"] == PEER else np.zeros(len(channels))
            scores = loop.changed_scores(layer, sample, _ablated(a[sample], channels, fill, axis), len(channels))
            y = loop.score[sample]
            with np.errstate(divide="ignore", invalid="ignore"):
                weights[sample, channels] = (y - scores) / y
        alphas.append(weights[:, :, np.newaxis, np.newaxis])
    return alphas


def _ablated(a: Floats, channels: npt.NDArray[np.int64], fill: npt.NDArray[Any], axis: int) -> Iterator[Floats]:
    for channel, value in zip(channels, fill, strict=True):
        changed = a.copy()
        np.moveaxis(changed, axis, 0)[channel] = value
        yield changed


def _drifting_fill(a: Floats, channels: npt.NDArray[np.int64], batch: int = 32) -> Floats:
    """What pytorch-grad-cam sets each channel to: 0 where that is the lowest, else 1e7 below the lowest so far."""
    fill = np.zeros(len(channels), np.float32)
    lowest = a.min()
    for i in range(len(channels)):
        before = lowest if i % batch == 0 else min(lowest, fill[i - 1])
        fill[i] = 0 if before == 0 else before - np.float32(1e7)
    return fill


def _channels(a: Floats, ratio: float) -> npt.NDArray[np.int64]:
    """The channels to ablate, ascending: all, or the most and the least of each in EigenCAM's object mask."""
    k = len(a)
    if ratio == 1.0:
        return np.arange(k)
    object_like = np.abs(first_component(a.reshape(k, -1).astype(np.float64)))
    object_like -= object_like.min()
    inside = object_like > 0.01 * object_like.max()
    share = np.abs(a.reshape(k, -1).astype(np.float64))
    share -= share.min(axis=1, keepdims=True)
    total = share.sum(axis=1)
    order = np.argsort(np.divide((share * inside).sum(axis=1), total, out=np.zeros(k), where=total > 0), kind="stable")
    count = max(1, int(k * ratio))
    return np.unique(np.concatenate([order[:count], order[k - count :]]))


@looped(
    "reciprocam",
    formula="M_ij = score of the head with A kept at cell (i, j) alone",
    paper="Byun and Lee, Recipro-CAM, CVPRW 2024",
    passes="1 + h w heads",
    combine="none",
    requires=float_layer,
    cut=lambda graph, layer, options: layer.name,
)
def reciprocam(loop: Loop) -> list[Floats]:
    """The raw map: the score when all channels are 0 but at one cell, for every cell; no weights, no sum.

    The lowest cell is subtracted, since a head's bias is in every cell (openvino_xai shows the min-max of the map).
    """
    maps = []
    for layer, a in enumerate(loop.cuts):
        layout = loop.layouts[layer]
        found = [
            loop.changed_scores(layer, sample, _single_cells(a[sample], layout), layout.cells)
            for sample in range(len(a))
        ]
        maps.append(lowest_at_zero(np.stack(found), layout))
    return maps


def lowest_at_zero(scores: Floats, layout: Layout) -> Floats:
    """Scores (N, cells) as maps (N, h, w) whose lowest cell is 0."""
    return np.asarray((scores - scores.min(axis=1, keepdims=True)).reshape(len(scores), *layout.grid))


def _single_cells(a: Floats, layout: Layout) -> Iterator[Floats]:
    """A sample (K, h, w), or as it lies, with one cell kept; class tokens stay."""
    by_cell = (-1, layout.cells) if layout.is_map else (layout.cells, -1)
    for cell in range(layout.cells):
        kept = np.zeros_like(a)
        if layout.kind in ("tokens", "nlc"):
            kept[: layout.prefix] = a[: layout.prefix]
            kept[layout.prefix + cell] = a[layout.prefix + cell]
        elif layout.is_map:
            kept.reshape(by_cell)[:, cell] = a.reshape(by_cell)[:, cell]
        else:
            kept.reshape(by_cell)[cell] = a.reshape(by_cell)[cell]
        yield kept
