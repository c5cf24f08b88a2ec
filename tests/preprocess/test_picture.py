"""Decoding, against pixel values worked out by hand from each format's definition."""

import hashlib
import io
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcam.errors import PictureError
from onnxcam.picture import load_picture

UPRIGHT = np.arange(1, 7, dtype=np.uint8).reshape(2, 3) * 40  # six different greys, H = 2, W = 3
# What the EXIF standard says the stored rows and columns are: "the 0th row is the visual ..., the 0th column ...".
STORED = {
    1: UPRIGHT,  # top, left
    2: [[120, 80, 40], [240, 200, 160]],  # top, right
    3: [[240, 200, 160], [120, 80, 40]],  # bottom, right
    4: [[160, 200, 240], [40, 80, 120]],  # bottom, left
    5: [[40, 160], [80, 200], [120, 240]],  # left, top
    6: [[120, 240], [80, 200], [40, 160]],  # right, top
    7: [[240, 120], [200, 80], [160, 40]],  # right, bottom
    8: [[160, 40], [200, 80], [240, 120]],  # left, bottom
}


def grey(*rows):
    """The (H, W, 3) pixels of a grey picture given as rows of values."""
    return np.repeat(np.array(rows, np.uint8)[..., np.newaxis], 3, axis=2)


def saved(image, path, **options):
    image.save(path, **options)
    return load_picture(path).rgb.tolist()


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_exif_orientation_is_applied_exactly_once(tmp_path, orientation, extension):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.array(STORED[orientation], np.uint8))
    path = tmp_path / f"stored.{extension}"
    assert saved(stored, path, exif=exif) == grey(*UPRIGHT).tolist()
    with path.open("rb") as file:  # given a path, Pillow 13 maps an uncompressed TIFF from disk and scrambles 5 to 8
        assert load_picture(Image.open(file)).rgb.tolist() == grey(*UPRIGHT).tolist()


def test_a_file_is_named_and_hashed_and_pillow_images_and_arrays_are_not(tmp_path):
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), (1, 2, 3)).save(path)
    picture = load_picture(path)
    assert (picture.rgb.tolist(), picture.source) == ([[[1, 2, 3]]], str(path))
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_picture(str(path)).sha256 == picture.sha256
    assert load_picture(picture) is picture
    for other, name in ((Image.new("RGB", (1, 1), (1, 2, 3)), "<PIL>"), (np.array([[[1, 2, 3]]], np.uint8), "<array>")):
        picture = load_picture(other)
        assert (picture.rgb.tolist(), picture.source, picture.sha256) == ([[[1, 2, 3]]], name, None)


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, extension):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)  # 128 / 257 = 0.498, 32768 / 257 = 127.502
    expected = grey([0, 0, 1, 1, 128, 255])
    assert saved(Image.fromarray(values), tmp_path / f"deep.{extension}") == expected.tolist()
    assert load_picture(values).rgb.tolist() == expected.tolist()
    assert load_picture(values.astype(">u2")).rgb.tolist() == expected.tolist()
    assert load_picture(Image.fromarray(values.astype(np.int32))).rgb.tolist() == expected.tolist()  # mode I
    big_endian = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    assert load_picture(big_endian).rgb.tolist() == expected.tolist()


def test_every_8_bit_value_survives_the_way_through_16_bit():
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(load_picture(values * 257).rgb[..., 1], values)


def test_floats_are_rounded_to_the_nearest_of_255_steps():
    values = np.array([[0, 0.25, 0.5, 1.0, 100.4 / 255]])  # 63.75 -> 64; 127.5 -> 128, halves to even
    for floats in (values, values.astype(np.float32), Image.fromarray(values.astype(np.float32))):  # the last is mode F
        assert load_picture(floats).rgb.tolist() == grey([0, 64, 128, 255, 100]).tolist()


def test_one_bit_pictures_are_black_and_white(tmp_path):
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    assert saved(image, tmp_path / "bits.png") == grey([255, 0, 255]).tolist()


