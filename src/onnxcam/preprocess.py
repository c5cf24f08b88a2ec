"""From a picture to the model's input tensor, and the affine map from the tensor back to the picture."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcam.errors import PictureError, UsageError
from onnxcam.jsontext import parsed_json
from onnxcam.picture import MAX_PIXELS, Picture, PictureLike, load_picture
from onnxcam.profiling import stage

__all__ = ["METADATA_KEY", "Picture", "PictureLike", "Preprocess", "View", "imagenet_defaults", "load_picture"]

METADATA_KEY = "onnxcam.preprocess"
"""The key of a model's metadata under which the JSON of `Preprocess.to_json` is looked up."""

_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_FLOATS = ("float32", "float16", "float64")
_INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "int64")


@dataclass(frozen=True)
class View:
    """Where a tensor lies on its picture: per axis, tensor coordinate = picture coordinate * scale + offset.

    Coordinates are continuous and count pixel edges: pixel i covers i to i + 1 and has its centre at i + 0.5.
    The scales are those of the resize that was done, whole numbers of pixels, not of the ideal one.
    """

    picture_size: tuple[int, int]
    """(H0, W0) in pixels."""
    tensor_size: tuple[int, int]
    """(H, W) in tensor cells."""
    y_scale: float
    y_offset: float
    x_scale: float
    x_offset: float

    @classmethod
    def identity(cls, size: tuple[int, int]) -> "View":
        """The view of a model-ready tensor of `size` (H, W), which is its own picture."""
        return cls(size, size, 1.0, 0.0, 1.0, 0.0)

    @cached_property
    def region(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1), end-exclusive picture pixels: those whose centre lies inside the tensor.

        Along an axis on which no centre does (a strong enlargement), the pixels that overlap the tensor; never empty.
        """
        y0, y1 = _seen(self.picture_size[0], self.tensor_size[0], self.y_scale, self.y_offset)
        x0, x1 = _seen(self.picture_size[1], self.tensor_size[1], self.x_scale, self.x_offset)
        return x0, y0, x1, y1

    def map_grid(self, h: int, w: int) -> tuple[float, float, float, float]:
        """(y_scale, y_offset, x_scale, x_offset) from the picture to an (h, w) map that covers the tensor evenly.

        Picture pixel i has its centre at (i + 0.5) * scale + offset - 0.5 on the map, where cell j has its centre at j:
        the half-pixel source coordinate of a resize from the map to the picture.
        """
        y, x = h / self.tensor_size[0], w / self.tensor_size[1]
        return self.y_scale * y, self.y_offset * y, self.x_scale * x, self.x_offset * x

    @cached_property
    def sees_all(self) -> bool:
        """Whether the region is the whole picture."""
        height, width = self.picture_size
        return self.region == (0, 0, width, height)

    def resize(self, h: int, w: int) -> tuple[int, int, float, float, float, float]:
        """(height, width, y_scale, y_offset, x_scale, x_offset): of the resize from an (h, w) map to the region."""
        found = self._resizes.get((h, w))
        if found is None:
            x0, y0, x1, y1 = self.region
            y_scale, y_offset, x_scale, x_offset = self.map_grid(h, w)
            found = y1 - y0, x1 - x0, y_scale, y_offset + y0 * y_scale, x_scale, x_offset + x0 * x_scale
            self._resizes[h, w] = found
        return found

    @cached_property
    def _resizes(self) -> dict[tuple[int, int], tuple[int, int, float, float, float, float]]:
        return {}

    def to_tensor(self, box_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes (..., 4) as x0, y0, x1, y1 in picture coordinates -> the same in tensor coordinates, not clipped."""
        return np.asarray(box_xyxy, np.float64) * self._scales + self._offsets

    def to_picture(self, box_xyxy: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Boxes (..., 4) as x0, y0, x1, y1 in tensor coordinates -> the same in picture coordinates, not clipped."""
        return (np.asarray(box_xyxy, np.float64) - self._offsets) / self._scales

    @property
    def _scales(self) -> npt.NDArray[np.float64]:
        return np.array([self.x_scale, self.y_scale] * 2)

    @property
    def _offsets(self) -> npt.NDArray[np.float64]:
        return np.array([self.x_offset, self.y_offset] * 2)


def _seen(pixels: int, cells: int, scale: float, offset: float) -> tuple[int, int]:
    low, high = -offset / scale, (cells - offset) / scale
    first, end = max(0, math.ceil(low - 0.5)), min(pixels, math.ceil(high - 0.5))
    return (first, end) if first < end else (max(0, math.floor(low)), min(pixels, math.ceil(high)))


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its pictures: tensor = (uint8 pixel * scale - mean) / std, of a given size, order and type.

    Resizing is one of Pillow's filters, antialiased when shrinking, as torchvision does with Pillow images; or, as
    `resample` says, OpenCV's bilinear interpolation, which does not antialias. `fit` is one of
      * `crop`: resize so that the picture covers `resize` on both axes, then take the centre. The axis that needs the
        larger scale (the short edge, when `resize` is square) becomes exactly that long, the other int(that * other /
        this). For a square `resize` this is torchvision's Resize(int) and CenterCrop;
      * `squash`: resize to `resize`, changing the aspect ratio, then take the centre;
      * `letterbox`: resize by r = min(h / H0, w / W0), with `resize` (h, w), to round(H0 r) x round(W0 r), halves to
        even, at least 1 pixel, and centre it on the colour `pad`.

    The centre starts at round((resized - size) / 2), halves to even. Where the resized picture is the smaller one, it
    lies on the colour `pad`; of an odd border, the extra row or column is below or on the right, as in YOLO.

    Luminance for `gray` is ITU-R 601 as in Pillow's "L", taken before resizing.

    With an integer `dtype` the value v = (pixel * scale - mean) / std becomes
      * saturate(round_half_even(v / s) + z) for `quantization` (s, z), in float32 as ONNX QuantizeLinear does;
      * saturate(round_half_even(v)) otherwise: with scale 1, mean 0, std 1 and uint8, the resized pixels themselves.

    Raises UsageError naming every bad field at once.
    """

    size: tuple[int, int]
    """(H, W) of the model's input."""
    fit: str = "crop"
    """`crop`, `squash` or `letterbox`."""
    crop_pct: float = 1.0
    """For `crop`: the share of the resized short edge that is kept; 0.875 is ImageNet's 256 -> 224. See `resize`."""
    mean: tuple[float, ...] = (0.0,)
    """After `scale`; one, or one per channel in the order of `channels`."""
    std: tuple[float, ...] = (1.0,)
    """After `scale`; one, or one per channel in the order of `channels`."""
    scale: float = 1 / 255
    """Factor on the pixel values 0..255."""
    channels: str = "rgb"
    """`rgb`, `bgr` or `gray`."""
    layout: str = "nchw"
    """`nchw` or `nhwc`."""
    pad: int | tuple[int, ...] = 114
    """The colour of a border, 0..255, before `scale`: a grey, or one value per channel in the order of `channels`."""
    dtype: str = "float32"
    """float32, float16, float64, uint8, int8, uint16, int16, int32 or int64."""
    quantization: tuple[float, int] | None = None
    """(scale, zero point) of an integer input that goes into a DequantizeLinear."""
    resample: str = "bilinear"
    """Pillow's `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`, or `opencv-bilinear`."""
    resize: tuple[int, int] | None = None
    """(h, w) that the picture is resized for; default round(size / crop_pct) for `crop`, otherwise `size`."""
    rounding: str = "torchvision"
    """`torchvision`; `transformers`: the centre starts at (resized - size) // 2; `timm`: the longer edge of a `crop`
    is round(original / smaller of H0 / h, W0 / w), as in its resize for sizes that are not square."""

    def __post_init__(self) -> None:
        _refuse(_problems({field.name: getattr(self, field.name) for field in fields(self)}))
        plain: dict[str, Any] = {
            "size": tuple(map(int, self.size)),
            "crop_pct": float(self.crop_pct),
            "mean": tuple(map(float, self.mean)),
            "std": tuple(map(float, self.std)),
            "scale": float(self.scale),
            "pad": int(self.pad) if _is_integer(self.pad) else tuple(map(int, self.pad)),  # type: ignore[arg-type]
            "resize": self.resize and tuple(map(int, self.resize)),
            "quantization": self.quantization and (float(self.quantization[0]), int(self.quantization[1])),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if not np.isfinite(self._table).all():
            _refuse([f"scale, mean, std: the pixel values become too large for {self.dtype}"])

    @stage("preprocess")
    def __call__(self, picture: PictureLike) -> tuple[npt.NDArray[Any], View]:
        """The input tensor, (1, C, H, W) or (1, H, W, C) of `dtype`, and its place on the picture.

        picture: whatever `load_picture` takes.

        Raises PictureError when the picture is so thin that the resized one would have more than 178,956,970 pixels;
        what `load_picture` raises.
        """
        picture = load_picture(picture)
        (H, W), (H0, W0) = self.size, picture.rgb.shape[:2]
        h, w, top, left = self._place(H0, W0)
        if h * w > MAX_PIXELS:
            raise PictureError(
                f"{picture.source}: is too thin ({W0}x{H0}) for a crop: it would first be enlarged to {w}x{h} pixels",
                "use the fit `letterbox` or `squash`, or crop the picture first",
            )
        image = Image.fromarray(picture.rgb)
        if self.channels == "gray":
            image = image.convert("L")
        C = _CHANNELS[self.channels]
        pad = np.broadcast_to(self.pad, C)[:: -1 if self.channels == "bgr" else 1].tolist()
        canvas = Image.new(image.mode, (W, H), tuple(pad) if C == 3 else pad[0])
        canvas.paste(self._resized(image, h, w), (left, top))
        pixels = np.asarray(canvas).reshape(H, W, C)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        planes = self.layout == "nchw"
        tensor = np.empty((1, C, H, W) if planes else (1, H, W, C), self.dtype)
        for c, row in enumerate(self._table):  # `take` in a mode other than `raise` writes where it is told to
            np.take(row, pixels[..., c], out=tensor[0, c] if planes else tensor[0, ..., c], mode="clip")
        return tensor, View((H0, W0), (H, W), h / H0, float(top), w / W0, float(left))

    def _resized(self, image: Image.Image, h: int, w: int) -> Image.Image:
        if self.resample == "opencv-bilinear":
            matrix = (image.width / w, 0, 0, 0, image.height / h, 0)
            bands = [  # as floats, since Pillow truncates where OpenCV rounds
                band.convert("F").transform((w, h), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
                for band in image.split()
            ]
            return Image.merge(
                image.mode, [Image.fromarray(np.rint(np.asarray(band)).astype(np.uint8)) for band in bands]
            )
        return image.resize((w, h), Image.Resampling[self.resample.upper()])

    def _place(self, H0: int, W0: int) -> tuple[int, int, int, int]:
        """(h, w) of the resized picture and (top, left) of its corner on the tensor, negative where it is cropped."""
        H, W = self.size
        h, w = self.resize or self.size
        if self.fit == "letterbox":
            r = min(h / H0, w / W0)
            h, w = max(1, round(H0 * r)), max(1, round(W0 * r))
        elif self.fit == "crop":
            if self.resize is None:
                h, w = round(H / self.crop_pct), round(W / self.crop_pct)
            if self.rounding == "timm":
                r = min(H0 / h, W0 / w)
                h, w = round(H0 / r), round(W0 / r)
            elif h * W0 >= w * H0:
                w = int(h * W0 / H0)
            else:
                h = int(w * H0 / W0)
        return h, w, self._corner(h, H), self._corner(w, W)

    def _corner(self, resized: int, size: int) -> int:
        """Where the resized picture begins on the tensor along one axis."""
        if resized <= size:
            return (size - resized) // 2
        return -((resized - size) // 2) if self.rounding == "transformers" else -round((resized - size) / 2)

    @cached_property
    def _table(self) -> npt.NDArray[Any]:
        """(C, 256) of `dtype`: what each pixel value becomes in each channel."""
        dtype, C = np.dtype(self.dtype), _CHANNELS[self.channels]
        mean, std = (np.broadcast_to(np.array(v), C)[:, np.newaxis] for v in (self.mean, self.std))
        with np.errstate(over="ignore"):
            values: npt.NDArray[Any] = (np.arange(256) * self.scale - mean) / std
            if dtype.kind == "f":
                return values.astype(dtype)
            if self.quantization is None:
                values = np.rint(values)
            else:
                step, zero_point = self.quantization
                values = np.rint(values.astype(np.float32) / np.float32(step)).astype(np.float64) + zero_point
        return values.clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)

    @property
    def unchanged(self) -> bool:
        """Whether the model takes the pixels themselves, as uint8."""
        return self._table.dtype == np.uint8 and bool((self._table == np.arange(256)).all())

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values; `from_json` gives the same settings back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, settings: str | bytes | Mapping[str, Any]) -> "Preprocess":
        """The settings from JSON text, or from the object that such a text holds; what is absent keeps its default.

        Raises UsageError naming every unknown key and bad value, what was found and what is expected.
        """
        if isinstance(settings, str | bytes):
            try:
                settings = parsed_json(settings)
            except ValueError as error:
                raise UsageError(f"preprocessing settings: not JSON: {error}", _HINT) from error
        if not isinstance(settings, Mapping):
            raise UsageError(f"preprocessing settings: found {settings!r}, expected a JSON object", _HINT)
        known = [field.name for field in fields(cls)]
        unknown = [
            f"{key}: unknown key{_did_you_mean(key, known)}, expected one of {', '.join(known)}"
            for key in settings
            if key not in known
        ]
        missing = [] if "size" in settings else [f"size: missing, expected {_RULES['size'][1]}"]
        defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
        _refuse(unknown + missing + _problems(defaults | {key: settings[key] for key in known if key in settings}))
        return cls(**settings)


_HINT = f"correct the arguments, or the value of `{METADATA_KEY}` in the model's metadata"
_OF_COLOUR = "found 3 values, but `gray` pictures have 1 channel"


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


def _is_sequence(value: Any, test: Callable[[Any], bool], lengths: tuple[int, ...]) -> bool:
    return isinstance(value, tuple | list) and len(value) in lengths and all(map(test, value))


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: isinstance(v, str) and v in names), "one of " + ", ".join(names)


_RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "opencv-bilinear")


