"""Signals and volumes drawn: channels as curves on the map's colours, slices side by side under theirs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from onnxcam.errors import PictureError
from onnxcam.render import colormap, overlay
from onnxcam.sheet import Panel, Row, sheet

WIDTH, HEIGHT = 900, 90
"""Of a channel's curve, in pixels."""
CURVES = 12
"""Channels are drawn as curves up to so many, as rows of grey above."""
SLICES, COLUMNS = 16, 4

Floats = npt.NDArray[np.floating[Any]]


def load_array(path: Path) -> npt.NDArray[Any]:
    """The numbers in a .npy file. Raises: PictureError where it holds none."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PictureError(f"{path}: cannot be read as an array: {error}", "write it with `numpy.save`") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise PictureError(f"{path}: holds no array of numbers", "write it with `numpy.save`")
    return array


def drawn(x: Floats, values: npt.NDArray[np.float32], colors: str = "jet", opacity: float = 0.5) -> Image.Image:
    """A sample and its map: a signal (C, L) with values (L,), or a volume (C, D, H, W) with values (D, H, W).

    The highest value has the top colour. Of a volume the mean over channels is drawn, of at most 16 slices spread over
    its depth.
    """
    shown = np.maximum(values, 0) / max(float(np.nanmax(values, initial=0)), float(np.finfo(np.float32).tiny))
    return _signal(x, shown, colors, opacity) if values.ndim == 1 else _volume(x, shown, colors, opacity)


def _signal(x: Floats, values: Floats, colors: str, opacity: float) -> Image.Image:
    count, length = x.shape
    column = np.minimum(np.arange(WIDTH) * length // WIDTH, length - 1)
    table = colormap(colors).astype(np.float64)
    shade = table[np.rint(np.nan_to_num(values[column]) * 255).astype(int)] * opacity + 255 * (1 - opacity)
    if count > CURVES:
        grey = _stretched(x)[:, column]
        rows = np.repeat(grey, max(1, 3 * HEIGHT // count), axis=0)
        return _laid_over(rows, np.tile(values[column], (len(rows), 1)), colors, opacity)
    page = Image.fromarray(np.tile(np.rint(shade).astype(np.uint8), (count * HEIGHT, 1, 1)))
    pen = ImageDraw.Draw(page)
    for i, line in enumerate(x):
        low, span = float(line.min()), float(np.ptp(line)) or 1.0
        top = (i + 1) * HEIGHT - 6 - (line - low) / span * (HEIGHT - 12)
        at = (np.arange(length) + 0.5) * WIDTH / length
        pen.line([(float(a), float(b)) for a, b in zip(at, top, strict=True)], fill=(0, 0, 0), width=2)
    return page


def _volume(x: Floats, values: Floats, colors: str, opacity: float) -> Image.Image:
    depth = len(values)
    shown = np.unique(np.linspace(0, depth - 1, min(depth, SLICES)).round().astype(int))
    grey = _stretched(x.mean(axis=0))
    panels = [
        Panel(_laid_over(grey[z], values[z], colors, opacity), (f"slice {z}, up to {values[z].max():.2f}",))
        for z in shown
    ]
    rows = [Row("", panels[i : i + COLUMNS]) for i in range(0, len(panels), COLUMNS)]
    return sheet([""] * min(COLUMNS, len(panels)), rows)


def _stretched(x: Floats) -> npt.NDArray[np.uint8]:
    """Numbers as grey levels, the lowest black and the highest white."""
    span = float(np.ptp(x)) or 1.0
    return np.asarray(np.rint((x - x.min()) / span * 255), np.uint8)


def _laid_over(grey: npt.NDArray[np.uint8], values: Floats, colors: str, opacity: float) -> Image.Image:
    whole = (0, 0, grey.shape[1], grey.shape[0])
    return overlay(np.repeat(grey[..., None], 3, 2), np.asarray(values, np.float32), whole, colors, opacity)
