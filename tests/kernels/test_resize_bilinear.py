import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from PIL import Image

from onnxcam import _core


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def interpolated(maps: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float64 maps at source coordinates `y`, `x`; `np.interp` clamps to the edge by itself."""
    rows = np.apply_along_axis(lambda v: np.interp(x, np.arange(v.size), v), 2, maps.astype(np.float64))
    return np.apply_along_axis(lambda v: np.interp(y, np.arange(v.size), v), 1, rows)


SHAPES = [
    ((7, 7), (224, 224)),
    ((13, 17), (333, 97)),
    ((1, 1), (5, 9)),
    ((2, 3), (3, 64)),
    ((20, 11), (20, 33)),
    ((40, 31), (7, 100)),
    ((40, 30), (20, 15)),
    ((65, 129), (1, 2)),
]


def enlarges(source: tuple[int, int], target: tuple[int, int]) -> bool:
    return all(b >= a for a, b in zip(source, target, strict=True))


@pytest.mark.parametrize(("source", "target"), [pair for pair in SHAPES if enlarges(*pair)])
def test_enlarging_equals_pillow(source, target):
    maps = uniform(1, *source)
    picture = Image.fromarray(maps[0]).resize(target[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(_core.resize_bilinear(maps, *target)[0], np.asarray(picture), rtol=0, atol=1e-6)


ONNX_RESIZE = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 18]>
    resize (float[N, 1, h, w] x, int64[4] sizes) => (float[N, 1, H, W] y) {
        y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(x, , , sizes)
    }"""
)


