"""Overlap and suppression, by hand."""

import numpy as np
import pytest

from onnxcam.detection.nms import overlaps, suppressed

# Two unit squares side by side share nothing; the wide box covers both; the shifted one half of the first.
LEFT, RIGHT, WIDE, SHIFTED = [0, 0, 1, 1], [1, 0, 2, 1], [0, 0, 2, 1], [0.5, 0, 1.5, 1]


def test_overlap_is_intersection_over_union() -> None:
    found = overlaps(np.array(LEFT, float), np.array([LEFT, RIGHT, WIDE, SHIFTED, [5, 5, 6, 6], [0, 0, 0, 0]], float))
    assert found == pytest.approx([1, 0, 1 / 2, 1 / 3, 0, 0])


def test_an_empty_box_overlaps_nothing_not_even_itself() -> None:
    assert overlaps(np.zeros(4), np.zeros((1, 4))).tolist() == [0.0]


def keep(boxes: list[list[float]], scores: list[float], labels: list[int], iou: float) -> list[int]:
    return suppressed(np.array(boxes, float), np.array(scores), np.array(labels), iou).tolist()


def test_of_two_boxes_that_overlap_the_better_one_stays_and_comes_first() -> None:
    assert keep([LEFT, WIDE], [0.6, 0.9], [0, 0], 0.45) == [1]


def test_an_overlap_of_exactly_the_threshold_is_allowed() -> None:
    assert keep([LEFT, WIDE], [0.6, 0.9], [0, 0], 0.5) == [1, 0]


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    assert keep([LEFT, LEFT], [0.6, 0.9], [0, 1], 0.1) == [1, 0]


def test_what_is_suppressed_suppresses_nothing_itself() -> None:
    """The first removes the second, which would have removed the third."""
    chain = [[0, 0, 3, 1], [2, 0, 5, 1], [4, 0, 7, 1]]  # neighbours share 1/5, the ends nothing
    assert keep(chain, [0.9, 0.8, 0.7], [0, 0, 0], 0.1) == [0, 2]


def test_equal_scores_keep_their_order() -> None:
    assert keep([LEFT, LEFT], [0.5, 0.5], [0, 0], 0.5) == [0]


def test_no_boxes_are_no_boxes() -> None:
    assert suppressed(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), 0.5).tolist() == []
