"""Stages that overlap: prepare, run in batches, finish, all at the same time, in order and in bounded memory."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import length_hint
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")
F = TypeVar("F")

AHEAD = 2
"""Batches in flight besides the one that is handed out, with one runner: one is run while another is prepared."""


@dataclass(frozen=True)
class Skipped(Generic[R]):
    """What `prepare` returns in place of a prepared item that must not run: `result` goes straight to `finish`."""

    result: R


class _Call(Generic[F]):
    """A call in another thread and its outcome, for a main thread that Ctrl-C may interrupt at any moment.

    `Future.result` takes a lock in Python, and an interrupt just then leaves it locked for ever: the thread that is to
    set the result would wait for it. A SimpleQueue locks where no interrupt can get in.
    """

    def __init__(self, call: Callable[[], F]) -> None:
        self._call = call
        self._outcome: SimpleQueue[tuple[F | None, BaseException | None]] = SimpleQueue()

    def __call__(self) -> None:
        values: list[F] = []
        try:
            values.append(self._call())
        finally:
            self._outcome.put((values[0], None) if values else (None, sys.exc_info()[1]))

    def outcome(self) -> tuple[F | None, BaseException | None]:
        """What the call returned or raised; waits for it, and tells it once."""
        return self._outcome.get()

    def result(self) -> F:
        """What the call returned; waits for it, once. Raises what it raised."""
        value, error = self.outcome()
        if error is not None:
            raise error
        return cast(F, value)


def side_by_side(calls: Iterable[Callable[[], F]], threads: int) -> list[F]:
    """What calls return, in their order, made on so many threads. Raises the first error, when all have ended."""
    with ThreadPoolExecutor(threads, "onnxcam") as pool:
        waiting = [_Call(call) for call in calls]
        for call in waiting:
            pool.submit(call)
        return [call.result() for call in waiting]


class _Here:
    """Calls on the thread that submits, and at once, what a pool would call later; nothing once it is shut down."""

    def __init__(self) -> None:
        self._down = False

    def submit(self, call: Callable[..., F], *arguments: Any) -> Future[F]:
        future: Future[F] = Future()
        if self._down:
            future.cancel()
        else:
            future.set_result(call(*arguments))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._down = True


def pipelined(
    items: Iterable[T],
    prepare: Callable[[T], P | Skipped[R]],
    run: Callable[[list[P]], Sequence[R]],
    finish: Callable[[T, R], F],
    *,
    batch_size: int,
    workers: int | None = None,
    runners: int = 1,
) -> Iterator[F]:
    """What `finish(item, result)` returns of every item, in the items' order.

    Where the items can be counted, the last batches of several runners are smaller, so that they end together.

    `prepare` and `finish` run on `workers` threads (default: one per processor this process may use), `run` on
    `runners` of its own, with the prepared items of at most `batch_size` at once. Where there is a runner for every
    processor the default is that runners do it all: threads that interrupt a run of the model cost it its caches.
    Items are taken only when there is room: at most AHEAD + `runners` batches are held, however many items there are
    and however slowly results are taken.

    The first error, in the items' order, is raised and ends the iteration. Leaving early (an error, `close`, Ctrl-C)
    waits for the calls under way, drops the others, and leaves no thread behind.
    """
    left, remaining = iter(items), length_hint(items) if runners > 1 else 0
    flying: deque[tuple[_Call[None], deque[_Call[F]]]] = deque()
    here = workers is None and runners >= processors() > 1
    pool = _Here() if here else ThreadPoolExecutor(workers or processors(), "onnxcam")
    runner = ThreadPoolExecutor(runners, "onnxcam-run")

    def preparing(taken: list[T]) -> list[Future[P | Skipped[R]]]:
        return [pool.submit(prepare, item) for item in taken]

    def batch(taken: list[T], waiting: list[Future[P | Skipped[R]]], finished: deque[_Call[F]]) -> None:
        prepared = [future.result() for future in waiting or preparing(taken)]
        waiting.clear()
        ready = [p for p in prepared if not isinstance(p, Skipped)]
        results = iter(run(ready) if ready else ())
        for item, p in zip(taken, prepared, strict=True):
            call = _Call(partial(finish, item, p.result if isinstance(p, Skipped) else next(results)))
            pool.submit(call)
            finished.append(call)

    try:
        while True:
            while len(flying) < AHEAD + runners:
                size = min(batch_size, -(-remaining // (2 * runners))) if remaining > 0 else batch_size
                if not (taken := list(islice(left, size))):
                    break
                remaining -= len(taken)
                finished: deque[_Call[F]] = deque()
                running = _Call(partial(batch, taken, [] if here else preparing(taken), finished))
                runner.submit(running)
                flying.append((running, finished))
            if not flying:
                return
            running, finished = flying.popleft()
            _, error = running.outcome()
            while finished:
                yield finished.popleft().result()
            if error is not None:
                raise error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runner.shutdown(cancel_futures=True)
        pool.shutdown()


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
