"""How the weighted activations of a layer become one map: the sum over channels, or a projection on the host."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxcam import _core
from onnxcam.errors import UsageError
from onnxcam.profiling import stage

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@stage("kernels")
def combined(activations: Floats, alpha: Floats, combine: str, threads: int = 0, sign: str = "fixed") -> Floats:
    """Raw maps (N, h, w) from A (N, K, h, w) and alpha (N, K, 1, 1) or (N, K, h, w), signed.

    combine: `sum`, `eigen` or `kpca`; `none` where A (N, 1, h, w) is the map and alpha is 1. sign: `fixed` turns a
    principal component so that its largest value is positive (SegEigenCAM's rule: negate where |min| > |max|); `raw`
    leaves it as the solver gave it; `sum` turns it to where the sum over channels is high, for weights that speak of a
    class: the component of such a map may otherwise show what speaks against it.
    """
    if combine in ("sum", "none"):
        return _core.weighted_sum(activations, alpha, relu=False, threads=threads)
    if combine not in PROJECTIONS:
        raise UsageError(f"unknown combination `{combine}`", f"use sum, {', '.join(PROJECTIONS)}")
    weighted = np.nan_to_num(activations.astype(np.float64) * alpha, nan=0.0)
    maps = np.stack([PROJECTIONS[combine](sample.reshape(len(sample), -1)) for sample in weighted])
    if sign == "fixed":
        maps *= np.where(-maps.min(axis=1, keepdims=True) > maps.max(axis=1, keepdims=True), -1.0, 1.0)
    elif sign == "sum":
        sums = weighted.sum(axis=1).reshape(len(maps), -1)
        agreement = (maps * (sums - sums.mean(axis=1, keepdims=True))).sum(axis=1, keepdims=True)
        maps *= np.where(agreement < 0, -1.0, 1.0)
    return maps.reshape(len(maps), *activations.shape[2:]).astype(np.float32)


@np.errstate(over="ignore", invalid="ignore")  # the map then says NaN
def cancelled(activations: Floats, alpha: Floats, raw: Floats) -> npt.NDArray[np.bool_]:
    """Per sample (N,), whether the terms of a sum over channels cancel to rounding noise, as before a LayerNorm.

    A score that does not change with the length of a token has sum_k G_k A_k = 0 (Euler). Weights per channel do not
    cancel so and are not looked at.
    """
    if alpha.shape[2:] == (1, 1):
        return np.zeros(len(raw), bool)
    terms = np.abs(activations * alpha).sum(axis=1).max(axis=(1, 2))
    return np.asarray(np.abs(raw).max(axis=(1, 2)) < 1e-5 * terms)


@np.errstate(over="ignore", invalid="ignore")
def first_component(x: Doubles) -> Doubles:
    """Projection (hw,) of the centred (K, hw) channels onto their first principal component.

    The first right singular vector of the (hw, K) matrix, from the smaller of its two Gram matrices.
    """
    centred = x - x.mean(axis=1, keepdims=True)
    k, cells = centred.shape
    if not np.isfinite(np.vdot(centred, centred)):
        return np.full(cells, np.nan)
    if cells <= k:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        return np.asarray(vectors[:, -1] * np.sqrt(max(values[-1], 0.0)))
    _, vectors = np.linalg.eigh(centred @ centred.T)
    return np.asarray(vectors[:, -1] @ centred)


def first_kernel_component(x: Doubles) -> Doubles:
    """First component (hw,) of kernel PCA over the cells of (K, hw) centred channels, kernel tanh(<x, y> / K + 1).

    The kernel matrix is centred in feature space; the component is sqrt(lambda) v, as scikit-learn's KernelPCA.
    """
    centred = x - x.mean(axis=1, keepdims=True)
    kernel = np.tanh(centred.T @ centred / len(x) + 1.0)
    rows = kernel.mean(axis=0, keepdims=True)
    values, vectors = np.linalg.eigh(kernel - rows - rows.T + kernel.mean())
    return np.asarray(vectors[:, -1] * np.sqrt(max(values[-1], 0.0)))


PROJECTIONS: dict[str, Callable[[Doubles], Doubles]] = {"eigen": first_component, "kpca": first_kernel_component}
