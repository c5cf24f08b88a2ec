"""Faithfulness metrics: curves of a linear model by hand, the confidence family, infidelity's own definition."""

import numpy as np
import pytest

from onnxcam.errors import UsageError
from onnxcam.metrics import (
    average_drop,
    average_gain,
    deletion_curve,
    drop_in_confidence,
    increase_in_confidence,
    infidelity,
    insertion_curve,
)


def linear(weights):
    """score(x) = sum w x, with the weights of every channel the same."""
    return lambda samples: (samples * weights).sum(axis=(1, 2, 3))


# Each pixel is worth 1, 2, 3 and 4 to the score.
X = np.array([[[1.0, 2.0], [3.0, 4.0]]], np.float32)
ONES = np.ones((2, 2), np.float32)


def test_deletion_of_a_linear_model_loses_the_pixels_in_the_maps_order():
    curve = deletion_curve(linear(ONES), X, np.array([[0.1, 0.9], [0.4, 0.2]], np.float32), steps=4)
    # 10, without the 2: 8, without the 3: 5, without the 4: 1, then 0.
    assert curve.fraction.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.score.tolist() == [10, 8, 5, 1, 0]
    assert curve.auc == pytest.approx((10 / 2 + 8 + 5 + 1 + 0 / 2) / 4)


def test_insertion_of_a_linear_model_gains_the_pixels_in_the_maps_order():
    curve = insertion_curve(linear(ONES), X, np.array([[0.1, 0.9], [0.4, 0.2]], np.float32), steps=4)
    assert curve.score.tolist() == [0, 2, 5, 9, 10]
    assert curve.auc == pytest.approx((2 + 5 + 9 + 10 / 2) / 4)


def test_the_area_uses_the_true_fractions_where_steps_do_not_divide_the_pixels():
    curve = deletion_curve(linear(ONES), X, X[0], steps=3)
    # 0, 1, 3 and 4 pixels of 4 are gone: 4, then 3 and 2 more, then 1.
    assert curve.fraction.tolist() == [0, 0.25, 0.75, 1]
    assert curve.score.tolist() == [10, 6, 1, 0]
    assert curve.auc == pytest.approx(0.25 * 8 + 0.5 * 3.5 + 0.25 * 0.5)


def test_more_steps_than_pixels_are_as_many_as_pixels():
    assert deletion_curve(linear(ONES), X, X[0], steps=1000).score.tolist() == [10, 6, 3, 1, 0]


def test_of_equal_values_the_upper_then_the_left_pixel_goes_first():
    assert deletion_curve(linear(ONES), X, np.zeros((2, 2), np.float32), steps=4).score.tolist() == [10, 9, 7, 4, 0]


def test_the_mean_baseline_is_each_channels_own():
    x = np.stack([X[0], 10 * X[0]])
    assert deletion_curve(linear(ONES), x, X[0], steps=1, baseline="mean").score.tolist() == [110, 110]
    per_channel = deletion_curve(lambda s: s[:, 1, 0, 0], x, X[0], steps=1, baseline="mean").score
    assert per_channel.tolist() == [10, 25]


def test_an_array_is_a_baseline():
    curve = deletion_curve(linear(ONES), X, X[0], steps=2, baseline=np.full((1, 1, 1), 5.0))
    assert curve.score.tolist() == [10, 10 - 4 - 3 + 10, 20]


def test_blur_keeps_a_constant_and_spreads_a_point_as_a_gaussian_of_sigma_5():
    flat = np.full((1, 40, 40), 3.0, np.float32)
    assert deletion_curve(lambda s: s[:, 0, 0, 0], flat, flat[0], baseline="blur").score == pytest.approx(3, rel=1e-6)
    point = np.zeros((1, 61, 61), np.float32)
    point[0, 30, 30] = 1
    end = {}
    deletion_curve(lambda s: end.setdefault("x", s)[:, 0, 0, 0], point, point[0], steps=1, baseline="blur")
    blurred = end["x"][1, 0]
    offsets = np.arange(-15, 16)
    gauss = np.exp(-(offsets**2) / 50)
    np.testing.assert_allclose(blurred[15:46, 15:46], np.outer(gauss, gauss) / gauss.sum() ** 2, atol=1e-8)


def test_an_unknown_baseline_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="zeros, mean, blur"):
        deletion_curve(linear(ONES), X, X[0], baseline="noise")


def test_no_steps_are_refused():
    with pytest.raises(UsageError, match="0 steps"):
        insertion_curve(linear(ONES), X, X[0], steps=0)


def test_drop_increase_and_gain_by_hand():
    before, after = [0.8, 0.5, 0.2], [0.6, 0.5, 0.6]
    assert average_drop(before, after) == pytest.approx([0.25, 0, 0], abs=1e-6)
    assert drop_in_confidence(before, after) == pytest.approx([0.2, 0, 0])
    assert increase_in_confidence(before, after).tolist() == [0, 0, 1]
    assert average_gain(before, after) == pytest.approx([0, 0, 0.5], abs=1e-6)


def test_the_map_of_what_each_pixel_adds_has_no_infidelity_and_another_has():
    rng = np.random.default_rng(0)
    x = rng.random((3, 10, 12)).astype(np.float32)
    truth = x.sum(axis=0)
    score = linear(np.ones((10, 12), np.float32))
    assert infidelity(score, x, truth, normalize=False) == pytest.approx(0, abs=1e-9)
    # A map in other units is as good once its best factor is found, and not before.
    assert infidelity(score, x, truth / 7) == pytest.approx(0, abs=1e-9)
    assert infidelity(score, x, truth / 7, normalize=False) > 1
    assert infidelity(score, x, truth[::-1]) > 0.1


def test_infidelity_is_the_mean_square_of_what_the_map_says_less_what_the_score_loses():
    x = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4)
    saliency = np.array([[0.0, 1.0, 1.0, 0.0]], np.float32)
    # Squares of side 1 only: each removes x_i and is told S_i.
    drawn = []

    def score(samples):
        drawn.extend(np.flatnonzero(s[0, 0] == 0).tolist() for s in samples[1:])
        return samples.sum(axis=(1, 2, 3))

    value = infidelity(score, x, saliency, samples=200)
    pixels = np.array([d[0] for d in drawn])
    assert all(len(d) == 1 for d in drawn)
    assert set(pixels) == {0, 1, 2, 3}
    said, lost = saliency[0][pixels], x[0, 0][pixels]
    factor = np.linalg.lstsq(said[:, None], lost, rcond=None)[0][0]
    assert value == pytest.approx(np.mean((factor * said - lost) ** 2), rel=1e-6)
