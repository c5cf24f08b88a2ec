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
    """One session over a head; `batched` says whether several samples may run at once, which `verified` finds out;
    `copied` whether one picture has to be repeated for several questions, which `answers_together` does."""

    def __init__(self, head: HeadModel, session: ModelSession) -> None:
        self.head = head
        self.session = session
        self.batched = True
        self.copied = False

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

    def answers(self, value: Array, asked: Mapping[str, Array], crossing: Sequence[Array] = ()) -> list[Array]:
        """The head's outputs (n, ...) for one value (1, ...), what crosses beside it, and n questions."""
        if self.copied:
            n = len(next(iter(asked.values())))
            value, *crossing = (np.repeat(rows, n, axis=0) for rows in (value, *crossing))
        return self.run(value, asked, crossing)

    def answers_together(self, value: Array, asked: Mapping[str, Array], crossing: Sequence[Array] = ()) -> bool:
        """Whether two questions about one value (1, ...) are answered in one run as in two, with or without copies."""
        each = [{name: rows[[i]] for name, rows in asked.items()} for i in (0, 1)]
        try:
            alone = [np.concatenate(p) for p in zip(*(self.answers(value, one, crossing) for one in each), strict=True)]
        except ModelError:
            return False
        for copied in (False, True):
            self.copied = copied
            try:
                together = self.answers(value, asked, crossing)
            except ModelError:
                continue
            if all(t.shape == a.shape and np.allclose(t, a, 1e-4, 1e-6) for t, a in zip(together, alone, strict=True)):
                return True
        return False

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
