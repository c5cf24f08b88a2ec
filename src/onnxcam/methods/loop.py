"""Methods that run the model again and again: on masked pictures, on noisy ones, and on changed activations."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcam.graph.layout import Layout

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Loop:
    """What a looping method sees of a batch of N samples.

    x: the model-ready input, batch first, spatial axes `axes` (height, width). zero: the number that means 0 in x.
    index (N,) which of the batch's targets each sample has. score (N,) their scores on x. activations: per target
    layer, A (N, K, h, w).
    scores(x, index): the model's scores (n,) of the given targets on other inputs of the same kind, any number of them.
    gradients(x, index, layer=0): likewise the method's own alpha. layouts: per target layer, how it lies.
    cuts: per target layer, the value (N, ...) at which the method cuts the model, as it lies in the model.
    head_scores(layer, sample, values): the scores (n,) of a sample with that value replaced by values (n, ...).
    options: of the method. seed: of all random draws. facts: per sample, what the method wants recorded.
    """

    x: Array
    axes: tuple[int, int]
    zero: float
    index: npt.NDArray[np.int64]
    score: Floats
    activations: Sequence[Floats]
    layouts: Sequence[Layout]
    scores: Callable[[Array, npt.NDArray[np.int64]], Floats]
    gradients: Callable[..., Floats]
    cuts: Sequence[Floats]
    head_scores: Callable[[int, int, Floats], Floats]
    options: Mapping[str, Any]
    batch_size: int
    seed: int
    progress: Progress
    facts: Mapping[int, dict[str, Any]]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input."""
        return self.x.shape[self.axes[0]], self.x.shape[self.axes[1]]

    def random(self) -> np.random.Generator:
        """A generator from the start; take one per sample, so that draws do not depend on the samples beside it."""
        return np.random.default_rng(self.seed)

    def chunks(self, sample: int, items: Iterable[Floats], total: int) -> Iterator[Floats]:
        """`items` stacked, at most `batch_size` at a time; progress is reported when the next chunk is asked for."""
        pending: list[Floats] = []
        done = 0
        for item in items:
            pending.append(item)
            if len(pending) == self.batch_size or done + len(pending) == total:
                yield np.stack(pending)
                done += len(pending)
                pending.clear()
                self.progress(sample * total + done, len(self.x) * total)

    def masked(self, sample: int, masks: Iterable[Floats], total: int) -> Iterator[tuple[Floats, Floats]]:
        """Masks (H, W) that multiply a sample's input, and its scores under them, `batch_size` at a time."""
        for chunk in self.chunks(sample, masks, total):
            yield chunk, self.scores(self.under(sample, chunk), np.full(len(chunk), self.index[sample]))

    def masked_scores(self, sample: int, masks: Iterable[Floats], total: int) -> Floats:
        """Scores (total,) of one sample under masks (H, W) that multiply its input, `batch_size` at a time."""
        return np.concatenate([scores for _, scores in self.masked(sample, masks, total)])

    def changed_scores(self, layer: int, sample: int, values: Iterable[Floats], total: int) -> Floats:
        """Scores (total,) of one sample with the value at the cut replaced, `batch_size` at a time."""
        return np.concatenate([self.head_scores(layer, sample, c) for c in self.chunks(sample, values, total)])

    def under(self, sample: int, masks: Floats) -> Array:
        """A sample's input (n, ...) multiplied by masks (n, H, W), integers towards the one that means 0."""
        shape = [1] * self.x.ndim
        shape[0] = len(masks)
        for axis, length in zip(self.axes, masks.shape[1:], strict=True):
            shape[axis] = length
        x, factors = self.x[sample : sample + 1], masks.reshape(shape)
        if x.dtype.kind in "iu":
            return np.asarray(np.rint(self.zero + (x - np.float32(self.zero)) * factors), x.dtype)
        return np.asarray(x * factors, x.dtype)


LoopFunction = Callable[[Loop], list[Floats]]
