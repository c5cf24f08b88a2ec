"""A map lies where the thing is, in the picture's own pixels, whatever was done to make the picture fit.

The model measures how red (class 0) and how blue (class 1) each 4x4 block of its 32x32 input is, and averages.
"""

import numpy as np
import pytest
from onnx import ModelProto, parser

from onnxcam import Explainer
from onnxcam.explanation import Explanation

H, W = 200, 300
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
Box = tuple[int, int, int, int]


def detector(layout: str = "nchw", batch: str = "N") -> ModelProto:
    declared = f"float[{batch},3,32,32] x" if layout == "nchw" else f"float[{batch},32,32,3] x"
    first = "i = Identity(x)" if layout == "nchw" else "i = Transpose<perm=[0,3,1,2]>(x)"
    return parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        detector ({declared}) => (float[{batch},2] y)
        <float[2,3,1,1] w = {{1, -0.5, -0.5, -0.5, -0.5, 1}}, float[2,2] v = {{1, 0, 0, 1}}>
        {{
            {first}
            m = AveragePool<kernel_shape=[4,4], strides=[4,4]>(i)
            c = Conv(m, w)
            a = Relu(c)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            y = Gemm<transB=1>(f, v)
        }}""")


def picture(**squares: Box) -> np.ndarray:
    """A grey, faintly noisy landscape with coloured squares at x0, y0, x1, y1."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(100, 130, (H, W, 1), np.uint8), 3, 2)
    for colour, (x0, y0, x1, y1) in squares.items():
        pixels[y0:y1, x0:x1] = COLOURS[colour]
    return pixels


def explained(pixels: np.ndarray, fit: str, target: int = 0, **options: object) -> Explanation:
    settings = {"fit": fit, "mean": (0.0,), "std": (1.0,), "crop_pct": 1.0, **options}
    return Explainer(detector(), preprocess=settings, threads=1)(pixels, target)


def centre(values: np.ndarray) -> tuple[float, float]:
    """(x, y) of the centre of mass, in pixel coordinates."""
    y, x = np.indices(values.shape) + 0.5
    return float((values * x).sum() / values.sum()), float((values * y).sum() / values.sum())


RED, BLUE = (140, 40, 190, 90), (80, 130, 120, 170)
FITS = ["crop", "squash", "letterbox"]


@pytest.mark.parametrize("fit", FITS)
def test_the_peak_lies_in_the_square_of_the_explained_colour(fit: str) -> None:
    pixels = picture(red=RED, blue=BLUE)
    for target, (x0, y0, x1, y1) in ((0, RED), (1, BLUE)):
        e = explained(pixels, fit, target)
        x, y = e.peak
        assert e.values.shape == (H, W) and e.values[y, x] == e.values.max() == pytest.approx(1, abs=2e-7)
        assert x0 <= x < x1 and y0 <= y < y1
        # The map is no finer than its cells, but it is centred where the square is.
        assert centre(e.values) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=4)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("corner", [(50, 0), (210, 0), (50, 160), (210, 160)])
def test_squares_at_the_edge_of_what_is_seen_are_found(fit: str, corner: tuple[int, int]) -> None:
    x0, y0 = corner
    x, y = explained(picture(red=(x0, y0, x0 + 40, y0 + 40)), fit).peak
    assert x0 <= x < x0 + 40 and y0 <= y < y0 + 40


def test_outside_a_centre_crop_the_map_is_0_and_the_overlay_is_the_picture() -> None:
    pixels = picture(red=RED, blue=(0, 0, 45, 50))
    e = explained(pixels, "crop")
    assert e.region == (50, 0, 250, 200)
    outside = np.ones((H, W), bool)
    outside[:, 50:250] = False
    assert not e.values[outside].any()
    overlay = np.asarray(e.overlay())
    assert np.array_equal(overlay[outside], pixels[outside])
    assert (overlay[~outside] != pixels[~outside]).any(-1).mean() > 0.9


def test_a_crop_share_below_1_shrinks_the_region_about_the_centre() -> None:
    e = explained(picture(red=RED), "crop", crop_pct=0.8)
    assert e.region == (70, 20, 230, 180)  # 32 / 0.8 = 40 cells over 200 pixels
    assert not e.values[:20].any() and not e.values[:, :70].any()
    x, y = e.peak
    assert 140 <= x < 190 and 40 <= y < 90


def test_what_a_crop_cuts_off_is_not_seen_and_what_it_keeps_is() -> None:
    away = picture(red=(255, 80, 295, 120))
    assert explained(away, "crop").is_empty
    for fit in ("squash", "letterbox"):
        x, y = explained(away, fit).peak
        assert 255 <= x < 295 and 80 <= y < 120


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_without_a_crop_the_whole_picture_is_the_region(fit: str) -> None:
    assert explained(picture(red=RED), fit).region == (0, 0, W, H)


@pytest.mark.parametrize("fit", FITS)
def test_turning_the_picture_turns_the_map(fit: str) -> None:
    pixels = picture(red=RED)
    level, upright = explained(pixels, fit), explained(pixels.transpose(1, 0, 2), fit)
    # Pillow resizes one axis after the other and rounds to 8 bits in between.
    np.testing.assert_allclose(upright.values.T, level.values, rtol=0, atol=0.02)
    np.testing.assert_allclose(upright.raw.T, level.raw, rtol=0, atol=0.0005)


@pytest.mark.parametrize("fit", FITS)
def test_mirroring_the_picture_mirrors_the_map(fit: str) -> None:
    pixels = picture(red=RED)
    e, mirrored = explained(pixels, fit), explained(pixels[:, ::-1], fit)
    np.testing.assert_allclose(mirrored.values[:, ::-1], e.values, rtol=0, atol=0.02)


def test_channels_last_models_see_and_show_the_same() -> None:
    settings = {"fit": "crop", "mean": (0.0,), "std": (1.0,), "crop_pct": 1.0}
    first, last = (Explainer(detector(layout), preprocess=settings, threads=1) for layout in ("nchw", "nhwc"))
    pixels = picture(red=RED, blue=BLUE)
    np.testing.assert_allclose(last(pixels, 1).values, first(pixels, 1).values, rtol=0, atol=1e-6)


def test_a_picture_of_exactly_the_models_size_is_its_own_tensor() -> None:
    pixels = picture(red=RED)[30:62, 130:162]
    (tensor,) = Explainer(detector(), threads=1).explain_tensor(
        (pixels / np.float32(255)).transpose(2, 0, 1)[None].astype(np.float32), 0
    )
    for fit in FITS:
        np.testing.assert_allclose(explained(pixels, fit).values, tensor.values, rtol=0, atol=1e-5)
