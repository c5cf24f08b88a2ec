import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam import _core

GREY_RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def random_picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_blend_by_hand():
    picture = np.array([[[100, 0, 255], [10, 20, 30]]], np.uint8)
    colormap = np.zeros((256, 3), np.uint8)
    colormap[0] = (200, 200, 200)
    colormap[255] = (0, 40, 80)
    blended = _core.overlay(picture, np.array([[0, 1]], np.float32), colormap, 0.25)
    # 0.75 * 100 + 50, 50, 0.75 * 255 + 50 = 241.25; 7.5 -> 8, 15 + 10, 22.5 + 20 = 42.5 -> 43
    np.testing.assert_array_equal(blended, [[[125, 50, 241], [8, 25, 43]]])


@pytest.mark.parametrize(
    ("value", "index"),
    [
        *[(0, 0), (0.49 / 255, 0), (0.51 / 255, 1), (0.5, 128), (254.49 / 255, 254), (1, 255)],
        *[(-3, 0), (7, 255), (-np.inf, 0), (np.inf, 255)],
    ],
)
def test_the_nearest_colour_is_taken_and_values_are_clamped(value, index):
    coloured = _core.overlay(np.zeros((1, 1, 3), np.uint8), np.full((1, 1), value, np.float32), GREY_RAMP, 1.0)
    np.testing.assert_array_equal(coloured, np.full((1, 1, 3), index))


def test_nan_leaves_the_pixel_uncoloured():
    picture = random_picture(20, 30, 3)
    values = np.full((20, 30), 0.7, np.float32)
    values[3, 4] = values[19, 29] = np.nan
    nan = np.isnan(values)
    coloured = _core.overlay(picture, values, GREY_RAMP, 1.0)
    np.testing.assert_array_equal(coloured[nan], picture[nan])
    np.testing.assert_array_equal(coloured[~nan], np.full((598, 3), 179))  # 0.7 * 255 = 178.5, a little above


def test_opacity_zero_is_the_picture_and_one_the_colours():
    picture, colormap = random_picture(17, 19, 3), random_picture(256, 3, seed=1)
    values = np.random.default_rng(2).random((17, 19), dtype=np.float32)
    np.testing.assert_array_equal(_core.overlay(picture, values, colormap, 0.0), picture)
    colours = colormap[np.floor(values.astype(np.float64) * 255 + 0.5).astype(int)]
    np.testing.assert_array_equal(_core.overlay(picture, values, colormap, 1.0), colours)


@pytest.mark.parametrize("opacity", [0.25, 0.5, 0.75])
def test_every_pair_of_bytes_is_rounded_with_halves_upwards(opacity):
    """These opacities are exact in binary, so the float64 formula is the exact answer."""
    picture = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 256, axis=1).repeat(3, axis=2)
    values = np.tile((np.arange(256) / 255).astype(np.float32), (256, 1))
    exact = (1 - opacity) * picture.astype(np.float64) + opacity * GREY_RAMP[None].astype(np.float64)
    np.testing.assert_array_equal(_core.overlay(picture, values, GREY_RAMP, opacity), np.floor(exact + 0.5))


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 40), width=st.integers(1, 40), opacity=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_equals_the_reference(height, width, opacity, seed):
    picture, colormap = random_picture(height, width, 3, seed=seed), random_picture(256, 3, seed=seed + 1)
    values = np.random.default_rng(seed).uniform(-0.2, 1.2, (height, width)).astype(np.float32)
    values[values > 1.1] = np.nan
    expected = _core.reference.overlay(picture, values, colormap, opacity)
    np.testing.assert_array_equal(_core.overlay(picture, values, colormap, opacity), expected)


def test_a_picture_seen_upside_down_through_strides_is_read_right():
    picture = random_picture(9, 11, 3)
    values = np.random.default_rng(3).random((9, 11), dtype=np.float32)
    np.testing.assert_array_equal(
        _core.overlay(picture[::-1], values[::-1], GREY_RAMP, 0.4), _core.overlay(picture, values, GREY_RAMP, 0.4)[::-1]
    )


P = np.zeros((4, 5, 3), np.uint8)
V = np.zeros((4, 5), np.float32)


@pytest.mark.parametrize(
    ("picture", "values", "colormap", "opacity", "error", "message"),
    [
        (P.astype(np.float32), V, GREY_RAMP, 0.5, TypeError, "picture: expected dtype uint8, got float32"),
        (P, V.astype(np.float64), GREY_RAMP, 0.5, TypeError, "values: expected dtype float32, got float64"),
        (P, V, GREY_RAMP.astype(np.int8), 0.5, TypeError, "colormap: expected dtype uint8, got int8"),
        (P[..., 0], V, GREY_RAMP, 0.5, ValueError, "picture: expected shape (H, W, 3), got (4, 5)"),
        (P[..., :2], V, GREY_RAMP, 0.5, ValueError, "picture: expected shape (H, W, 3), got (4, 5, 2)"),
        (P[:0], V[:0], GREY_RAMP, 0.5, ValueError, "picture: shape (0, 5, 3) has size 0 along axis 0"),
        (P, V.T, GREY_RAMP, 0.5, ValueError, "values: shape (5, 4) does not match picture (4, 5, 3)"),
        (P, V[0], GREY_RAMP, 0.5, ValueError, "values: expected shape (H, W), got (5,)"),
        (P, V, GREY_RAMP[:255], 0.5, ValueError, "colormap: expected shape (256, 3), got (255, 3)"),
        (P, V, GREY_RAMP, 1.5, ValueError, "opacity: expected a number in [0, 1], got 1.5"),
        (P, V, GREY_RAMP, np.nan, ValueError, "opacity: expected a number in [0, 1], got nan"),
    ],
)
def test_unfit_arguments_are_named(picture, values, colormap, opacity, error, message):
    with pytest.raises(error) as raised:
        _core.overlay(picture, values, colormap, opacity)
    assert str(raised.value) == message
