"""Where the time of an explanation goes, by stage. While nobody asks, a stage costs one look at an empty list."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Profile:
    """Wall seconds and calls by stage, in the order of first use, and of the whole; stages do not overlap in a thread.

    A stage called by another counts as part of the other.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    total: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, stage: str, seconds: float) -> None:
        """One more call of a stage."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
            self.calls[stage] = self.calls.get(stage, 0) + 1


_profiles: list[Profile] = []
_inside = threading.local()


@contextmanager
def profile() -> Iterator[Profile]:
    """Collect the stages of what runs inside, in every thread."""
    found = Profile()
    _profiles.append(found)
    start = time.perf_counter()
    try:
        yield found
    finally:
        found.total = time.perf_counter() - start
        _profiles.remove(found)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function whose time belongs to a stage."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _profiles or getattr(_inside, "stage", False):
                return function(*args, **kwargs)
            _inside.stage = True
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                _inside.stage = False
                for found in _profiles:
                    found.add(name, elapsed)

        return timed

    return decorate
