"""Localisation, sparsity, coherence and robustness: values by hand."""

import math

import numpy as np
import pytest

from onnxcam.metrics import (
    adcc,
    arcc,
    boxes_mask,
    coherency,
    complexity,
    energy_pointing_game,
    iou,
    max_sensitivity,
    pointing_game,
    relevance_rank_accuracy,
    sparseness,
)


def array(text):
    return np.array([[float(v) for v in row.split()] for row in text.strip().splitlines()], np.float32)


MAP = array("""
    0 1 2 0
    0 3 8 0
    0 1 1 4
""")


def test_a_box_covers_the_pixels_whose_centre_it_holds_its_end_excluded():
    assert boxes_mask([[1, 0, 3, 2]], (3, 4)).astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert boxes_mask([[0.6, 0, 1.5, 1]], (1, 3)).astype(int).tolist() == [[0, 0, 0]]
    assert boxes_mask([[0.5, 0, 1.6, 1]], (1, 3)).astype(int).tolist() == [[1, 1, 0]]


def test_several_boxes_are_one_object_and_no_box_is_none():
    assert boxes_mask([[0, 0, 1, 1], [2, 1, 4, 2]], (2, 4)).astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 1, 1]]
    assert not boxes_mask([], (2, 4)).any()


def test_pointing_game_hits_where_the_peak_lies_on_the_object():
    assert pointing_game(MAP, boxes_mask([[2, 1, 3, 2]], MAP.shape)) == 1
    assert pointing_game(MAP, boxes_mask([[0, 0, 2, 3]], MAP.shape)) == 0


def test_pointing_game_hits_with_any_of_several_equal_peaks():
    tied = MAP.copy()
    tied[0, 0] = 8
    assert pointing_game(tied, boxes_mask([[0, 0, 1, 1]], MAP.shape)) == 1
    assert pointing_game(tied, boxes_mask([[2, 1, 3, 2]], MAP.shape)) == 1


def test_energy_is_the_share_of_the_sum_in_the_box():
    assert energy_pointing_game(MAP, boxes_mask([[1, 0, 3, 2]], MAP.shape)) == pytest.approx(14 / 20)
    assert math.isnan(energy_pointing_game(0 * MAP, boxes_mask([[1, 0, 3, 2]], MAP.shape)))


def test_rank_accuracy_is_the_share_of_the_highest_pixels_on_the_object():
    # The 4 highest are 8, 4, 3 and 2; the box holds all of them but the 4.
    assert relevance_rank_accuracy(MAP, boxes_mask([[1, 0, 3, 2]], MAP.shape)) == pytest.approx(3 / 4)


def test_rank_accuracy_shares_the_room_among_tied_pixels():
    # 5 highest: 8, 4, 3, 2 and one of three 1; a box of the last row's 3 and two more pixels.
    mask = boxes_mask([[1, 2, 4, 3], [0, 0, 2, 1]], MAP.shape)
    assert relevance_rank_accuracy(MAP, mask) == pytest.approx((1 + 3 / 3) / 5)
    # A flat map is as good as chance wherever the object is.
    assert relevance_rank_accuracy(0 * MAP, mask) == pytest.approx(5 / 12)


def test_iou_counts_the_pixels_from_half_the_maximum_on():
    # At or above 4: the 8 and the 4; the box holds four pixels, the 8 among them.
    assert iou(MAP, boxes_mask([[1, 0, 3, 2]], MAP.shape)) == pytest.approx(1 / 5)
    assert iou(MAP, boxes_mask([[1, 0, 3, 2]], MAP.shape), threshold=0.25) == pytest.approx(3 / 5)
    assert math.isnan(iou(0 * MAP, boxes_mask([[1, 0, 3, 2]], MAP.shape)))


def test_complexity_is_the_mean_magnitude():
    assert complexity(MAP) == pytest.approx(20 / 12)
    assert complexity(-MAP) == pytest.approx(20 / 12)


def test_sparseness_is_the_gini_index():
    assert sparseness(np.full((2, 2), 3.0)) == pytest.approx(0)
    assert sparseness(array("0 0 0 5")) == pytest.approx(3 / 4)
    # Mean absolute difference of all pairs over twice the mean: (1 + 2 + 1) * 2 / 9 / (2 * 2).
    assert sparseness(array("2 1 3")) == pytest.approx(8 / 9 / 4)
    assert math.isnan(sparseness(np.zeros((2, 2))))


def test_coherency_is_the_correlation_brought_to_0_1():
    assert coherency(MAP, 3 * MAP + 1) == pytest.approx(1, abs=1e-6)
    assert coherency(MAP, -MAP) == pytest.approx(0, abs=1e-6)
    assert coherency(MAP, np.ones_like(MAP)) == 0.5
    a, b = array("0 1 2"), array("0 2 1")
    assert coherency(a, b) == pytest.approx((0.5 + 1) / 2, abs=1e-6)


def test_adcc_by_hand():
    # 3 / (1/0.8 + 1/0.5 + 1/0.25)
    assert adcc(0.8, 0.5, 0.75) == pytest.approx(3 / (1.25 + 2 + 4))
    assert adcc(1, 0, 0) == 1
    assert adcc(0.9, 0.1, 1.0) == 0
    assert adcc(0.0, 0.1, 0.1) == 0


def test_arcc_by_hand():
    # ROAD 0.2 counts 0.4, a negative one 0, above 0.5 it counts 1.
    assert arcc(0.8, 0.5, 0.2) == pytest.approx(3 / (1.25 + 2 + 2.5), abs=1e-6)
    assert arcc(0.8, 0.5, -0.2) == pytest.approx(0, abs=1e-6)
    assert arcc(0.8, 0.5, 0.7) == pytest.approx(3 / (1.25 + 2 + 1), abs=1e-6)


def test_max_sensitivity_is_the_largest_relative_change_within_the_radius():
    x = np.full((1, 2, 3), 2.0, np.float32)
    seen = []

    def explain(moved):
        seen.append(moved)
        return moved[0]

    value = max_sensitivity(explain, x, x[0], samples=7, radius=0.5, seed=4)
    assert len(seen) == 7
    assert all(np.abs(m - x).max() <= 0.5 for m in seen)
    assert max(np.abs(m - x).max() for m in seen) > 0.4
    assert value == pytest.approx(max(math.sqrt(((m - x) ** 2).sum()) for m in seen) / math.sqrt(6 * 4))


def test_a_map_that_does_not_depend_on_the_picture_is_not_sensitive():
    assert max_sensitivity(lambda m: MAP, np.zeros((1, 3, 4), np.float32), MAP) == 0
    assert math.isnan(max_sensitivity(lambda m: MAP, np.zeros((1, 3, 4), np.float32), 0 * MAP))
