import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam import _core


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def test_one_weight_per_channel_by_hand():
    activations = np.array([[[[1, 2, 3]], [[10, 20, 30]]]], np.float32)
    alpha = np.array([2, -1], np.float32).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(_core.weighted_sum(-activations, alpha, relu=False), [[[8, 16, 24]]])
    np.testing.assert_array_equal(_core.weighted_sum(activations, alpha, relu=False), [[[-8, -16, -24]]])
    np.testing.assert_array_equal(_core.weighted_sum(activations, alpha, relu=True), [[[0, 0, 0]]])


def test_one_weight_per_pixel_by_hand():
    activations = np.array([[[[1, 2, 3]], [[10, 20, 30]]]], np.float32)
    alpha = np.array([[[[1, 0, -1]], [[0, 2, -1]]]], np.float32)
    np.testing.assert_array_equal(_core.weighted_sum(activations, alpha, relu=False), [[[1, 40, -33]]])
    np.testing.assert_array_equal(_core.weighted_sum(activations, alpha, relu=True), [[[1, 40, 0]]])


@pytest.mark.parametrize("alpha_shape", [(3, 70, 1, 1), (1, 70, 1, 1), (3, 70, 5, 9), (1, 70, 5, 9)])
def test_equals_the_float64_sum_rounded_once(alpha_shape):
    rng = np.random.default_rng(0)
    activations, alpha = normal(rng, 3, 70, 5, 9), normal(rng, *alpha_shape)
    full = np.broadcast_to(alpha.astype(np.float64), activations.shape)
    expected = np.einsum("nkhw,nkhw->nhw", activations.astype(np.float64), full)
    np.testing.assert_allclose(_core.weighted_sum(activations, alpha, relu=False), expected, rtol=1.2e-7)
    np.testing.assert_allclose(_core.weighted_sum(activations, alpha, relu=True), np.maximum(expected, 0), rtol=1.2e-7)


def test_small_terms_survive_a_large_one():
    """In float32, 2**24 + 1 + 1 is 2**24."""
    activations = np.array([2**24, 1, 1, -(2**24)], np.float32).reshape(1, 4, 1, 1)
    assert _core.weighted_sum(activations, np.ones_like(activations), relu=False).item() == 2


@settings(deadline=None, max_examples=60)
@given(
    N=st.integers(0, 3),
    K=st.integers(1, 19),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    shared=st.booleans(),
    per_pixel=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference_bit_for_bit(N, K, h, w, shared, per_pixel, relu, seed):
    rng = np.random.default_rng(seed)
    activations = normal(rng, N, K, h, w)
    alpha = normal(rng, 1 if shared else N, K, *((h, w) if per_pixel else (1, 1)))
    expected = _core.reference.weighted_sum(activations, alpha, relu)
    assert _core.weighted_sum(activations, alpha, relu).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(5, 33, 7, 7), (1, 40, 63, 65), (2, 300, 60, 61)])
def test_number_of_threads_does_not_change_a_bit(shape):
    rng = np.random.default_rng(1)
    activations, alpha = normal(rng, *shape), normal(rng, *shape[:2], 1, 1)
    alone = _core.weighted_sum(activations, alpha, relu=False, threads=1)
    for threads in (0, 2, 3, 16):
        assert _core.weighted_sum(activations, alpha, relu=False, threads=threads).tobytes() == alone.tobytes()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_nan_is_not_painted_over(relu, per_pixel):
    activations = np.ones((2, 5, 3, 3), np.float32)
    activations[1, 4, 2, 0] = np.nan
    alpha = np.full((2, 5, 3, 3) if per_pixel else (2, 5, 1, 1), -1, np.float32)
    expected = np.full((2, 3, 3), 0 if relu else -5, np.float32)
    expected[1, 2, 0] = np.nan
    np.testing.assert_array_equal(_core.weighted_sum(activations, alpha, relu), expected)


def test_any_memory_layout_gives_the_same_map():
    rng = np.random.default_rng(2)
    activations, alpha = normal(rng, 2, 6, 4, 5), normal(rng, 2, 6, 1, 1)
    expected = _core.weighted_sum(activations, alpha, relu=False)

    channels_last = np.ascontiguousarray(activations.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    reversed_view = activations[..., ::-1].copy()[..., ::-1]
    unaligned = np.frombuffer(b"\0" + activations.tobytes(), np.float32, offset=1).reshape(activations.shape)
    assert not channels_last.flags.c_contiguous and not reversed_view.flags.c_contiguous
    assert not unaligned.flags.aligned and not unaligned.flags.writeable
    for view in (channels_last, reversed_view, unaligned):
        np.testing.assert_array_equal(_core.weighted_sum(view, alpha, relu=False), expected)


def test_no_samples_give_no_maps():
    empty = _core.weighted_sum(np.empty((0, 3, 2, 2), np.float32), np.empty((0, 3, 1, 1), np.float32), relu=True)
    assert empty.shape == (0, 2, 2)


A = np.zeros((2, 3, 4, 5), np.float32)
ALPHA = np.zeros((2, 3, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("activations", "alpha", "error", "message"),
    [
        (A.astype(np.float64), ALPHA, TypeError, "activations: expected dtype float32, got float64"),
        (A.astype(">f4"), ALPHA, TypeError, "activations: expected dtype float32, got >f4"),
        (A, ALPHA.astype(np.float16), TypeError, "alpha: expected dtype float32, got float16"),
        (A[0], ALPHA, ValueError, "activations: expected shape (N, K, h, w), got (3, 4, 5)"),
        (A, ALPHA[..., 0], ValueError, "alpha: expected shape (N, K, 1, 1) or (N, K, h, w), got (2, 3, 1)"),
        (A[:, :0], ALPHA[:, :0], ValueError, "activations: shape (2, 0, 4, 5) has size 0 along axis 1"),
        (A[..., :0], ALPHA, ValueError, "activations: shape (2, 3, 4, 0) has size 0 along axis 3"),
        *(
            (
                A,
                np.zeros(shape, np.float32),
                ValueError,
                f"alpha: shape {shape} does not broadcast as (N or 1, K, 1, 1) or (N or 1, K, h, w) "
                "against activations (2, 3, 4, 5)",
            )
            for shape in [(3, 3, 1, 1), (2, 4, 1, 1), (2, 1, 1, 1), (2, 3, 4, 1), (2, 3, 5, 4), (0, 3, 1, 1)]
        ),
    ],
)
def test_unfit_arguments_are_named(activations, alpha, error, message):
    with pytest.raises(error) as raised:
        _core.weighted_sum(activations, alpha, relu=True)
    assert str(raised.value) == message


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(ValueError, match=r"threads: expected 0 \(automatic\) or more, got -1"):
        _core.weighted_sum(A, ALPHA, relu=True, threads=-1)