def test_cmyk_ink_darkens(tmp_path):
    image = Image.frombytes("CMYK", (4, 1), bytes([0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 255]))
    expected = [[[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]]  # paper, cyan, magenta + yellow, black
    assert saved(image, tmp_path / "inks.tiff") == expected


def test_ycbcr_is_converted_by_bt_601():
    image = Image.new("YCbCr", (1, 1), (100, 128, 148))
    expected = (100 + 1.402 * 20, 100 - 0.714136 * 20, 100)  # Cr - 128 = 20, Cb - 128 = 0
    assert np.abs(load_picture(image).rgb[0, 0] - expected).max() < 1  # Pillow cuts instead of rounding


def test_lab_is_converted_by_cie_d50():
    # L in steps of 100 / 255, a and b signed: white; grey (L 50.2, linear 0.186); the red of sRGB (54.3, 80.8, 69.9).
    image = Image.frombytes("LAB", (3, 1), bytes([255, 0, 0, 128, 0, 0, 138, 81, 70]))
    white, grey, red = load_picture(image).rgb[0].astype(float)
    assert np.abs(white - 255).max() <= 1
    assert np.abs(grey - 119.4).max() <= 1
    assert np.abs(red - (255, 0, 0)).max() <= 5  # one step of L, a and b


RGBA = np.array([[[200, 100, 0, 255], [200, 100, 0, 51], [200, 100, 0, 0]]], np.uint8)
ON_WHITE = [[[200, 100, 0], [244, 224, 204], [255, 255, 255]]]  # 51 / 255 = 0.2: 0.2 c + 204


def test_transparency_is_composited_on_white(tmp_path):
    assert load_picture(RGBA).rgb.tolist() == ON_WHITE
    assert saved(Image.fromarray(RGBA), tmp_path / "glass.png") == ON_WHITE
    veil = np.array([[[51, 51, 51, 34]]], np.uint8)  # (51 * 34 + 255 * 221) / 255 = 227.8
    assert load_picture(veil).rgb.tolist() == [[[228, 228, 228]]]
    premultiplied = Image.frombytes("RGBa", (1, 1), bytes([40, 20, 0, 51]))
    assert load_picture(premultiplied).rgb.tolist() == [[[244, 224, 204]]]


def test_grey_with_alpha_is_composited_on_white(tmp_path):
    image = Image.frombytes("LA", (3, 1), bytes([100, 255, 100, 51, 100, 0]))
    assert saved(image, tmp_path / "glass.png") == grey([100, 224, 255]).tolist()
    assert load_picture(image.convert("La")).rgb.tolist() == grey([100, 224, 255]).tolist()  # premultiplied


def test_a_palette_with_transparency_is_composited_on_white(tmp_path):
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([200, 100, 0] * 3)
    assert saved(image, tmp_path / "levels.png", transparency=bytes([255, 51, 0])) == ON_WHITE
    assert saved(image, tmp_path / "index.gif", transparency=2) == [[[200, 100, 0], [200, 100, 0], [255, 255, 255]]]
    assert saved(image, tmp_path / "opaque.png") == [[[200, 100, 0]] * 3]


@pytest.mark.parametrize(("mode", "key"), [("L", 100), ("RGB", (100, 100, 100))])
def test_a_transparent_color_key_is_composited_on_white(tmp_path, mode, key):
    image = Image.fromarray(grey([100, 50])).convert(mode)
    assert saved(image, tmp_path / "key.png", transparency=key) == grey([255, 50]).tolist()


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_used(tmp_path, extension):
    frames = [Image.new("L", (2, 2), value) for value in (255, 0, 0)]
    options = {"lossless": True} if extension == "webp" else {}
    rgb = saved(frames[0], tmp_path / f"film.{extension}", save_all=True, append_images=frames[1:], **options)
    assert rgb == grey([255, 255], [255, 255]).tolist()


class OnlyDLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyArray:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class OnGpu:
    def __dlpack__(self, **options):
        raise BufferError("cannot export a GPU buffer")

    __dlpack_device__ = __dlpack__


@pytest.mark.parametrize("wrap", [np.asarray, OnlyDLPack, OnlyArray])
def test_array_layouts_give_the_same_picture(wrap):
    values = np.array([[10, 20, 30]], np.uint8)
    for array in (values, values[..., np.newaxis], grey([10, 20, 30])):
        assert load_picture(wrap(array)).rgb.tolist() == grey([10, 20, 30]).tolist()


def test_later_changes_of_the_array_do_not_change_the_picture():
    array = grey([10, 20])
    picture = load_picture(array)
    array[:] = 0
    assert picture.rgb.tolist() == grey([10, 20]).tolist()


def test_a_pillow_image_is_left_as_it_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array(STORED[6], np.uint8)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        load_picture(image)
        assert (image.size, image.getexif()[0x0112]) == ((2, 3), 6)


def refusal(source, **options):
    with pytest.raises(PictureError) as caught:
        load_picture(source, **options)
    assert caught.value.exit_code == 5
    assert caught.value.hint
    return caught.value.message


def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path):
    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    for source, reason in (
        (tmp_path / "missing.png", "no such file"),
        (tmp_path, "is a directory"),
        (written("empty.png", b""), "is empty (0 bytes)"),
        (written("notes.png", b"not a picture"), "is not a picture"),
        (written("half.jpg", buffer.getvalue()[:-500]), "is damaged or cut short: image file is truncated"),
        (written("header.png", png_header(4, 4)), "is damaged or cut short"),
        (written("bomb.png", png_header(100_000, 100_000)), "has more than 178956970 pixels"),
    ):
        assert refusal(source).startswith(f"{source}: {reason}"), refusal(source)
    assert "cannot be read" in refusal("nul\0byte.png")
    assert "cannot be read: Not a directory" in refusal(tmp_path / "notes.png" / "x.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
def test_every_truncation_is_a_picture_error_or_a_whole_picture(tmp_path, extension):
    path = tmp_path / f"noise.{extension}"
    Image.effect_noise((16, 16), 80).convert("RGB").save(path)
    data = path.read_bytes()
    refused = 0
    for length in range(1, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        try:
            assert load_picture(path).rgb.shape == (16, 16, 3)
        except PictureError as error:
            assert error.message.startswith(str(path))
            refused += 1
    assert refused >= 20


def test_the_pixel_limit_is_inclusive_and_ours_not_pillows(tmp_path, monkeypatch):
    path = tmp_path / "twelve.png"
    Image.new("L", (4, 3), 7).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would warn; warnings are errors in these tests
    assert load_picture(path).rgb.shape == (3, 4, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)  # and here refuse
    assert load_picture(path, max_pixels=12).rgb.shape == (3, 4, 3)
    for source, name in ((path, path), (Image.new("L", (4, 3)), "<PIL>")):
        assert refusal(source, max_pixels=11) == f"{name}: has more than 11 pixels"
        assert refusal(source, max_pixels=5) == f"{name}: has more than 5 pixels"
    assert Image.MAX_IMAGE_PIXELS == 2


def test_pillows_own_size_warning_does_not_leak(tmp_path):
    path = tmp_path / "twelve.png"
    Image.new("L", (4, 3), 7).save(path)
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        refusal(path, max_pixels=11)
    assert leaked == []


def test_threads_with_different_limits_do_not_disturb_each_other_or_pillow(tmp_path, monkeypatch):
    path, before, right, pillow_open = tmp_path / "twelve.png", Image.MAX_IMAGE_PIXELS, [], Image.open
    Image.new("L", (4, 3), 7).save(path)

    def slow_open(file):
        time.sleep(0.002)
        return pillow_open(file)

    def load(limit):
        for _ in range(10):
            try:
                load_picture(path, max_pixels=limit)
                right.append(limit >= 12)
            except PictureError:
                right.append(limit < 12)

    monkeypatch.setattr(Image, "open", slow_open)
    threads = [threading.Thread(target=load, args=(limit,)) for limit in (12, 11, 5, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_is_wrong_with_an_array_is_said():
    for source, reason in (
        (np.zeros((3, 8, 8), np.uint8), "an array of shape (3, 8, 8) is not a picture"),
        (np.zeros((1, 8, 8, 3), np.uint8), "an array of shape (1, 8, 8, 3) is not a picture"),
        (np.zeros((0, 8, 3), np.uint8), "an array of shape (0, 8, 3) is not a picture"),
        (np.zeros((8, 8), np.int64), "values of type int64, expected uint8, uint16 or floats"),
        (np.array([[0.0, 255.0]]), "float values from 0.0 to 255.0, expected 0..1"),
        (np.array([[-0.5, 1.0]]), "float values from -0.5 to 1.0"),
        (np.array([[np.nan]]), "float values from nan to nan"),
        (OnGpu(), "cannot be viewed as an array: cannot export a GPU buffer"),
        (42, "a builtins.int is not a picture"),
    ):
        assert refusal(source).startswith("<array>: ")
        assert reason in refusal(source)
    with pytest.raises(PictureError) as caught:
        load_picture(np.zeros((3, 8, 8), np.uint8))
    assert "transpose(1, 2, 0)" in caught.value.hint
    assert "32-bit values from 0 to 65536" in refusal(Image.fromarray(np.array([[65536]], np.int32)))
    assert "32-bit values from -1 to 0" in refusal(Image.fromarray(np.array([[-1]], np.int32)))
    assert "float values from 0.0 to 2.0" in refusal(Image.fromarray(np.array([[0, 2]], np.float32)))
    assert "is not a picture" in refusal(Image.new("L", (0, 5)))


def test_a_path_given_relative_is_named_as_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (1, 1)).save("a.png")
    assert load_picture("a.png").source == "a.png"
    assert load_picture(Path("a.png")).source == "a.png"


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    assert load_picture(tmp_path / "a.png", max_bytes=size).rgb.shape == (8, 8, 3)
    with pytest.raises(PictureError, match=f"has more than {size - 1} bytes"):
        load_picture(tmp_path / "a.png", max_bytes=size - 1)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="has no such device")
def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(PictureError, match="has more than 1000 bytes"):
        load_picture("/dev/zero", max_bytes=1000)
