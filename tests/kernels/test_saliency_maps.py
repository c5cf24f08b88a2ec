import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam import _core


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def steps(kernels, raws: np.ndarray, height: int, width: int, epsilon: float = 1e-7, **affine: float) -> np.ndarray:
    positive = kernels.min_max(np.maximum(raws, np.float32(0)), epsilon)
    return kernels.min_max(kernels.resize_bilinear(positive, height, width, **affine), epsilon)


def test_values_by_hand():
    """[-2, 4] becomes [0, 4], [0, 1], and at quarters 0, 1/4, 3/4, 1."""
    np.testing.assert_array_equal(
        _core.saliency_maps(np.array([[[-2, 4]]], np.float32), 1, 4, epsilon=0.0), [[[0, 0.25, 0.75, 1]]]
    )


def test_a_small_region_is_scaled_by_its_own_extremes():
    """Between the centres of [0, 1] only 0.4 and 0.6 are seen."""
    seen = _core.saliency_maps(np.array([[[0, 1]]], np.float32), 1, 2, x_scale=0.2, x_offset=0.8, epsilon=0.0)
    np.testing.assert_array_equal(seen, [[[0, 1]]])


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 20)),
    height=st.integers(1, 150),
    width=st.integers(1, 80),
    y=st.none() | st.tuples(st.floats(1e-3, 5), st.floats(-30, 30)),
    epsilon=st.sampled_from([0.0, 1e-7, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_steps_and_the_reference_bit_for_bit(shape, height, width, y, epsilon, seed):
    raws = normal(*shape, seed=seed)
    affine = {"y_scale": y[0], "y_offset": y[1]} if y else {}
    maps = _core.saliency_maps(raws, height, width, epsilon=epsilon, **affine)
    assert maps.tobytes() == steps(_core, raws, height, width, epsilon, **affine).tobytes()
    assert maps.tobytes() == steps(_core.reference, raws, height, width, epsilon, **affine).tobytes()
    assert maps.tobytes() == _core.reference.saliency_maps(raws, height, width, epsilon=epsilon, **affine).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_value_makes_its_whole_map_nan_and_no_other(bad):
    raws = normal(3, 7, 7)
    clean = _core.saliency_maps(raws, 90, 33)
    raws[1, 3, 4] = bad
    maps = _core.saliency_maps(raws, 90, 33)
    assert np.isnan(maps[1]).all()
    np.testing.assert_array_equal(maps[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("value", [-1.0, -np.inf, 0.0, 3.0])
def test_a_map_without_differences_is_zero(value):
    assert _core.saliency_maps(np.full((2, 5, 4), value, np.float32), 20, 30).tobytes() == bytes(2 * 20 * 30 * 4)


@pytest.mark.parametrize(
    ("shape", "target"),
    [((5, 7, 7), (64, 33)), ((1, 9, 20), (2000, 1900)), ((3, 7, 7), (900, 900)), ((21, 7, 5), (240, 331))],
)
def test_number_of_threads_does_not_change_a_bit(shape, target):
    raws = normal(*shape)
    alone = _core.saliency_maps(raws, *target, threads=1)
    for threads in (0, 2, 3, 16):
        assert _core.saliency_maps(raws, *target, threads=threads).tobytes() == alone.tobytes()


ZEROS = np.zeros((1, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("raws", "options", "error", "message"),
    [
        (ZEROS.astype(np.float64), {}, TypeError, "maps: expected dtype float32, got float64"),
        (ZEROS, {"epsilon": -1.0}, ValueError, "epsilon: expected a finite number of at least 0, got -1.0"),
        (ZEROS, {"threads": -1}, ValueError, "threads: expected 0 (automatic) or more, got -1"),
        (ZEROS, {"x_scale": 0.0}, ValueError, "x_scale: expected a finite number above 0, got 0.0"),
    ],
)
def test_unfit_arguments_are_named(raws, options, error, message):
    with pytest.raises(error) as raised:
        _core.saliency_maps(raws, 4, 4, **options)
    assert str(raised.value) == message
