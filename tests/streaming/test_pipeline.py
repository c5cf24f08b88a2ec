"""Overlapped stages: order, bounds, errors and leaving, with stages that can be held up at will."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from onnxcam.pipeline import AHEAD, Skipped, pipelined, processors, side_by_side

NUMBERS = list(range(37))


def quick(items, **options):
    """Doubles, in a batch, what is one more than each item."""
    return pipelined(
        items,
        lambda n: n + 1,
        lambda batch: [2 * p for p in batch],
        lambda n, r: (n, r),
        **{"batch_size": 4, **options},
    )


@pytest.mark.parametrize("batch_size", [1, 4, 37, 100])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("runners", [1, 3])
def test_every_item_is_finished_once_with_its_own_result_and_in_order(batch_size, workers, runners) -> None:
    options = {"batch_size": batch_size, "workers": workers, "runners": runners}
    assert list(quick(NUMBERS, **options)) == [(n, 2 * (n + 1)) for n in NUMBERS]
    assert list(quick([], **options)) == []


def test_order_is_kept_where_the_stages_take_their_time() -> None:
    rng = random.Random(0)

    def slow(value):
        time.sleep(rng.random() / 200)
        return value

    found = list(
        pipelined(NUMBERS, slow, lambda b: [slow(p) for p in b], lambda n, r: slow(r), batch_size=3, workers=5)
    )
    assert found == NUMBERS


def test_batches_are_full_but_the_last() -> None:
    sizes: list[int] = []

    def run(batch):
        sizes.append(len(batch))
        return batch

    list(pipelined(NUMBERS, int, run, lambda n, r: r, batch_size=5))
    assert sizes == [5] * 7 + [2]


def test_the_last_batches_of_several_runners_are_smaller() -> None:
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return batch

    list(pipelined(list(range(20)), int, run, lambda n, r: r, batch_size=4, runners=2))
    # a quarter, rounded up, of 20, 16, 12, 9, 6, 4, 3, 2 and 1
    assert sorted(sizes, reverse=True) == [4, 4, 3, 3, 2, 1, 1, 1, 1]
    sizes.clear()
    list(pipelined((n for n in range(20)), int, run, lambda n, r: r, batch_size=4, runners=2))
    assert sizes == [4, 4, 4, 4, 4]  # cannot be counted


def test_no_more_items_are_taken_than_fit_however_slowly_results_are_taken() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = quick(endless(), batch_size=4)
    assert taken == []  # nothing happens before the first result is asked for
    for n in range(9):
        assert next(results) == (n, 2 * (n + 1))
        time.sleep(0.01)
        assert len(taken) <= 4 * (n // 4 + 1 + AHEAD)
    results.close()


def test_the_three_stages_work_at_the_same_time() -> None:
    """Each stage waits for the two others: without overlap nobody would ever come."""
    meeting = threading.Barrier(3)

    def prepare(n):
        if n == 2:
            meeting.wait(10)
        return n

    def run(batch):
        if batch == [1]:
            meeting.wait(10)
        return batch

    def finish(n, r):
        if n == 0:
            meeting.wait(10)
        return r

    assert list(pipelined(range(5), prepare, run, finish, batch_size=1, workers=2)) == [0, 1, 2, 3, 4]


def test_runners_for_every_processor_do_everything_themselves() -> None:
    seen: set[str] = set()

    def told(value):
        seen.add(threading.current_thread().name.rsplit("_", 1)[0])
        return value

    runners = max(2, processors())
    assert list(pipelined(NUMBERS, told, told, lambda n, r: told(n), batch_size=2, runners=runners)) == NUMBERS
    assert seen == {"onnxcam-run"}


def test_several_runs_are_made_at_the_same_time_and_order_is_kept() -> None:
    """Each run waits for two others: with fewer runners nobody would ever come."""
    meeting = threading.Barrier(3)

    def run(batch):
        meeting.wait(10)
        return batch

    assert list(pipelined(range(12), int, run, lambda n, r: r, batch_size=2, runners=3)) == list(range(12))


def test_what_is_skipped_is_not_run_and_keeps_its_place() -> None:
    ran: list[int] = []

    def run(batch):
        ran.extend(batch)
        return [10 * p for p in batch]

    found = pipelined(
        range(10), lambda n: Skipped(-n) if n % 3 == 1 or n > 7 else n, run, lambda n, r: (n, r), batch_size=2
    )
    assert list(found) == [(n, -n if n % 3 == 1 or n > 7 else 10 * n) for n in range(10)]
    assert ran == [0, 2, 3, 5, 6]


@pytest.mark.parametrize("runners", [1, max(2, processors())])  # the latter do everything themselves
@pytest.mark.parametrize("stage", ["items", "prepare", "run", "finish"])
def test_an_error_of_any_stage_is_raised_and_leaves_no_thread(stage: str, runners: int) -> None:
    def fails(name, value):
        if name == stage and value == 13:
            raise ValueError("13")
        return value

    before = threading.active_count()
    results = pipelined(
        (fails("items", n) for n in NUMBERS),
        lambda n: fails("prepare", n),
        lambda batch: [fails("run", p) for p in batch],
        lambda n, r: fails("finish", r),
        batch_size=2,
        runners=runners,
    )
    found: list[int] = []
    with pytest.raises(ValueError, match="13"):
        found.extend(results)
    assert found == list(range(len(found))) and len(found) <= 13
    assert stage == "items" or len(found) == {"prepare": 12, "run": 12, "finish": 13}[stage]
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [{"workers": 1}, {"runners": max(2, processors())}])
def test_leaving_early_finishes_what_is_under_way_and_starts_nothing_more(threads: dict[str, int]) -> None:
    started: list[int] = []
    ended: list[int] = []

    def finish(n, r):
        started.append(n)
        time.sleep(0.02)
        ended.append(n)
        return n

    before = threading.active_count()
    results = pipelined(range(1000), int, list, finish, batch_size=4, **threads)
    assert next(results) == 0
    until, runners = len(started), threads.get("runners", 1)
    results.close()
    count = len(started)
    assert count <= until + runners  # a call under way is no whole batch
    assert sorted(started) == sorted(ended) and count <= 4 * (AHEAD + runners)
    time.sleep(0.05)
    assert len(started) == count and threading.active_count() == before


@pytest.mark.parametrize("runners", [1, 2])
def test_the_main_thread_never_waits_in_a_future(runners: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in `Future.result` can leave the future locked, and the thread that sets its result waiting for ever."""
    waited: set[int] = set()
    result = Future.result

    def noted(self: Future[int], timeout: float | None = None) -> int:
        waited.add(threading.get_ident())
        return result(self, timeout)

    monkeypatch.setattr(Future, "result", noted)
    found = pipelined(
        range(9), lambda i: i, lambda batch: batch, lambda i, r: i + r, batch_size=3, workers=2, runners=runners
    )
    assert [*found] == [*range(0, 18, 2)]
    assert waited and threading.get_ident() not in waited


def test_calls_side_by_side_answer_in_order_and_raise_the_first_error_when_all_have_ended() -> None:
    together = threading.Barrier(3, timeout=5)
    ended: list[int] = []

    def call(n: int) -> int:
        together.wait()
        if n % 2:
            raise ValueError(f"number {n}")
        time.sleep(0.05)
        ended.append(n)
        return n * n

    assert side_by_side([lambda n=n: call(n) for n in (0, 2, 4)], 3) == [0, 4, 16]
    with pytest.raises(ValueError, match="number 1"):
        side_by_side([lambda n=n: call(n) for n in (1, 3, 6)], 3)
    assert ended[-1] == 6