def _is_shade(value: Any) -> bool:
    return _is_integer(value) and 0 <= value <= 255


def _is_size(value: Any) -> bool:
    return _is_sequence(value, lambda n: _is_integer(n) and n > 0, (2,)) and value[0] * value[1] <= MAX_PIXELS


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "size": (_is_size, f"two integers > 0: H, W, of at most {MAX_PIXELS:,} pixels"),
    "fit": _one_of("crop", "squash", "letterbox"),
    "crop_pct": (lambda v: _is_number(v) and 0 < v <= 1, "a number > 0 and <= 1"),
    "mean": (lambda v: _is_sequence(v, _is_number, (1, 3)), "a list of numbers: one, or one per channel"),
    "std": (
        lambda v: _is_sequence(v, lambda n: _is_number(n) and n != 0, (1, 3)),
        "a list of numbers other than 0: one, or one per channel",
    ),
    "scale": (lambda v: _is_number(v) and v != 0, "a number other than 0"),
    "channels": _one_of(*_CHANNELS),
    "layout": _one_of("nchw", "nhwc"),
    "pad": (
        lambda v: _is_shade(v) or _is_sequence(v, _is_shade, (1, 3)),
        "an integer from 0 to 255, or a list of one per channel",
    ),
    "dtype": _one_of(*_FLOATS, *_INTEGERS),
    "quantization": (
        lambda v: (
            v is None or (_is_sequence(v, _is_number, (2,)) and np.finfo(np.float32).tiny <= v[0] and _is_integer(v[1]))
        ),
        "nothing, or a scale > 0 and an integer zero point",
    ),
    "resample": _one_of(*_RESAMPLE),
    "resize": (
        lambda v: v is None or _is_size(v),
        f"nothing, or two integers > 0: h, w, of at most {MAX_PIXELS:,} pixels",
    ),
    "rounding": _one_of("torchvision", "transformers", "timm"),
}


