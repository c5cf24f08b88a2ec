import sys
from threading import Lock, Thread

import numpy as np
import pytest

from onnxcam import _core

MAPS = np.ones((1, 1000, 1000), np.float32)
PICTURE = np.zeros((1000, 1000, 3), np.uint8)
COLORMAP = np.zeros((256, 3), np.uint8)


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(lambda: _core.weighted_sum(MAPS[None], MAPS[None], relu=True), id="weighted_sum"),
        pytest.param(lambda: _core.resize_bilinear(MAPS, 1000, 1000), id="resize_bilinear"),
        pytest.param(lambda: _core.min_max(MAPS), id="min_max"),
        pytest.param(lambda: _core.saliency_maps(MAPS, 1000, 1000), id="saliency_maps"),
        pytest.param(lambda: _core.overlay(PICTURE, MAPS[0], COLORMAP, 0.5), id="overlay"),
    ],
)
def test_another_thread_runs_while_the_kernel_does(kernel):
    marks: list[str] = []
    gate = Lock()
    gate.acquire()

    def pass_gate() -> None:
        with gate:
            marks.append("passed")

    thread = Thread(target=pass_gate)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nothing but a released GIL lets the other thread in
    try:
        thread.start()
        gate.release()
        for _ in range(200):
            kernel()
            if marks:
                break
        passed = list(marks)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert passed
