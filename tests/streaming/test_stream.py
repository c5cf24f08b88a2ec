"""`Explainer.stream`, async servers and many threads: the same explanations as one call at a time."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from squares import square

from onnxcam import BadPicture, Explainer, Explanation
from onnxcam.errors import PictureError, UsageError
from onnxcam.pipeline import AHEAD, processors

NAMES = [f"{i:02}.png" for i in range(12)]


@pytest.fixture
def explainer(folder: Path) -> Explainer:
    return Explainer("colours.onnx", threads=1)


def same(a: Explanation, b: Explanation) -> bool:
    maps = np.array_equal(a.values, b.values) and np.array_equal(a.raw, b.raw)
    return maps and a.record() == b.record()


@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_a_stream_holds_what_single_calls_give_in_order(explainer: Explainer, batch_size: int) -> None:
    singles = [explainer(name) for name in NAMES]
    assert len({e.values.tobytes() for e in singles}) == 12
    streamed = list(explainer.stream(iter(NAMES), batch_size=batch_size))
    assert len(streamed) == 12
    for s, e in zip(singles, streamed, strict=True):
        assert isinstance(e, Explanation) and same(s, e)


def test_targets_are_one_for_all_or_one_for_each(explainer: Explainer) -> None:
    each = [i % 3 for i in range(11)] + ["blue"]
    found = [e.record(flat=True)["class_index"] for e in explainer.stream(NAMES, each, batch_size=4)]
    assert found == [i % 3 for i in range(12)]
    assert {e.record(flat=True).get("label") for e in explainer.stream(NAMES, "green")} == {"green"}
    with pytest.raises(UsageError, match="fewer targets than pictures"):
        list(explainer.stream(NAMES, each[:5]))
    with pytest.raises(UsageError, match="violet"):
        list(explainer.stream(NAMES, "violet"))


def test_a_bad_picture_is_an_error_in_its_place_and_the_others_go_on(explainer: Explainer) -> None:
    Path("03.png").write_bytes(b"no picture")
    Path("04.png").unlink()
    found = list(explainer.stream(NAMES, batch_size=3))
    assert [i for i, e in enumerate(found) if isinstance(e, BadPicture)] == [3, 4]
    bad = found[4]
    assert isinstance(bad, BadPicture) and isinstance(bad.error, PictureError)
    assert bad.record() == {"source": "04.png", "error": "04.png: no such file"}
    assert [e.record(flat=True)["source"] for e in found] == NAMES


def test_a_bad_picture_raises_where_that_is_asked_for(explainer: Explainer) -> None:
    Path("05.png").unlink()
    found = []
    with pytest.raises(PictureError, match=r"05\.png: no such file"):
        found.extend(explainer.stream(NAMES, batch_size=5, raise_errors=True))
    assert len(found) == 5  # the batches before


def test_finish_sees_every_result_on_other_threads_and_its_results_come_in_order(explainer: Explainer) -> None:
    Path("02.png").unlink()
    threads = set()

    def written(result: Explanation | BadPicture) -> str:
        threads.add(threading.current_thread())
        if isinstance(result, BadPicture):
            return result.source
        return result.save(f"{Path(result.provenance['picture']['source']).stem}.cam.png").name

    names = list(explainer.stream(NAMES, batch_size=4, finish=written))
    assert names == [name if name == "02.png" else name.replace(".png", ".cam.png") for name in NAMES]
    assert threading.main_thread() not in threads
    with Image.open("07.cam.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(explainer("07.png").overlay()))


def test_an_endless_stream_keeps_a_bounded_number_of_pictures(explainer: Explainer) -> None:
    taken: list[weakref.ref[Image.Image]] = []

    def endless() -> Iterator[Image.Image]:
        while True:
            picture = square((len(taken) % 251, 200, 0))
            taken.append(weakref.ref(picture))
            yield picture

    stream = explainer.stream(endless(), batch_size=4)  # of one thread: as many runs at once as processors
    for n in range(40 * processors()):
        result = next(stream)
        assert isinstance(result, Explanation) and result.picture is not None
        assert result.picture.rgb[5, 5, 0] == n % 251  # each gets its own
        assert len(taken) <= 4 * (n // 4 + AHEAD + processors())
    gc.collect()
    assert sum(ref() is not None for ref in taken) <= 4 * (AHEAD + processors()) + 1
    stream.close()  # type: ignore[attr-defined]


def test_a_stream_refuses_a_batch_of_nothing_at_once(explainer: Explainer) -> None:
    with pytest.raises(UsageError, match="batch size 0"):
        explainer.stream(NAMES, batch_size=0)


METHODS = ("gradcam", "layercam", "eigencam", "scorecam", "integratedgradients", "smoothgrad")


@pytest.mark.parametrize("method", METHODS)
def test_sixteen_threads_on_one_explainer_give_bit_for_bit_what_one_gives(folder: Path, method: str) -> None:
    explainer = Explainer("colours.onnx", method=method, threads=1)
    jobs = [(name, target) for name in NAMES[::3] for target in (None, 0, 1, 2)]
    serial = [explainer(*job) for job in jobs]
    started = threading.Barrier(16)

    def work(number: int) -> list[Explanation]:
        started.wait(10)
        return [explainer(*job) for job in jobs[number:] + jobs[:number]]

    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(work, range(16)))
    for number, found in enumerate(parallel):
        expected = serial[number:] + serial[:number]
        assert all(same(s, p) for s, p in zip(expected, found, strict=True))
    assert len({e.values.tobytes() for e in serial}) >= 4  # the jobs are told apart


def test_an_async_server_answers_many_requests_at_once_with_what_a_call_gives(explainer: Explainer) -> None:
    async def answer(name: str) -> Explanation:
        return await asyncio.to_thread(explainer, name, "green")

    async def serve() -> list[Explanation]:
        return await asyncio.gather(*(answer(name) for name in NAMES * 3))

    for name, answered in zip(NAMES * 3, asyncio.run(serve()), strict=True):
        assert same(explainer(name, "green"), answered)