def _problems(values: Mapping[str, Any]) -> list[str]:
    problems, good = [], set()
    for key, value in values.items():
        is_good, expected = _RULES[key]
        if is_good(value):
            good.add(key)
        else:
            names = expected.removeprefix("one of ").split(", ")
            problems.append(f"{key}: found {value!r}{_did_you_mean(value, names)}, expected {expected}")
    if "channels" in good:
        problems += [
            f"{key}: {_OF_COLOUR}"
            for key in ("mean", "std", "pad")
            if key in good and not _is_integer(values[key]) and len(values[key]) > _CHANNELS[values["channels"]]
        ]
    if {"quantization", "dtype"} <= good and values["quantization"] is not None:
        dtype, zero_point = values["dtype"], values["quantization"][1]
        if dtype in _FLOATS:
            problems.append(f"quantization: found {values['quantization']!r}, expected nothing for dtype {dtype}")
        elif not np.iinfo(dtype).min <= zero_point <= np.iinfo(dtype).max:
            problems.append(f"quantization: found zero point {zero_point}, expected one in the range of {dtype}")
    return problems


def _did_you_mean(found: Any, names: Any) -> str:
    close = difflib.get_close_matches(found.lower(), names, 1) if isinstance(found, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def _refuse(problems: list[str]) -> None:
    if problems:
        listed = problems[0] if len(problems) == 1 else "".join(f"\n  {problem}" for problem in problems)
        gray = all(problem.endswith(_OF_COLOUR) for problem in problems)
        rather = "choose `--channels rgb` or `bgr` where the model takes colour; else " if gray else ""
        raise UsageError(f"preprocessing settings: {listed}", rather + _HINT)


def imagenet_defaults(
    size: tuple[int, int], channels: str = "rgb", layout: str = "nchw", dtype: str = "float32"
) -> Preprocess:
    """What models trained on ImageNet usually want: centre crop of 0.875, and the training set's mean and deviation.

    Mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225) in RGB order, reversed for `bgr`, their averages for
    `gray`. A model with an integer input normalises inside, so it gets the pixels as they are, less 128 for int8.

    Raises UsageError for a bad argument.
    """
    if dtype in _INTEGERS:
        middle = 128.0 if dtype == "int8" else 0.0
        return Preprocess(
            size, crop_pct=0.875, mean=(middle,), scale=1.0, channels=channels, layout=layout, dtype=dtype
        )
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    if channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    elif channels == "gray":
        mean, std = (0.449,), (0.226,)
    return Preprocess(size, crop_pct=0.875, mean=mean, std=std, channels=channels, layout=layout, dtype=dtype)
