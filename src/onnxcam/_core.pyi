from types import ModuleType

import numpy as np
from numpy.typing import NDArray

reference: ModuleType  # the same kernels without `threads`, written plainly: the oracle of the tests

def release_free_memory() -> None: ...
def weighted_sum(
    activations: NDArray[np.float32], alpha: NDArray[np.float32], relu: bool, threads: int = 0
) -> NDArray[np.float32]: ...
def resize_bilinear(
    maps: NDArray[np.float32],
    height: int,
    width: int,
    y_scale: float | None = None,
    y_offset: float = 0.0,
    x_scale: float | None = None,
    x_offset: float = 0.0,
    threads: int = 0,
) -> NDArray[np.float32]: ...
def min_max(maps: NDArray[np.float32], epsilon: float = 1e-07) -> NDArray[np.float32]: ...
def saliency_maps(
    maps: NDArray[np.float32],
    height: int,
    width: int,
    y_scale: float | None = None,
    y_offset: float = 0.0,
    x_scale: float | None = None,
    x_offset: float = 0.0,
    threads: int = 0,
    epsilon: float = 1e-07,
) -> NDArray[np.float32]: ...
def overlay(
    picture: NDArray[np.uint8], values: NDArray[np.float32], colormap: NDArray[np.uint8], opacity: float
) -> NDArray[np.uint8]: ...
