"""The input tensor against torchvision and values by hand; the View against where things really went."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxcam.errors import PictureError, UsageError
from onnxcam.picture import Picture
from onnxcam.preprocess import Preprocess, View, imagenet_defaults

FITS = ("crop", "squash", "letterbox")
PIXELS = {"scale": 1.0, "dtype": "uint8"}  # the tensor is the resized picture itself
with np.load(Path(__file__).with_name("torchvision_goldens.npz")) as stored:
    GOLDENS = dict(stored)
PICTURES = [name.removeprefix("picture_") for name in GOLDENS if name.startswith("picture_")]


def picture(rgb):
    return Picture(np.ascontiguousarray(rgb, np.uint8), "<array>", None)


def blank(H0, W0, value=0):
    return np.full((H0, W0, 3), value, np.uint8)


def place(view):
    """(h, w) of the resized picture and (top, left) where its corner is on the tensor."""
    (H0, W0) = view.picture_size
    return view.y_scale * H0, view.x_scale * W0, view.y_offset, view.x_offset


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_pixels_equal_torchvision(name):
    source = picture(GOLDENS[f"picture_{name}"])
    crop = Preprocess((31, 31), crop_pct=31 / 36, layout="nhwc", **PIXELS)
    assert np.array_equal(crop(source)[0][0], GOLDENS[f"crop_{name}"])
    assert np.array_equal(dataclasses.replace(crop, channels="gray")(source)[0][0, ..., 0], GOLDENS[f"gray_{name}"])
    squash = dataclasses.replace(crop, size=(20, 27), fit="squash")
    assert np.array_equal(squash(source)[0][0], GOLDENS[f"squash_{name}"])
    imagenet = dataclasses.replace(imagenet_defaults((31, 31)), crop_pct=31 / 36)
    tensor, _ = imagenet(source)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 31, 31), np.float32)
    assert np.abs(tensor[0] - GOLDENS[f"imagenet_{name}"]).max() <= 1e-6


def test_crop_geometry_equals_torchvision():
    rows = GOLDENS["geometry"].tolist()
    assert len(rows) > 200
    for H0, W0, resize, size, *expected in rows:
        _, view = Preprocess((size, size), crop_pct=size / resize, **PIXELS)(picture(blank(H0, W0)))
        h, w, top, left = place(view)
        assert [h, w, -top, -left] == pytest.approx(expected, abs=1e-9), (H0, W0, resize, size)


COLORS = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)  # H = 1, W = 2


def test_layouts_and_channel_orders_by_hand():
    settings = Preprocess((1, 2), **PIXELS)
    for channels, layout, expected in (
        ("rgb", "nchw", [[[[10, 40]], [[20, 50]], [[30, 60]]]]),
        ("bgr", "nchw", [[[[30, 60]], [[20, 50]], [[10, 40]]]]),
        ("rgb", "nhwc", [[[[10, 20, 30], [40, 50, 60]]]]),
        ("bgr", "nhwc", [[[[30, 20, 10], [60, 50, 40]]]]),
        ("gray", "nchw", [[[[18, 48]]]]),  # 0.299 * 10 + 0.587 * 20 + 0.114 * 30 = 18.15
        ("gray", "nhwc", [[[[18], [48]]]]),
    ):
        tensor, _ = dataclasses.replace(settings, channels=channels, layout=layout)(picture(COLORS))
        assert tensor.tolist() == expected, (channels, layout)
        assert tensor.flags.c_contiguous


def test_mean_and_std_are_in_the_order_of_the_channels():
    settings = Preprocess((1, 2), mean=(1, 2, 3), std=(1, 2, -4), scale=0.5, channels="bgr", layout="nhwc")
    expected = [[[15 - 1, (10 - 2) / 2, (5 - 3) / -4], [30 - 1, (25 - 2) / 2, (20 - 3) / -4]]]
    assert settings(picture(COLORS))[0].tolist() == [expected]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_float_tensors_are_the_value_rounded_once(dtype):
    tensor, _ = Preprocess((1, 2), mean=(0.1,), std=(0.3,), dtype=dtype, layout="nhwc")(picture(COLORS))
    assert tensor.dtype == dtype
    assert np.array_equal(tensor[0], ((COLORS / 255 - 0.1) / 0.3).astype(dtype))


def quantized(values, **settings):
    grey = np.repeat(np.array([values], np.uint8)[..., np.newaxis], 3, axis=2)
    tensor, _ = Preprocess((1, len(values)), channels="gray", **settings)(picture(grey))
    assert tensor.dtype == settings["dtype"]
    return tensor.ravel().tolist()


def test_quantized_values_by_hand():
    # v / 0.5 = pixel / 2: 0, .5, 1, 1.5, 2.5, 127.5; halves to even, then the zero point is added, then saturated.
    assert quantized([0, 1, 2, 3, 5, 255], scale=0.25, dtype="uint8", quantization=(0.5, 10)) == [
        10,
        10,
        11,
        12,
        12,
        138,
    ]
    assert quantized([0, 1, 3, 5, 255], scale=0.25, dtype="int8", quantization=(0.5, -3)) == [-3, -3, -1, -1, 125]
    assert quantized([0, 200, 255], scale=1.0, dtype="int8", quantization=(1.0, 0)) == [0, 127, 127]
    assert quantized([0, 255], scale=1.0, mean=(100,), dtype="int8", quantization=(0.5, 0)) == [-128, 127]
    # TensorFlow Lite's usual int8 input, 0..1 with scale 1 / 255 and zero point -128, is the pixel less 128.
    every = list(range(256))
    assert quantized(every, dtype="int8", quantization=(1 / 255, -128)) == [pixel - 128 for pixel in every]


def test_integers_without_quantization_are_rounded_and_saturated():
    assert quantized([0, 7, 255], scale=1.0, dtype="uint8") == [0, 7, 255]
    assert quantized([1, 3, 255], scale=0.5, dtype="int32") == [0, 2, 128]  # 0.5, 1.5, 127.5: halves to even
    assert quantized([0, 128, 255], scale=1.0, mean=(128,), dtype="int8") == [-128, 0, 127]
    assert quantized([0, 128, 255], scale=1.0, dtype="int8") == [0, 127, 127]
    assert quantized([0, 255], scale=1000.0, dtype="int16") == [0, 32767]
    assert quantized([0, 255], scale=-1.0, dtype="uint16") == [0, 0]
    assert quantized([255], scale=1e9, dtype="int32") == [2**31 - 1]


def test_imagenet_defaults_by_hand():
    assert imagenet_defaults((224, 224)) == Preprocess(
        (224, 224), "crop", 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255, "rgb", "nchw"
    )
    _, view = imagenet_defaults((224, 224))(picture(blank(300, 400)))
    assert place(view) == pytest.approx((256, 341, -16, -58))  # (341 - 224) / 2 = 58.5, halves to even
    bgr = imagenet_defaults((8, 8), channels="bgr", layout="nhwc")
    assert bgr(picture(blank(8, 8, 255)))[0][0, 0, 0] == pytest.approx([0.594 / 0.225, 0.544 / 0.224, 0.515 / 0.229])
    gray = imagenet_defaults((8, 8), channels="gray")
    assert gray(picture(blank(8, 8, 255)))[0][0, 0, 0, 0] == pytest.approx(0.551 / 0.226)
    assert imagenet_defaults((8, 8), dtype="uint8")(picture(blank(8, 8, 200)))[0][0, 0, 0, 0] == 200
    assert imagenet_defaults((8, 8), dtype="int8")(picture(blank(8, 8, 200)))[0][0, 0, 0, 0] == 72


# --- geometry -------------------------------------------------------------------------------------------------------


def test_letterbox_by_hand():
    # r = min(8 / 3, 9 / 5) = 1.8: 3 x 5 -> round(5.4) = 5 x 9; 3 rows of border, the odd one below.
    tensor, view = Preprocess((8, 9), "letterbox", layout="nhwc", **PIXELS)(picture(blank(3, 5, 200)))
    assert tensor[0, :, 0, 0].tolist() == [114, 200, 200, 200, 200, 200, 114, 114]
    assert (tensor[0, 1:6] == 200).all()
    assert place(view) == pytest.approx((5, 9, 1, 0))
    # r = min(7 / 4, 8 / 2) = 1.75: 4 x 2 -> 7 x round(3.5) = 4, halves to even; 4 columns of border.
    tensor, view = Preprocess((7, 8), "letterbox", layout="nhwc", pad=0, **PIXELS)(picture(blank(4, 2, 200)))
    assert tensor[0, 0, :, 0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]
    assert place(view) == pytest.approx((7, 4, 0, 2))
    # r = min(8 / 7, 6 / 9) = 2 / 3: 7 x 9 -> round(4.67) = 5 x 6; 3 rows of border around a grey picture.
    tensor, view = Preprocess((8, 6), "letterbox", channels="gray", pad=7, **PIXELS)(picture(blank(7, 9, 200)))
    assert tensor[0, 0, :, 3].tolist() == [7, 200, 200, 200, 200, 200, 7, 7]
    assert place(view) == pytest.approx((5, 6, 1, 0))


def test_resize_rounding_and_pad_by_hand():
    # 6 x 8 squashed to 9 x 6: of 9 rows the middle 4 from round(2.5) = 2, halves to even, or 5 // 2 = 2.
    ramp = np.repeat(np.arange(9, dtype=np.uint8)[:, np.newaxis, np.newaxis] * 20, 6, axis=1).repeat(3, axis=2)
    rows = {"size": (4, 8), "fit": "squash", "resize": (9, 6), "channels": "bgr", "layout": "nhwc", "pad": (1, 2, 3)}
    for rounding, first in (("torchvision", 2), ("transformers", 2)):
        tensor, view = Preprocess(**rows, rounding=rounding, **PIXELS)(picture(ramp))
        assert tensor[0, :, 3, 0].tolist() == [20 * (first + i) for i in range(4)]
        assert tensor[0, 1, :, :].tolist()[0] == tensor[0, 1].tolist()[7] == [1, 2, 3]  # 6 columns on 8: one each side
        assert place(view) == pytest.approx((9, 6, -first, 1))
    # 7 -> 4 rows: round(1.5) = 2, but 3 // 2 = 1.
    starts = [
        place(Preprocess((4, 4), resize=(7, 7), rounding=r, **PIXELS)(picture(blank(7, 7)))[1])[2]
        for r in ("torchvision", "transformers", "timm")
    ]
    assert starts == [-2, -1, -2]
    # 3 x 5 covering 6 x 6: the long edge is 10; covering 4 x 6 it is 20 / 3, cut to 6 or rounded to 7.
    widths = [
        place(Preprocess((4, 6), resize=(4, 6), rounding=r, **PIXELS)(picture(blank(3, 5)))[1])[1]
        for r in ("torchvision", "timm")
    ]
    assert widths == pytest.approx([6, 7])


def test_resampling_filters_by_hand():
    edge = blank(1, 4)
    edge[0, 2:] = 200

    def halved(resample):
        settings = Preprocess((1, 2), "squash", resample=resample, channels="gray", **PIXELS)
        return settings(picture(edge))[0].ravel().tolist()

    # Antialiased, each of two cells sees 4 pixels or what is left of them: weights 1/8, 3/8, 3/8, 1/8 renormalised.
    assert halved("bilinear") == [29, 171]  # 200 * 1 / 7
    assert halved("box") == halved("opencv-bilinear") == [0, 200]  # the mean of two pixels


def test_letterbox_of_a_thread_keeps_one_row():
    tensor, view = Preprocess((8, 8), "letterbox", layout="nhwc", **PIXELS)(picture(blank(1, 1000, 200)))
    assert tensor[0, :, 3, 0].tolist() == [114, 114, 114, 200, 114, 114, 114, 114]
    assert view.region == (0, 0, 1000, 1)


def test_crop_for_a_tensor_that_is_not_square_covers_both_edges():
    # round((60, 100) / 0.8) = (75, 125). 200 x 400 needs max(75 / 200, 125 / 400): the height binds, 75 x 150.
    _, view = Preprocess((60, 100), crop_pct=0.8, **PIXELS)(picture(blank(200, 400)))
    assert place(view) == pytest.approx((75, 150, -8, -25))  # 7.5, halves to even
    # 200 x 300 needs max(75 / 200, 125 / 300): the width binds, int(125 * 200 / 300) = 83 x 125.
    _, view = Preprocess((60, 100), crop_pct=0.8, **PIXELS)(picture(blank(200, 300)))
    assert place(view) == pytest.approx((83, 125, -12, -12))  # 11.5 and 12.5, halves to even


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 48)])
@pytest.mark.parametrize(("H0", "W0"), [(300, 300), (200, 333), (333, 200), (25, 40), (41, 23)])
def test_a_bright_square_maps_back_to_where_it_was(fit, size, H0, W0):
    settings = Preprocess(size, fit, crop_pct=0.8, channels="gray", pad=0, scale=1.0)
    side = 3
    seen = 0
    for y, x in (
        ((H0 - side) // 2, (W0 - side) // 2),
        (H0 // 3, W0 // 2),
        (H0 // 2, W0 // 3),
        (H0 * 3 // 5, W0 * 3 // 5),
    ):
        rgb = blank(H0, W0)
        rgb[y : y + side, x : x + side] = 255
        tensor, view = settings(picture(rgb))
        x0, y0, x1, y1 = view.region
        if not (x0 <= x - 3 and x + side + 3 <= x1 and y0 <= y - 3 and y + side + 3 <= y1):
            continue  # the square or its blur is cut off
        seen += 1
        light = tensor[0, 0] / tensor.sum()
        centre_y = (light.sum(1) * (np.arange(size[0]) + 0.5)).sum()
        centre_x = (light.sum(0) * (np.arange(size[1]) + 0.5)).sum()
        found = view.to_picture([centre_x, centre_y, centre_x, centre_y])
        true_x, true_y = x + side / 2, y + side / 2
        assert np.abs(found - [true_x, true_y, true_x, true_y]).max() < 0.25
    assert seen >= 1


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(64, 64), (50, 90), (90, 50)])
@pytest.mark.parametrize(("H0", "W0"), [(253, 255), (101, 250), (250, 101), (31, 47), (47, 31)])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"resize": (71, 95), "resample": "bicubic"},
        {"resize": (101, 97), "rounding": "transformers", "resample": "opencv-bilinear"},
        {"resize": (77, 47), "rounding": "timm", "resample": "lanczos"},
    ],
)
def test_the_view_is_what_pillow_did_to_a_ramp(fit, size, H0, W0, more):
    """A pixel that holds its own row (column) still holds it after a resize, away from the edges."""
    settings = Preprocess(size, fit, crop_pct=0.9, channels="gray", scale=1.0, **more)
    y, x = np.mgrid[:H0, :W0]
    for axis, ramp in ((0, y), (1, x)):
        tensor, view = settings(picture(np.repeat(ramp[..., np.newaxis], 3, axis=2)))
        cells = np.arange(size[axis]) + 0.5
        boxes = np.stack([cells] * 4, axis=1)
        places = view.to_picture(boxes)[:, 1 - axis]  # where each row (column) of the tensor lies on the picture
        middle = tensor[0, 0].take(size[1 - axis] // 2, 1 - axis)
        margin = (3 if more else 2) * max(1.0, 1 / (view.y_scale, view.x_scale)[axis])  # what Lanczos sees
        inside = (places > margin) & (places < (H0, W0)[axis] - margin)
        assert inside.sum() >= 10
        error = middle[inside] - (places[inside] - 0.5)
        assert np.abs(error).max() <= 0.5 + 1e-6  # 8-bit rounding
        assert abs(error.mean()) < 0.1  # and no shift


def test_region_by_hand():
    # 300 x 400 -> 256 x 341, corner at (-16, -58): the rows with (i + 0.5) * 256 / 300 in [16, 240) are 19 .. 280.
    _, view = imagenet_defaults((224, 224))(picture(blank(300, 400)))
    assert view.region == (68, 19, 331, 281)  # (i + 0.5) * 341 / 400 in [58, 282): columns 68 .. 330
    for fit in ("squash", "letterbox"):
        _, view = Preprocess((224, 224), fit)(picture(blank(300, 400)))
        assert view.region == (0, 0, 400, 300)


def test_region_is_never_empty_even_where_no_pixel_centre_is_seen():
    # 1 x 2 -> 448 x 896, columns 336 .. 560 of it: the border of both pixels, whose centres are at 224 and 672.
    _, view = Preprocess((448, 224))(picture(blank(1, 2)))
    assert place(view) == pytest.approx((448, 896, 0, -336))
    assert view.region == (0, 0, 2, 1)


def test_map_grid_by_hand():
    # 100 x 200 -> 50 x 100, columns 25 .. 75; a 5 x 5 map has one cell per 10 tensor cells.
    _, view = Preprocess((50, 50))(picture(blank(100, 200)))
    assert view.map_grid(5, 5) == pytest.approx((0.05, 0.0, 0.05, -2.5))
    y_scale, y_offset, x_scale, x_offset = view.map_grid(5, 10)
    assert (50 + 0.5) * x_scale + x_offset - 0.5 == pytest.approx((50.5 / 2 - 25) / 5 - 0.5)  # the first column seen
    assert (99 + 0.5) * y_scale + y_offset - 0.5 == pytest.approx(99.5 / 2 / 10 - 0.5)  # the last row
    assert View((100, 200), (50, 40), 0.5, 3.0, 0.25, -2.0).map_grid(5, 8) == pytest.approx((0.05, 0.3, 0.05, -0.4))


def test_identity_view_changes_nothing():
    view = View.identity((7, 9))
    assert view.region == (0, 0, 9, 7)
    assert view.map_grid(7, 9) == (1.0, 0.0, 1.0, 0.0)
    assert view.to_picture([1, 2, 3, 4]).tolist() == view.to_tensor([1, 2, 3, 4]).tolist() == [1, 2, 3, 4]


def test_boxes_map_by_hand():
    view = View((100, 200), (50, 50), 0.5, 3.0, 0.25, -2.0)
    assert view.to_tensor([8, 10, 20, 30]).tolist() == [0, 8, 3, 18]
    assert view.to_picture([[0, 8, 3, 18], [-2, 3, 48, 53]]).tolist() == [[8, 10, 20, 30], [0, 0, 200, 100]]


sizes = st.integers(1, 60)
coordinates = st.lists(st.floats(-500, 500), min_size=4, max_size=4)


@given(sizes, sizes, sizes, sizes, st.sampled_from(FITS), st.floats(0.3, 1), coordinates)
def test_to_picture_is_the_inverse_of_to_tensor(H0, W0, H, W, fit, crop_pct, box):
    _, view = Preprocess((H, W), fit, crop_pct, **PIXELS)(picture(blank(H0, W0)))
    assert view.to_picture(view.to_tensor(box)) == pytest.approx(box, rel=1e-9, abs=1e-7)
    assert view.to_tensor(view.to_picture(box)) == pytest.approx(box, rel=1e-9, abs=1e-7)


@given(sizes, sizes, sizes, sizes, st.sampled_from(FITS), st.floats(0.3, 1))
def test_every_fit_keeps_its_promise(H0, W0, H, W, fit, crop_pct):
    tensor, view = Preprocess((H, W), fit, crop_pct, layout="nhwc", pad=0, **PIXELS)(picture(blank(H0, W0, 200)))
    assert tensor.shape == (1, H, W, 3)
    x0, y0, x1, y1 = view.to_picture([0, 0, W, H])
    if fit == "letterbox":  # all of the picture, on one border at most per axis but on an axis without any
        assert min(x0, y0, W0 - x1, H0 - y1) <= 1e-9
        assert view.region == (0, 0, W0, H0)
        h, w, top, left = (round(value) for value in place(view))
        assert (tensor[0, top : top + h, left : left + w] == 200).all()
        assert tensor.sum() == 200 * 3 * h * w
        assert (h, w)[W * H0 < H * W0] == (H, W)[W * H0 < H * W0]
    else:  # nothing but picture
        assert min(x0, y0, W0 - x1, H0 - y1) >= -1e-9
        assert (tensor == 200).all()
    if fit == "squash":
        assert (x0, y0, x1, y1) == pytest.approx((0, 0, W0, H0))
    x0, y0, x1, y1 = view.region
    assert 0 <= x0 < x1 <= W0
    assert 0 <= y0 < y1 <= H0


def test_a_picture_too_thin_to_crop_is_refused_before_it_is_enlarged():
    thread = picture(blank(1, 10_000))
    with pytest.raises(PictureError) as caught:
        Preprocess((224, 224))(thread)
    assert caught.value.message == (
        "<array>: is too thin (10000x1) for a crop: it would first be enlarged to 2240000x224 pixels"
    )
    assert "letterbox" in caught.value.hint
    assert Preprocess((224, 224), "letterbox")(thread)[0].shape == (1, 3, 224, 224)


# --- settings -------------------------------------------------------------------------------------------------------


def refusal(build):
    with pytest.raises(UsageError) as caught:
        build()
    assert caught.value.exit_code == 2
    assert "onnxcam.preprocess" in caught.value.hint
    return caught.value.message


def test_json_round_trip_is_exact_and_plain():
    settings = Preprocess(
        [480, 640],
        "letterbox",
        0.9,
        [1, 2, 3],
        [4, 5, 6],
        0.1,
        "bgr",
        "nhwc",
        np.int64(0),
        "int8",
        [np.float32(0.5), -128],
    )
    text = json.dumps(settings.to_json())
    assert Preprocess.from_json(text) == Preprocess.from_json(text.encode()) == settings
    assert Preprocess.from_json(settings.to_json()) == settings
    assert hash(settings) == hash(Preprocess.from_json(text))
    assert json.loads(text) == {
        "size": [480, 640],
        "fit": "letterbox",
        "crop_pct": 0.9,
        "mean": [1, 2, 3],
        "std": [4, 5, 6],
        "scale": 0.1,
        "channels": "bgr",
        "layout": "nhwc",
        "pad": 0,
        "dtype": "int8",
        "quantization": [0.5, -128],
        "resample": "bilinear",
        "resize": None,
        "rounding": "torchvision",
    }
    assert Preprocess.from_json('{"size": [3, 4]}') == Preprocess((3, 4))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("size", [0, 4], "found [0, 4], expected two integers > 0: H, W"),
        ("size", 224, "found 224, expected two integers"),
        ("size", [2.5, 4], "found [2.5, 4]"),
        ("size", [True, 4], "found [True, 4]"),
        ("fit", "croop", "found 'croop' (did you mean 'crop'?), expected one of crop, squash, letterbox"),
        ("fit", "xyz", "found 'xyz', expected"),
        ("channels", "grey", "found 'grey' (did you mean 'gray'?)"),
        ("layout", "NCHW", "found 'NCHW' (did you mean 'nchw'?)"),
        ("dtype", "flaot32", "found 'flaot32' (did you mean 'float32'?)"),
        ("dtype", "bfloat16", "expected one of float32"),
        ("crop_pct", 0, "found 0, expected a number > 0 and <= 1"),
        ("crop_pct", 1.01, "found 1.01"),
        ("crop_pct", "0.875", "found '0.875'"),
        ("mean", 0.5, "found 0.5, expected a list of numbers"),
        ("mean", [0.1, 0.2], "found [0.1, 0.2], expected a list of numbers: one, or one per channel"),
        ("mean", [float("nan")], "found [nan]"),
        ("std", [1, 0, 1], "found [1, 0, 1], expected a list of numbers other than 0"),
        ("scale", 0, "found 0, expected a number other than 0"),
        ("scale", float("inf"), "found inf"),
        ("pad", 256, "found 256, expected an integer from 0 to 255"),
        ("pad", 1.5, "found 1.5"),
        ("scale", True, "found True"),
        ("quantization", [0, 0], "found [0, 0], expected nothing, or a scale > 0"),
        ("quantization", [0.5], "found [0.5]"),
        ("quantization", [0.5, 1.5], "found [0.5, 1.5]"),
        ("quantization", [0.5, 1], "found [0.5, 1], expected nothing for dtype float32"),
    ],
)
def test_every_bad_value_is_named_with_what_was_expected(key, value, said):
    for build in (
        lambda: Preprocess(**{"size": (4, 4), key: value}),
        lambda: Preprocess.from_json({"size": [4, 4], key: value}),
    ):
        message = refusal(build)
        assert message.startswith(f"preprocessing settings: {key}: ")
        assert said in message


def test_values_that_contradict_each_other_are_named():
    for key in ("mean", "std", "pad"):
        three = {key: (1, 2, 3)}
        said = f"preprocessing settings: {key}: found 3 values, but `gray` pictures have 1 channel"
        assert refusal(lambda three=three: Preprocess((4, 4), **three, channels="gray")) == said
        assert refusal(lambda three=three: Preprocess.from_json({"size": [4, 4], "channels": "gray", **three})) == said
        assert Preprocess((4, 4), **three, channels="bgr").channels == "bgr"
    assert "found zero point 200, expected one in the range of int8" in refusal(
        lambda: Preprocess((4, 4), dtype="int8", quantization=(1.0, 200))
    )
    assert "found zero point -1, expected one in the range of uint8" in refusal(
        lambda: Preprocess((4, 4), dtype="uint8", quantization=(1.0, -1))
    )
    assert "too large for float16" in refusal(lambda: Preprocess((4, 4), scale=1000.0, dtype="float16"))


def test_all_problems_are_named_at_once():
    lines = refusal(
        lambda: Preprocess.from_json('{"sise": [4, 4], "pad": -1, "mean": [1, 2, 3], "channels": "gray", "x": 0}')
    ).splitlines()
    assert lines[0] == "preprocessing settings: "
    assert [line.strip().split(":")[0] for line in lines[1:]] == ["sise", "x", "size", "pad", "mean"]
    assert "unknown key (did you mean 'size'?), expected one of size, fit, crop_pct" in lines[1]
    assert "missing, expected two integers > 0: H, W" in lines[3]
    assert len(refusal(lambda: Preprocess((0, 4), "x", 2, (), (0,))).splitlines()) == 6


def test_what_is_not_a_json_object_is_refused():
    assert "not JSON" in refusal(lambda: Preprocess.from_json("{"))
    assert "not JSON" in refusal(lambda: Preprocess.from_json(b"\xff\xfe\xff"))
    assert "found [1], expected a JSON object" in refusal(lambda: Preprocess.from_json("[1]"))


@pytest.mark.parametrize("field", ["size", "resize"])
def test_an_input_of_too_many_pixels_is_refused_before_it_is_made(field: str) -> None:
    with pytest.raises(UsageError, match=rf"(?m)^.*{field}: found \(100000, 100000\), expected .* at most 178,956,970"):
        Preprocess(**{"size": (8, 8), field: (100_000, 100_000)})


def test_a_picture_may_be_given_as_everywhere_else(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    settings = Preprocess((4, 4), scale=1.0)
    for source in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(settings(source)[0], pixels.transpose(2, 0, 1)[None])
