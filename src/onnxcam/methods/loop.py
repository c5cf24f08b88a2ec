"""Methods that run the model again and again: on masked pictures, and on ablated activations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Loop:
    """What a looping method sees of a batch of N samples.

    x: the model-ready input, batch first, spatial axes `axes` (height, width). index (N,) the classes explained.
    score (N,) their scores on x. activations: per target layer, A (N, K, h, w). scores: the model's scores of the
    given classes on other inputs of the same kind, any number of them. seed: of all random draws.
    """

    x: Array
    axes: tuple[int, int]
    index: npt.NDArray[np.int64]
    score: Floats
    activations: Sequence[Floats]
    scores: Callable[[Array, npt.NDArray[np.int64]], Floats]
    batch_size: int
    seed: int
    progress: Progress

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input."""
        return self.x.shape[self.axes[0]], self.x.shape[self.axes[1]]

    def masked_scores(self, sample: int, masks: Sequence[Floats] | Iterator[Floats], total: int) -> Floats:
        """Scores (total,) of one sample under masks (H, W) that multiply its input, `batch_size` at a time."""
        found: list[Floats] = []
        pending: list[Floats] = []
        done = 0
        for mask in masks:
            pending.append(mask)
            if len(pending) == self.batch_size or done + len(pending) == total:
                found.append(
                    self.scores(self._masked(sample, np.stack(pending)), np.full(len(pending), self.index[sample]))
                )
                done += len(pending)
                pending.clear()
                self.progress(done, total)
        return np.concatenate(found)

    def _masked(self, sample: int, masks: Floats) -> Array:
        shape = [1] * self.x.ndim
        shape[0] = len(masks)
        for axis, length in zip(self.axes, masks.shape[1:], strict=True):
            shape[axis] = length
        return (self.x[sample : sample + 1] * masks.reshape(shape)).astype(self.x.dtype)


LoopFunction = Callable[[Loop], list[Floats]]
