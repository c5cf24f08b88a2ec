"""The table of metrics: direction, range, cost and paper are data; a metric is a function of one explained sample."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from onnxcam.errors import UsageError
from onnxcam.metrics.sample import Sample

Measure = Callable[[Sample], float]


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    better: `higher` or `lower`. low, high: the ends of its range. cost: model runs per picture, besides the map.
    boxes: whether it needs to know where the object is.
    """

    name: str
    measure: Measure
    better: str
    low: float
    high: float
    cost: str
    paper: str
    boxes: bool

    def sort_key(self, value: float) -> float:
        """Ascending is best first."""
        return -value if self.better == "higher" else value


METRICS: dict[str, Metric] = {}


def metric(
    name: str, *, better: str, bounds: tuple[float, float], cost: str, paper: str, boxes: bool = False
) -> Callable[[Measure], Measure]:
    """Register a metric: the decorated function measures one sample, NaN where it cannot."""

    def register(measure: Measure) -> Measure:
        METRICS[name] = Metric(name, measure, better, *bounds, cost, paper, boxes)
        return measure

    return register


def find_metric(name: str) -> Metric:
    """The metric of that name. Raises: UsageError (exit code 2) with the nearest names."""
    if name in METRICS:
        return METRICS[name]
    close = get_close_matches(name.lower().replace("-", "_"), METRICS, 1)
    hint = f"did you mean `{close[0]}`? " if close else ""
    raise UsageError(f"there is no metric `{name}`", f"{hint}metrics: {', '.join(METRICS)}")
