import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam import _core


def test_values_by_hand():
    maps = np.array([[[1, 3], [2, 5]], [[-4, -4], [0, -2]]], np.float32)
    exact = [[[0, 0.5], [0.25, 1]], [[0, 0], [1, 0.5]]]
    np.testing.assert_array_equal(_core.min_max(maps, epsilon=0.0), exact)
    np.testing.assert_array_equal(_core.min_max(maps, epsilon=4.0), np.array(exact) / 2)


def test_default_epsilon_is_the_one_of_the_peers():
    maps = np.array([[[0, 1e-7]]], np.float32)
    np.testing.assert_array_equal(_core.min_max(maps), [[[0, 0.5]]])


def test_equals_numpy_in_the_order_of_the_formula():
    maps = np.random.default_rng(0).standard_normal((4, 37, 41), dtype=np.float32)
    shifted = maps - maps.min(axis=(1, 2), keepdims=True)
    expected = shifted * (np.float32(1) / (np.float32(1e-7) + shifted.max(axis=(1, 2), keepdims=True)))
    assert _core.min_max(maps).tobytes() == expected.tobytes()


@pytest.mark.parametrize("epsilon", [0.0, 1e-7])
@pytest.mark.parametrize("constant", [0.0, -0.0, 3.5, -1e30])
def test_a_constant_map_becomes_zeros(constant, epsilon):
    scaled = _core.min_max(np.full((2, 3, 5), constant, np.float32), epsilon)
    assert scaled.tobytes() == np.zeros((2, 3, 5), np.float32).tobytes()


def test_a_range_too_small_to_scale_by_is_none():
    assert not _core.min_max(np.array([[[0, 1e-39]]], np.float32), epsilon=0.0).any()
    assert _core.min_max(np.array([[[0, 1e-38]]], np.float32), epsilon=0.0).max() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 31, 63, 64, 129, 130])
def test_a_non_finite_value_makes_its_whole_map_nan_and_no_other(bad, position):
    maps = np.random.default_rng(1).random((3, 1, 131), dtype=np.float32)
    clean = _core.min_max(maps)
    maps[1, 0, position] = bad
    scaled = _core.min_max(maps)
    assert np.isnan(scaled[1]).all()
    np.testing.assert_array_equal(scaled[[0, 2]], clean[[0, 2]])


def test_a_range_beyond_float32_becomes_nan():
    assert np.isnan(_core.min_max(np.array([[[-3e38, 0, 3e38]]], np.float32))).all()


def test_zeros_come_out_positive():
    """Whether the minimum is found as -0 or +0 must not show in the sign of the result."""
    scaled = _core.min_max(np.array([[[0.0, -0.0, 1.0]], [[-0.0, 0.0, 1.0]]], np.float32))
    assert not np.signbit(scaled).any()


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 40), st.integers(1, 40)),
    epsilon=st.sampled_from([0.0, 1e-7, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference_bit_for_bit(shape, epsilon, seed):
    maps = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    assert _core.min_max(maps, epsilon).tobytes() == _core.reference.min_max(maps, epsilon).tobytes()


MAPS = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("maps", "epsilon", "error", "message"),
    [
        (MAPS.astype(np.float64), 1e-7, TypeError, "maps: expected dtype float32, got float64"),
        (MAPS[None], 1e-7, ValueError, "maps: expected shape (N, h, w), got (1, 2, 3, 4)"),
        (MAPS[..., :0], 1e-7, ValueError, "maps: shape (2, 3, 0) has size 0 along axis 2"),
        (MAPS, -1.0, ValueError, "epsilon: expected a finite number of at least 0, got -1.0"),
        (MAPS, np.nan, ValueError, "epsilon: expected a finite number of at least 0, got nan"),
        (MAPS, 1e39, ValueError, "epsilon: expected a finite number of at least 0, got 1e+39"),
    ],
)
def test_unfit_arguments_are_named(maps, epsilon, error, message):
    with pytest.raises(error) as raised:
        _core.min_max(maps, epsilon)
    assert str(raised.value) == message
