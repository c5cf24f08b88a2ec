"""How things are timed: calls of both sides one after the other, and the median of the ratios of such neighbours.

A ratio of two calls that ran within milliseconds of each other forgets what else the machine was doing; a ratio of two
averages does not. The spread given is that of the ratios, first to third quartile.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import onnxruntime as ort


@dataclass(frozen=True)
class Settings:
    """`quick`: a fifth of the repetitions and the small cases only. `threads`: of every runtime and library. `clock`:
    wall time, or the CPU time of this process, which on one thread does not see what else the machine is doing."""

    quick: bool
    threads: int
    clock: Callable[[], float] = time.perf_counter

    def repeats(self, seconds: float, budget: float) -> int:
        """How many pairs of about `seconds` each fit in `budget` seconds; 7 at least."""
        return max(7, min(200, int(budget * (0.2 if self.quick else 1.0) / max(seconds, 1e-9))))


@dataclass(frozen=True)
class Row:
    """One line of the table: times in milliseconds, the `value` that has a target, its spread, whether it is met.

    `value` is a ratio (unit `x`) or seconds (`s`), `low` and `high` its quartiles. `better` says which way the target
    points: `lower` (at most) or `higher` (at least). What could not be measured has only a `note`.
    """

    row: str
    case: str
    ours: float | None = None
    against: str = ""
    theirs: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    better: str = "lower"
    unit: str = "x"
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


Rows = Iterator[Row]


def milliseconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    call()
    return (clock() - start) * 1e3


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], settings: Settings, budget: float, pause: float
) -> tuple[float, float, list[float]]:
    """Median milliseconds of both, and ratios of ours to theirs, each of two pairs: ours, theirs, theirs, ours.

    A call that follows its like finds the caches warm, so that both orders count. `pause` seconds before every call
    let the spinning threads of another library go to sleep.
    """
    warm = 0.0
    for _ in range(2):
        warm = milliseconds(ours) + milliseconds(theirs)
    a: list[float] = []
    b: list[float] = []
    for i in range(2 * (settings.repeats(warm / 1e3, budget) // 2 + 1)):
        for side, call in ((a, ours), (b, theirs)) if i % 2 else ((b, theirs), (a, ours)):
            time.sleep(pause)
            side.append(milliseconds(call, settings.clock))
    ratios = [(a[i] + a[i + 1]) / (b[i] + b[i + 1]) for i in range(0, len(a), 2)]
    return statistics.median(a), statistics.median(b), ratios


def ratio_row(
    row: str,
    case: str,
    ours: Callable[[], object],
    against: str,
    theirs: Callable[[], object],
    settings: Settings,
    *,
    target: float | None,
    better: str = "lower",
    budget: float = 12.0,
    pause: float = 0.0,
    note: str = "",
) -> Row:
    """Time a pair. The ratio is ours / theirs, or, where more is better, theirs / ours ("times faster")."""
    mine, other, ratios = paired(ours, theirs, settings, budget, pause)
    if better == "higher":
        ratios = [1 / r for r in ratios]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(row, case, mine, against, other, middle, low, high, target, better, note=note)


def seconds_row(row: str, case: str, seconds: list[float], target: float | None, note: str = "") -> Row:
    """A row whose value is the median of some seconds."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Row(row, case, middle * 1e3, value=middle, low=low, high=high, target=target, unit="s", note=note)


def session_options(settings: Settings) -> ort.SessionOptions:
    """The same for every session that is compared.

    `force_spinning_stop`: a session's threads spin for the next work only during a run. With ORT's default they go on
    spinning for milliseconds after it and take the cores from whatever runs next, here the other session of the pair.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = settings.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def session(model: bytes, settings: Settings) -> ort.InferenceSession:
    return ort.InferenceSession(model, session_options(settings), providers=["CPUExecutionProvider"])
