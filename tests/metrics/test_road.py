"""ROAD: the imputer against its linear system solved densely, what percentiles remove, maps without an order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam.errors import UsageError
from onnxcam.metrics import impute, road_combined, road_lerf, road_morf


def solved_densely(x, removed):
    """One equation per removed pixel, written down neighbour by neighbour."""
    height, width = removed.shape
    unknown = {tuple(p): i for i, p in enumerate(np.argwhere(removed))}
    system, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), len(x)))
    for (row, column), i in unknown.items():
        for down in (-1, 0, 1):
            for along in (-1, 0, 1):
                other = (row + down, column + along)
                if (down, along) == (0, 0) or not (0 <= other[0] < height and 0 <= other[1] < width):
                    continue
                weight = 1 / 12 if down and along else 1 / 6
                system[i, i] += weight
                if other in unknown:
                    system[i, unknown[other]] -= weight
                else:
                    right[i] += weight * x[:, other[0], other[1]]
    result = x.astype(np.float64).copy()
    result[:, removed] = np.linalg.solve(system, right).T
    return result


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
def test_imputed_pixels_solve_the_stated_system(height, width, seed, share):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, height, width)).astype(np.float32)
    removed = rng.random((height, width)) < share
    removed.flat[rng.integers(removed.size)] = False
    np.testing.assert_allclose(impute(x, removed), solved_densely(x, removed), atol=2e-5)


@pytest.mark.parametrize("hole", [np.s_[:, 1:], np.s_[:-1], np.s_[8:40, 5:60], np.s_[::2, ::3]])
def test_large_holes_are_solved_too(hole):
    x = np.random.default_rng(3).normal(size=(2, 48, 61)).astype(np.float32)
    removed = np.zeros((48, 61), bool)
    removed[hole] = True
    np.testing.assert_allclose(impute(x, removed), solved_densely(x, removed), atol=1e-5)


def test_two_missing_pixels_by_hand():
    # a and b in the row 6 a b 0: a (1/6 + 1/6) = 6/6 + b/6 and b/3 = a/6, so a = 4, b = 2.
    x = np.array([[[6.0, -1.0, -1.0, 0.0]]], np.float32)
    removed = np.array([[False, True, True, False]])
    assert impute(x, removed)[0, 0] == pytest.approx([6, 4, 2, 0], abs=1e-6)


def test_kept_pixels_stay_as_they_are():
    x = np.random.default_rng(0).normal(size=(3, 9, 9)).astype(np.float32)
    removed = np.eye(9, dtype=bool)
    assert (impute(x, removed)[:, ~removed] == x[:, ~removed]).all()
    assert (impute(x, np.zeros((9, 9), bool)) == x).all()


def test_nothing_is_imputed_from_nothing():
    with pytest.raises(UsageError, match="every pixel is removed"):
        impute(np.ones((1, 3, 3), np.float32), np.ones((3, 3), bool))


def changed_pixels(curve, saliency, percentiles):
    """Which pixels of a checkerboard the imputer touched, per percentile."""
    x = (np.indices(saliency.shape).sum(axis=0) % 2).astype(np.float32)[None]
    seen = []

    def score(samples):
        seen.extend(samples)
        return np.zeros(len(samples))

    curve(score, x, saliency, percentiles=percentiles, noise=0.0)
    return [(s != x)[0] for s in seen[1:]]


def test_percentile_80_of_morf_removes_the_top_20_percent_and_percentile_20_of_lerf_the_lowest_80():
    saliency = np.random.default_rng(1).permutation(100).reshape(10, 10).astype(np.float32) / 99
    (most,) = changed_pixels(road_morf, saliency, [80])
    assert (most == (saliency >= 80 / 99)).all()
    (least,) = changed_pixels(road_lerf, saliency, [20])
    assert (least == (saliency < 80 / 99)).all()


def test_where_the_percentile_is_the_minimum_the_pixels_at_the_minimum_stay():
    saliency = np.zeros((10, 10), np.float32)
    saliency[2:4, 2:5] = 0.7
    (most,) = changed_pixels(road_morf, saliency, [20])
    assert (most == (saliency > 0)).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_map_removes_nothing(value):
    x = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    flat = np.full((8, 8), value, np.float32)
    assert road_combined(lambda s: s.sum(axis=(1, 2, 3)), x, flat) == 0


def test_the_noise_is_of_the_seed_and_of_the_given_deviation():
    x = np.zeros((3, 60, 60), np.float32)
    saliency = np.arange(3600, dtype=np.float32).reshape(60, 60)
    seen = []

    def score(samples):
        seen.append(samples[1])
        return np.zeros(len(samples))

    for seed in (5, 5, 6):
        road_morf(score, x, saliency, percentiles=[50], noise=0.02, seed=seed)
    assert (seen[0] == seen[1]).all()
    assert (seen[0] != seen[2]).any()
    assert seen[0][:, 30:].std() == pytest.approx(0.02, rel=0.03)
    assert (seen[0][:, :30] == 0).all()


def test_a_percentile_out_of_range_is_refused():
    with pytest.raises(UsageError, match="percentile 120"):
        road_morf(lambda s: np.zeros(len(s)), np.zeros((1, 4, 4), np.float32), np.eye(4), percentiles=[120])
