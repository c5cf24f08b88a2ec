"""Colours: colormaps as (256, 3) tables, and the blend of a saliency map onto a picture."""

import io
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from onnxcam import _core
from onnxcam.errors import UsageError
from onnxcam.profiling import stage

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def _jet(t: Floats) -> Floats:
    """MATLAB's jet: three trapezoids."""
    return np.stack([1.5 - np.abs(4 * t - peak) for peak in (3, 2, 1)], -1)


def _hot(t: Floats) -> Floats:
    """Black, red, yellow, white."""
    return np.stack([t / 0.375, (t - 0.375) / 0.375, (t - 0.75) / 0.25], -1)


def _gray(t: Floats) -> Floats:
    return np.stack([t, t, t], -1)


def _viridis(t: Floats) -> Floats:
    """matplotlib's viridis, linear between 9 of its colours; readable with colour-blind eyes."""
    stops = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
    colors = np.array([[int(s[i : i + 2], 16) / 255 for i in (0, 2, 4)] for s in stops])
    return np.stack([np.interp(t, np.linspace(0, 1, len(stops)), colors[:, c]) for c in range(3)], -1)


COLORMAPS: dict[str, Callable[[Floats], Floats]] = {"jet": _jet, "viridis": _viridis, "hot": _hot, "gray": _gray}


@cache
def colormap(name: str) -> Bytes:
    """A colormap as a (256, 3) uint8 RGB table. Raises: UsageError for an unknown name."""
    if name not in COLORMAPS:
        raise UsageError(f"unknown colormap `{name}`", f"use one of {', '.join(COLORMAPS)}")
    table = np.rint(np.clip(COLORMAPS[name](np.arange(256) / 255), 0, 1) * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def clipped(
    values: npt.NDArray[np.float32], region: tuple[int, int, int, int], percentile: float
) -> npt.NDArray[np.float32]:
    """Values (H, W) in [0, 1], divided by their percentile over the region x0, y0, x1, y1 and cut off at 1.

    They stay as they are where that is 0, as of a map with fewer positive pixels.

    Raises: UsageError for a percentile outside (0, 100].
    """
    if not 0 < percentile <= 100:
        raise UsageError(f"clip {percentile} is outside (0, 100]", "99 draws the highest hundredth in the top colour")
    x0, y0, x1, y1 = region
    top = float(np.percentile(values[y0:y1, x0:x1], percentile)) if percentile < 100 else 1.0
    return np.minimum(values / np.float32(top), np.float32(1)) if top > 0 else values


@stage("render")
def overlay(
    picture: Bytes,
    values: npt.NDArray[np.float32],
    region: tuple[int, int, int, int],
    colors: str = "jet",
    opacity: float = 0.5,
) -> Image.Image:
    """The picture (H, W, 3) with `values` (H, W) in [0, 1] blended over the region x0, y0, x1, y1 that was seen.

    What the model did not see stays uncoloured.

    Raises: UsageError for an unknown colormap or an opacity outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity {opacity} is outside [0, 1]", "0 shows the picture alone, 1 the heat map alone")
    x0, y0, x1, y1 = region
    blended = picture.copy()
    part = np.s_[y0:y1, x0:x1]
    blended[part] = _core.overlay(
        np.ascontiguousarray(picture[part]), np.ascontiguousarray(values[part]), colormap(colors), opacity
    )
    return Image.fromarray(blended)


@stage("encode")
def encoded(image: Image.Image, suffix: str, compress_level: int = 4) -> bytes:
    """The file of a picture: `.png` (compress_level 0 to 9), `.webp`, else JPEG at quality 92."""
    buffer = io.BytesIO()
    kind = {".png": "PNG", ".webp": "WEBP"}.get(suffix.lower(), "JPEG")
    options: dict[str, int] = {"JPEG": {"quality": 92}, "PNG": {"compress_level": compress_level}}.get(kind, {})
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Okabe and Ito's colours (2008), told apart also with colour-blind eyes; white and light green for black and for the
# dark blue that jet makes of most of a picture.
FRAMES = ("#ffffff", "#f0e442", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#b2ff59")


def draw_boxes(image: Image.Image, boxes: Sequence[tuple[tuple[float, float, float, float], str, int]]) -> Image.Image:
    """The picture with boxes drawn: edges x0, y0, x1, y1 in pixels, the text of the label, and a number that chooses
    the colour. Lines have a dark rim, and labels a filled ground above the box, or inside it at the picture's top."""
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    short = min(drawn.size)
    line, size = max(1, round(short / 250)), max(10, round(short / 30))
    font = ImageFont.load_default(size)
    for edges, _, number in boxes:
        x0, y0, x1, y1 = _pixels(edges, drawn.size)
        draw.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline="black", width=3 * line)
        draw.rectangle((x0, y0, x1, y1), outline=FRAMES[number % len(FRAMES)], width=line)
    taken: list[tuple[int, int, int, int]] = []
    for edges, text, number in boxes:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = round(right - left) + 2 * line + 4, round(bottom - top) + 2 * line + 4
        x, y = _free(_pixels(edges, drawn.size), width, height, drawn.size, taken)
        taken.append((x, y, x + width, y + height))
        colour = FRAMES[number % len(FRAMES)]
        draw.rectangle(taken[-1], fill=colour, outline="black")
        ink = "black" if sum(int(colour[i : i + 2], 16) * w for i, w in ((1, 3), (3, 6), (5, 1))) > 1275 else "white"
        draw.text((x + line + 2 - left, y + line + 2 - top), text, fill=ink, font=font)
    return drawn


def _pixels(edges: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Edges as whole pixels inside the picture."""
    x0, y0, x1, y1 = edges
    w, h = size
    left, top = (min(max(round(v), 0), end - 1) for v, end in ((x0, w), (y0, h)))
    return left, top, max(min(round(x1), w - 1), left), max(min(round(y1), h - 1), top)


def _free(
    box: tuple[int, int, int, int], width: int, height: int, size: tuple[int, int], taken: Sequence[tuple[int, ...]]
) -> tuple[int, int]:
    """Where a label goes: above its box, or from its upper edge downwards, at the first place that no label has."""
    x = min(box[0], max(size[0] - width, 0))
    first = box[1] - height if box[1] >= height else box[1]
    for y in range(first, size[1] - height, height):
        if not any(x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height for t in taken):
            return x, y
    return x, max(min(first, size[1] - height), 0)
