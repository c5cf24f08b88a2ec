"""Runs the head of a cut model: many changed values at a layer, the values beside it repeated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcam.errors import ModelError, VerificationError
from onnxcam.graph.cut import HeadModel
from onnxcam.runtime import ModelSession

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class HeadRunner:
    """One session over a head; `batched` says whether several samples may run at once, which `verified` finds out."""

    def __init__(self, head: HeadModel, session: ModelSession) -> None:
        self.head = head
        self.session = session
        self.batched = True

    def scores(self, values: Array, crossing: Sequence[Array], asked: Mapping[str, Array]) -> Floats:
        """Scores (n,) of one question for values (n, ...) at the cut, what crosses beside it the same for all.

        asked: what the head's other inputs are fed, (1, ...) each.
        """
        if not self.batched and len(values) > 1:
            return np.concatenate([self.scores(v, crossing, asked) for v in values[:, np.newaxis]])
        beside = [np.repeat(v, len(values), axis=0) for v in crossing]
        return self.run(values, {name: np.repeat(v, len(values), axis=0) for name, v in asked.items()}, beside)[0]

    def run(self, values: Array, asked: Mapping[str, Array], crossing: Sequence[Array] = ()) -> list[Array]:
        """The head's outputs for values (n, ...), what is asked and what crosses beside them (n, ...)."""
        head = self.head
        feeds = {head.layer: values, **dict(zip(head.crossing, crossing, strict=True))}
        return list(self.session.run(feeds | {name: asked[name] for name in head.chosen}, head.outputs).values())

    def verified(self, values: Array, score: float, scores: Callable[[Array], Floats]) -> bool:
        """Whether the head runs in batches, tried on `values` (1, ...) and on changed ones.

        Raises: VerificationError where even alone it does not give the whole model's `score`.
        """
        probes = np.concatenate([values, values * values.dtype.type(0.5), np.zeros_like(values)])
        self.batched = False
        alone = scores(probes)
        scale = float(np.abs(alone).max()) + 1e-6
        if not np.allclose(alone[0], score, rtol=1e-3, atol=1e-3 * scale):
            raise VerificationError(
                f"cut behind `{self.head.layer}`, the model scores {alone[0]:.6g} instead of {score:.6g}",
                "choose another layer (`onnxcam layers MODEL`), and report it",
            )
        self.batched = True
        try:
            together = scores(probes)
        except ModelError:
            together = alone[:0]
        self.batched = together.shape == alone.shape and np.allclose(together, alone, rtol=1e-4, atol=1e-4 * scale)
        return self.batched
