"""What a metric sees of one explained picture."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxcam.metrics import coherence, faithfulness, randomisation
from onnxcam.metrics.faithfulness import Curve, Floats, Score
from onnxcam.metrics.road import NOISE, road_lerf, road_morf


@dataclass(frozen=True)
class Settings:
    """The free numbers of the metrics.

    steps, baseline: of insertion and deletion. percentiles, noise: of ROAD, as pytorch-grad-cam's ARCC has them.
    stages: of the cascading randomisation. seed: of every random draw.
    """

    steps: int = 30
    baseline: str = "zeros"
    percentiles: tuple[float, ...] = (20, 40, 60, 80)
    noise: float = NOISE
    stages: int = randomisation.STAGES
    seed: int = 0


@dataclass(eq=False)
class Sample:
    """What a metric sees of one explained picture; what several metrics share is computed once.

    x: (C, H, W) model-ready, in real values where the model takes integers. saliency: (H, W) in [0, 1] at that size.
    raw: (h, w) signed, as the method gave it. score: probabilities (n,) of the class for samples (n, C, H, W).
    explain: the map (H, W) of another sample. raw_of_class, randomised_raws: the raw map of another class, and of each
    stage of the randomised model. placed: the map in picture coordinates (H0, W0). mask: where the object is in them;
    None where that is not known.
    """

    x: Floats
    saliency: Floats
    raw: Floats
    score: Score
    explain: Callable[[Floats], Floats]
    raw_of_class: Callable[[int], Floats]
    randomised_raws: Callable[[], Iterator[Floats]]
    class_index: int
    classes: int
    placed: Callable[[], Floats]
    mask: npt.NDArray[np.bool_] | None
    settings: Settings = field(default_factory=Settings)

    @cached_property
    def masked(self) -> Floats:
        """The sample times its map."""
        return self.x * self.saliency

    @cached_property
    def confidence(self) -> tuple[float, float]:
        """The score of the sample, and of the sample times its map."""
        before, after = self.score(np.stack([self.x, self.masked]))
        return float(before), float(after)

    @cached_property
    def coherency(self) -> float:
        return coherence.coherency(self.saliency, self.explain(self.masked))

    @cached_property
    def drop(self) -> float:
        return float(faithfulness.average_drop(*self.confidence))

    @cached_property
    def insertion(self) -> Curve:
        return faithfulness.insertion_curve(
            self.score, self.x, self.saliency, steps=self.settings.steps, baseline=self.settings.baseline
        )

    @cached_property
    def deletion(self) -> Curve:
        return faithfulness.deletion_curve(
            self.score, self.x, self.saliency, steps=self.settings.steps, baseline=self.settings.baseline
        )

    @cached_property
    def morf(self) -> float:
        return float(self._road(road_morf).mean())

    @cached_property
    def lerf(self) -> float:
        return float(self._road(road_lerf).mean())

    @property
    def road(self) -> float:
        return (self.lerf - self.morf) / 2

    def _road(self, curve: Callable[..., npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        s = self.settings
        return curve(self.score, self.x, self.saliency, percentiles=s.percentiles, noise=s.noise, seed=s.seed)

    @cached_property
    def cascade(self) -> list[float]:
        """Rank correlation of the raw map with that of each randomised stage."""
        return [randomisation.rank_correlation(self.raw, other) for other in self.randomised_raws()]

    @cached_property
    def other_class(self) -> int | None:
        """One of the other classes, drawn from the seed."""
        if self.classes < 2:
            return None
        drawn = int(np.random.default_rng((self.settings.seed, self.class_index)).integers(self.classes - 1))
        return drawn + (drawn >= self.class_index)

    @cached_property
    def in_picture(self) -> Floats:
        return self.placed()

    def located(self, measure: Callable[[Floats, npt.NDArray[np.bool_]], float]) -> float:
        return float("nan") if self.mask is None else measure(self.in_picture, self.mask)
