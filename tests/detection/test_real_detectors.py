"""Trained detectors of other people on photographs with known boxes; skipped where `shared/` is not there.

`python -m benchmarks.detectors` prints the same numbers, and those of other methods and layers.
"""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # makes `benchmarks` importable

from benchmarks.detectors import SHARED, Row, row

from onnxcam import Detector, load_picture

pytestmark = pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="no ../shared/models")


@cache
def detector(file: str) -> Detector:
    return Detector(SHARED / "models" / file, threads=1)


@cache
def measured(file: str) -> Row:
    return row(detector(file), painted=False)


YOLOX, ULTRAFACE = "yolox_nano_416.onnx", "ultraface_rfb_320.onnx"


@pytest.mark.parametrize(("file", "found", "of"), [(YOLOX, 29, 30), (ULTRAFACE, 2, 2)])
def test_objects_are_found_where_people_drew_them(file: str, found: int, of: int) -> None:
    """Boxes of some objects in boxes.json come from a detector; 29 of 30 and 2 of 2 were measured."""
    result = measured(file)
    assert result.objects == of and len(result.overlap) >= found - 1
    assert np.mean(result.overlap) > 0.8


@pytest.mark.parametrize(("file", "energy"), [(YOLOX, 0.764), (ULTRAFACE, 0.580)])
def test_more_than_half_of_a_map_lies_in_its_box_on_average(file: str, energy: float) -> None:
    result = measured(file)
    assert np.mean(result.energy) == pytest.approx(energy, abs=0.02)
    assert np.mean(result.energy) >= 0.5 > np.mean(result.share)


@pytest.mark.parametrize(("file", "peaks"), [(YOLOX, 27), (ULTRAFACE, 2)])
def test_nearly_every_map_peaks_in_its_box(file: str, peaks: int) -> None:
    assert sum(measured(file).peak) >= peaks - 1


def test_the_scores_are_those_that_the_files_readme_states() -> None:
    """dog .83, car (truck) .81, bicycle .81 by another letterbox and resize: classes and places, scores within 0.25."""
    boxes = detector(YOLOX).detect(load_picture(SHARED / "images" / "darknet_dog.jpg"))
    assert {b.name for b in boxes} == {"dog", "bicycle", "truck", "car"}
    assert boxes[0].score == pytest.approx(0.83, abs=0.05) and boxes[1].score == pytest.approx(0.81, abs=0.05)


def test_an_unscaled_softmax_of_one_still_has_a_map() -> None:
    """The astronaut's face scores 1.0 in float32, where the gradient of the probability itself is all but gone."""
    explanation = detector(ULTRAFACE)(SHARED / "images" / "skimage_astronaut.png", 0)
    assert explanation.probability is not None and explanation.probability > 0.9999
    assert explanation.raw.max() > 0.1