@pytest.mark.parametrize(("source", "target"), [pair for pair in SHAPES if pair[1] != (224, 224)])
def test_enlarging_and_shrinking_equal_onnx_resize(source, target):
    maps = uniform(2, *source)
    feeds = {"x": maps[:, None], "sizes": np.array([2, 1, *target])}
    (expected,) = ReferenceEvaluator(ONNX_RESIZE).run(None, feeds)
    np.testing.assert_allclose(_core.resize_bilinear(maps, *target), expected[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_enlarging_and_shrinking_equal_onnxruntime(source, target):
    """ONNX Runtime computes coordinates in float32, and these maps change by less than 1 from pixel to pixel."""
    ort = pytest.importorskip("onnxruntime")
    maps = uniform(2, *source)
    session = ort.InferenceSession(ONNX_RESIZE.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": maps[:, None], "sizes": np.array([2, 1, *target])})
    one_rounding_of_each_coordinate = sum(source) * 2.0**-23
    np.testing.assert_allclose(
        _core.resize_bilinear(maps, *target), expected[:, 0], rtol=0, atol=one_rounding_of_each_coordinate
    )


@pytest.mark.parametrize(
    ("y_scale", "y_offset", "x_scale", "x_offset"),
    [(0.5, 0.0, 0.25, 0.0), (0.137, -0.71, 0.93, 1.3), (2.5, 3.0, 0.01, 6.0), (1.0, -50.0, 1.0, 50.0)],
)
def test_affine_coordinates_equal_the_formula(y_scale, y_offset, x_scale, x_offset):
    maps = uniform(2, 9, 8)
    y = (np.arange(21) + 0.5) * y_scale + y_offset - 0.5
    x = (np.arange(30) + 0.5) * x_scale + x_offset - 0.5
    actual = _core.resize_bilinear(maps, 21, 30, y_scale=y_scale, y_offset=y_offset, x_scale=x_scale, x_offset=x_offset)
    np.testing.assert_allclose(actual, interpolated(maps, y, x), rtol=0, atol=3e-7)


def test_scale_one_and_whole_offsets_cut_a_window():
    maps = uniform(2, 9, 8)
    window = _core.resize_bilinear(maps, 4, 3, y_scale=1.0, y_offset=2.0, x_scale=1.0, x_offset=5.0)
    np.testing.assert_array_equal(window, maps[:, 2:6, 5:8])


def test_a_window_of_the_enlarged_map_needs_only_an_offset():
    """What a centre crop or a letterbox does: the window's first pixel lies at offset / scale of the whole."""
    maps = uniform(1, 7, 7)
    scale = 7 / 224
    window = _core.resize_bilinear(
        maps, 100, 50, y_scale=scale, y_offset=30 * scale, x_scale=scale, x_offset=120 * scale
    )
    whole = _core.resize_bilinear(maps, 224, 224)
    np.testing.assert_allclose(window, whole[:, 30:130, 120:170], rtol=0, atol=3e-7)


def test_the_same_size_is_the_identity():
    maps = uniform(3, 11, 6)
    np.testing.assert_array_equal(_core.resize_bilinear(maps, 11, 6), maps)


def test_halves_by_hand():
    maps = np.array([[[0, 4], [8, 20]]], np.float32)
    expected = [[0, 1, 3, 4], [2, 3.5, 6.5, 8], [6, 8.5, 13.5, 16], [8, 11, 17, 20]]
    np.testing.assert_array_equal(_core.resize_bilinear(maps, 4, 4)[0], expected)


def test_a_constant_map_stays_that_constant_exactly():
    maps = np.full((1, 7, 5), 0.1, np.float32)
    np.testing.assert_array_equal(_core.resize_bilinear(maps, 223, 119), np.full((1, 223, 119), np.float32(0.1)))


def test_nan_reaches_exactly_the_pixels_that_read_it():
    maps = np.zeros((1, 5, 5), np.float32)
    maps[0, 2, 3] = np.nan
    np.testing.assert_array_equal(_core.resize_bilinear(maps, 5, 5), maps)
    # Enlarged 2 times, source row 2 is read by output rows 3 to 6, source column 3 by columns 5 to 8.
    expected = np.zeros((10, 10), bool)
    expected[3:7, 5:9] = True
    np.testing.assert_array_equal(np.isnan(_core.resize_bilinear(maps, 10, 10)[0]), expected)


sizes = st.integers(1, 30)


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(st.integers(0, 3), sizes, sizes),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    y=st.none() | st.tuples(st.floats(1e-3, 1e3), st.floats(-100, 100)),
    x=st.none() | st.tuples(st.floats(1e-3, 1e3), st.floats(-100, 100)),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference_bit_for_bit(shape, height, width, y, x, seed):
    maps = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    affine = {}
    if y is not None:
        affine |= {"y_scale": y[0], "y_offset": y[1]}
    if x is not None:
        affine |= {"x_scale": x[0], "x_offset": x[1]}
    expected = _core.reference.resize_bilinear(maps, height, width, **affine)
    assert _core.resize_bilinear(maps, height, width, **affine).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("shape", "target"), [((5, 7, 7), (64, 33)), ((1, 9, 200), (1000, 50)), ((3, 7, 7), (900, 900))]
)
def test_number_of_threads_does_not_change_a_bit(shape, target):
    maps = uniform(*shape)
    alone = _core.resize_bilinear(maps, *target, threads=1)
    for threads in (0, 2, 3, 16):
        assert _core.resize_bilinear(maps, *target, threads=threads).tobytes() == alone.tobytes()


MAPS = np.zeros((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    ("maps", "size", "affine", "error", "message"),
    [
        (MAPS.astype(np.int32), (5, 5), {}, TypeError, "maps: expected dtype float32, got int32"),
        (MAPS[0], (5, 5), {}, ValueError, "maps: expected shape (N, h, w), got (3, 4)"),
        (MAPS[:, :0], (5, 5), {}, ValueError, "maps: shape (2, 0, 4) has size 0 along axis 1"),
        (MAPS, (0, 5), {}, ValueError, "height: expected 1 to 2147483647, got 0"),
        (MAPS, (5, -2), {}, ValueError, "width: expected 1 to 2147483647, got -2"),
        (MAPS, (5, 2**31), {}, ValueError, "width: expected 1 to 2147483647, got 2147483648"),
        (
            MAPS,
            (2**31 - 1, 2**31 - 1),
            {},
            ValueError,
            "result: shape (2, 2147483647, 2147483647) is too large",
        ),
        (MAPS, (5, 5), {"y_scale": 0.0}, ValueError, "y_scale: expected a finite number above 0, got 0.0"),
        (MAPS, (5, 5), {"x_scale": np.inf}, ValueError, "x_scale: expected a finite number above 0, got inf"),
        (MAPS, (5, 5), {"x_offset": np.nan}, ValueError, "x_offset: expected a finite number, got nan"),
        (MAPS, (5, 5), {"threads": -3}, ValueError, "threads: expected 0 (automatic) or more, got -3"),
    ],
)
def test_unfit_arguments_are_named(maps, size, affine, error, message):
    with pytest.raises(error) as raised:
        _core.resize_bilinear(maps, *size, **affine)
    assert str(raised.value) == message
