"""Deep feature factorisation: the layer's activations as a few concepts, each with a map of where it is."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxcam.errors import UsageError
from onnxcam.graph.layout import Layout
from onnxcam.methods.ablation import float_layer
from onnxcam.methods.loop import Floats, Loop
from onnxcam.methods.registry import Option, looped

Doubles = npt.NDArray[np.float64]


def factorized(a: Doubles, components: int, iterations: int = 500, tolerance: float = 1e-5) -> tuple[Doubles, Doubles]:
    """Non-negative W (K, n) and H (n, cells) with W H near the non-negative a (K, cells), each row of H peaking at 1.

    Multiplicative updates (Lee and Seung, NIPS 2000), under which ||a - W H|| never grows, from the NNDSVDa start
    (Boutsidis and Gallopoulos, 2008), which nothing random enters. They end after `iterations`, or where the squared
    residual falls by less than `tolerance` of itself. n is `components`, or what the shape of a allows.
    """
    tiny = np.finfo(np.float64).tiny
    w, h = _start(a, min(components, *a.shape))
    residual = np.inf
    for _ in range(iterations):
        h *= (w.T @ a) / np.maximum(w.T @ w @ h, tiny)
        w *= (a @ h.T) / np.maximum(w @ (h @ h.T), tiny)
        before, residual = residual, float(((a - w @ h) ** 2).sum())
        if before - residual <= tolerance * residual:
            break
    peak = h.max(axis=1, keepdims=True)
    scale = np.where(peak > 0, peak, 1)
    return w * scale.T, h / scale


def _start(a: Doubles, components: int) -> tuple[Doubles, Doubles]:
    """The larger of the positive and the negative part of each singular pair, zeros filled with the mean of a."""
    u, s, v = np.linalg.svd(a, full_matrices=False)
    w, h = np.zeros((len(a), components)), np.zeros((components, a.shape[1]))
    for i in range(components):
        parts = [(np.maximum(t * u[:, i], 0), np.maximum(t * v[i], 0)) for t in (1, -1)]
        left, right = max(parts, key=lambda p: float(np.linalg.norm(p[0]) * np.linalg.norm(p[1])))
        norms = np.linalg.norm(left) * np.linalg.norm(right)
        if norms > 0:
            scale = np.sqrt(s[i] * norms)
            w[:, i], h[i] = scale * left / np.linalg.norm(left), scale * right / np.linalg.norm(right)
    mean = a.mean()
    return np.where(w > 1e-9, w, mean), np.where(h > 1e-9, h, mean)


@looped(
    "dff",
    formula="A - min A = W H, non-negative; M = H_j times the gain in score of concept W_j in every cell over none",
    paper="Collins et al., Deep Feature Factorization for Concept Discovery, ECCV 2018",
    passes="1 + components + 1 heads",
    combine="none",
    requires=float_layer,
    cut=lambda graph, layer, options: layer.name,
    options={
        "components": Option(5, "concepts that the activations are made of", low=1),
        "rank": Option(0, "which concept's map: 0 is the one that speaks for the class most, 1 the next", low=0),
    },
)
def dff(loop: Loop) -> list[Floats]:
    """The raw map of one concept, in units of the score; `found` records the gain in score of every concept.

    As in pytorch-grad-cam each channel's minimum is subtracted first, and a concept is shown to the classifier with it
    added again; here it fills every cell, so that any head can read it, class tokens as they were. The peer starts at
    random and returns all maps: here `rank` chooses. A concept that speaks against the class has a negative map.
    """
    maps = []
    for layer, cut in enumerate(loop.cuts):
        found = []
        layout, a = loop.layouts[layer], loop.activations[layer].astype(np.float64)
        for sample in range(len(a)):
            cells = a[sample].reshape(a.shape[1], -1)
            lowest = cells.min(axis=1, keepdims=True)
            w, h = factorized(cells - lowest, loop.options["components"])
            shown = np.concatenate([lowest, lowest + w], axis=1)
            scores = loop.changed_scores(layer, sample, _everywhere(cut[sample], layout, shown), shown.shape[1])
            gain = scores[1:].astype(np.float64) - scores[0]
            order, rank = np.argsort(-gain, kind="stable"), loop.options["rank"]
            if rank >= len(order):
                raise UsageError(
                    f"concept of rank {rank}, and there are {len(order)}", "count from 0, or ask for more `components`"
                )
            loop.facts[sample].setdefault("concept_gains", []).append([float(g) for g in gain[order]])
            whole = float(np.linalg.norm(cells - lowest))
            residual = float(np.linalg.norm(cells - lowest - w @ h))
            loop.facts[sample].setdefault("residual", []).append(residual / whole if whole else 0.0)
            found.append((gain[order[rank]] * h[order[rank]]).reshape(layout.grid))
        maps.append(np.stack(found).astype(np.float32))
    return maps


def _everywhere(a: Floats, layout: Layout, concepts: Doubles) -> Iterator[Floats]:
    """A sample as it lies in the model, every cell replaced by one of the concepts (K, n); class tokens stay."""
    for concept in concepts.T:
        filled = a.copy()
        if layout.is_map:
            filled[:] = concept.reshape(-1, *(1 for _ in filled.shape[1:]))
        else:
            filled[layout.prefix :] = concept
        yield filled
