"""Decoding: from a file, a Pillow image or an array to the RGB pixels that a person would see."""

import hashlib
import io
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from onnxcam.errors import PictureError
from onnxcam.profiling import stage

MAX_PIXELS = 178_956_970
"""Most pixels that a picture may have by default: the size above which Pillow itself refuses."""
MAX_BYTES = 2**30
"""Most bytes that the file of a picture may have by default: 1 GiB."""

_PILLOW_SETTINGS = threading.Lock()
"""Held while Pillow's process-wide pixel limit and the warning filters differ from the user's (header parsing only)."""


class SupportsArray(Protocol):
    """Anything that NumPy can view through `__array__`."""

    def __array__(self) -> npt.NDArray[Any]: ...


class SupportsDLPack(Protocol):
    """Anything that NumPy can view through DLPack, such as a CPU tensor of PyTorch or JAX."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: `rgb` (H, W, 3) uint8, upright and opaque, with where it came from."""

    rgb: npt.NDArray[np.uint8]
    """(H, W, 3), 0..255: EXIF orientation applied, transparency composited on white."""
    source: str
    """The path as given, or `<PIL>` or `<array>`."""
    sha256: str | None
    """Of the file's bytes, in hexadecimal; None when the picture did not come from a file."""


PictureLike = str | os.PathLike[str] | Image.Image | SupportsArray | SupportsDLPack | Picture


@stage("decode")
def load_picture(source: PictureLike, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Picture:
    """Decode a picture into RGB as a person sees it.

    `source` is one of
      * a path to any file that Pillow reads; of an animation or a multi-page file, the first frame;
      * a Pillow image of any mode, as it is now;
      * an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of uint8, of uint16 in 0..65535, or of floats in
        0..1; or any object with `__array__` or `__dlpack__` that holds one. It is copied;
      * a `Picture`, returned as it is.

    The EXIF orientation is applied. Transparency is composited on white: round((c a + 255 (255 - a)) / 255). 16-bit
    grey (PNG, TIFF, modes I;16 and I) becomes round(v / 257), so 65535 is white and nothing is clipped; floats (mode F)
    become round(255 v). Other modes are converted as Pillow does. An embedded ICC profile is not applied, since
    training pipelines do not apply it either.

    Files and Pillow images of more than `max_pixels` pixels are refused before they are decoded, files of more than
    `max_bytes` bytes before they are read further.

    Raises PictureError when the picture is missing, damaged, too large, no picture at all, or has values out of range.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return picture_from_bytes(_read(name, max_bytes), name, max_pixels=max_pixels)
    if isinstance(source, Image.Image):
        return Picture(_decode(source, "<PIL>", max_pixels), "<PIL>", None)
    return Picture(_array_to_rgb(np.array(_as_array(source)), "<array>"), "<array>", None)


def picture_from_bytes(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of a picture's file, called `name`, as `load_picture` does.

    Raises PictureError when they are damaged, too large, or no picture at all.
    """
    if not data:
        raise PictureError(f"{name}: is empty (0 bytes)", "the copy or download was probably cut short: get it again")
    return Picture(_decode(_open(data, name, max_pixels), name, max_pixels), name, hashlib.sha256(data).hexdigest())


def _read(name: str, max_bytes: int) -> bytes:
    try:
        with Path(name).open("rb") as file:
            data = file.read(max_bytes + 1)  # a device may have no end
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file", "check the path") from error
    except IsADirectoryError as error:
        raise PictureError(f"{name}: is a directory", "name a picture file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path that the system cannot express
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PictureError(f"{name!r}: cannot be read: {reason}", "check the path and its permissions") from error
    if len(data) > max_bytes:
        raise PictureError(
            f"{name}: has more than {max_bytes} bytes", "shrink it first, or in Python `load_picture(max_bytes=...)`"
        )
    return data


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    with _PILLOW_SETTINGS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            return Image.open(io.BytesIO(data))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise _too_large(name, max_pixels) from error
        except UnidentifiedImageError as error:
            raise PictureError(
                f"{name}: is not a picture that Pillow can read", "if it opens elsewhere, convert it to PNG or JPEG"
            ) from error
        except Exception as error:  # a damaged header can make a decoder raise anything
            raise _damaged(name, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _decode(image: Image.Image, name: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    if image.width * image.height > max_pixels:
        raise _too_large(name, max_pixels)
    try:
        image = ImageOps.exif_transpose(image)
        mode = image.mode
        if mode == "F" or mode.startswith("I"):
            pixels = np.array(image)
        elif mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
            mode in ("1", "L", "P", "RGB") and "transparency" in image.info
        ):
            pixels = np.array((image.convert("LA") if mode == "La" else image).convert("RGBA"))
        else:
            pixels = np.asarray(image if mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # damaged data can make a decoder raise anything
        raise _damaged(name, error) from error
    if mode == "I":
        low, high = pixels.min(initial=0), pixels.max(initial=0)
        if low < 0 or high > 65535:
            raise PictureError(
                f"{name}: 32-bit values from {low} to {high}, expected 0..65535",
                "scale them to 8 or 16 bits first, or pass an array of floats in 0..1",
            )
        pixels = pixels.astype(np.uint16)
    return _array_to_rgb(pixels, name)


def _as_array(source: Any) -> npt.NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    try:
        if hasattr(source, "__dlpack__"):
            return np.from_dlpack(source)
        if hasattr(source, "__array__"):
            return np.asarray(source)
    except Exception as error:  # whatever the exporter raises
        raise PictureError(
            f"<array>: a {kind} cannot be viewed as an array: {error}",
            "move it to the CPU, detached from any gradient, as uint8 or float32",
        ) from error
    raise PictureError(f"<array>: a {kind} is not a picture", "pass a path, a Pillow image or an array (H, W, 3)")


def _array_to_rgb(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))) or 0 in array.shape:
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        raise PictureError(
            f"{name}: an array of shape {array.shape} is not a picture",
            "put the channels last: `array.transpose(1, 2, 0)`"
            if first and array.size
            else "pass one picture as (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)",
        )
    pixels = _to_8_bit(array, name).reshape(*array.shape[:2], -1)
    if pixels.shape[2] == 4:
        color, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
        return ((color * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _to_8_bit(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        raise PictureError(
            f"{name}: values of type {array.dtype}, expected uint8, uint16 or floats in 0..1",
            "convert with `array.astype(numpy.uint8)` when the values are 0..255",
        )
    with np.errstate(invalid="ignore"):  # a signalling NaN
        scaled = np.rint(array.astype(np.float64) * 255)
    if not np.all((scaled >= 0) & (scaled <= 255)):  # also false for NaN
        raise PictureError(
            f"{name}: float values from {array.min()} to {array.max()}, expected 0..1",
            "scale them to 0..1, or convert with `array.astype(numpy.uint8)` when the values are 0..255",
        )
    return scaled.astype(np.uint8)


def _too_large(name: str, max_pixels: int) -> PictureError:
    return PictureError(
        f"{name}: has more than {max_pixels} pixels",
        "shrink it first; if you trust the file, `--max-pixels N`, in Python `max_pixels=N`",
    )


def _damaged(name: str, error: Exception) -> PictureError:
    return PictureError(
        f"{name}: is damaged or cut short: {error or type(error).__name__}",
        "get the file again, or save it anew as PNG",
    )
