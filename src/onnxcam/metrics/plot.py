"""Curves in a picture, drawn with Pillow: axes, ticks, labels and a legend."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from onnxcam.metrics.faithfulness import Doubles

# Okabe and Ito's palette, told apart with any colour vision; then the same, dashed.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Lines have no antialiasing in Pillow: everything is drawn larger and shrunk.
SCALE = 3
WIDTH, HEIGHT = 460, 300
LEFT, TOP, BOTTOM, RIGHT = 64, 40, 52, 20
LEGEND_ROW = 20


@dataclass(frozen=True, eq=False)
class Line:
    """One curve: x and y (P,) in [0, 1], and its name in the legend."""

    label: str
    x: Doubles
    y: Doubles


@dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]


def curves(panels: Sequence[Panel]) -> Image.Image:
    """The panels side by side, each with x and y from 0 to 1 and its legend below."""
    rows = max(len(p.lines) for p in panels)
    size = (len(panels) * (LEFT + WIDTH + RIGHT), TOP + HEIGHT + BOTTOM + rows * LEGEND_ROW + 12)
    image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    for i, panel in enumerate(panels):
        _Drawing(ImageDraw.Draw(image), i * (LEFT + WIDTH + RIGHT)).panel(panel)
    return image.resize(size, Image.Resampling.LANCZOS)


class _Drawing:
    """One panel, in unscaled pixels from its own left edge."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: int) -> None:
        self.draw = draw
        self.left = left

    def point(self, x: float, y: float) -> tuple[float, float]:
        return ((self.left + x) * SCALE, y * SCALE)

    def text(self, x: float, y: float, text: str, anchor: str, size: int = 14) -> None:
        self.draw.text(self.point(x, y), text, "black", ImageFont.load_default(size * SCALE), anchor)

    def line(self, points: Sequence[tuple[float, float]], color: str, width: float, dashed: bool = False) -> None:
        scaled = [self.point(*p) for p in points]
        if not dashed:
            self.draw.line(scaled, color, round(width * SCALE), joint="curve")
            return
        pieces = _pieces(scaled, 5 * SCALE)
        for piece in pieces[::2]:
            self.draw.line(piece, color, round(width * SCALE))

    def panel(self, panel: Panel) -> None:
        def place(x: float, y: float) -> tuple[float, float]:
            return LEFT + x * WIDTH, TOP + (1 - y) * HEIGHT

        for i in range(6):
            value = i / 5
            self.line([place(0, value), place(1, value)], "#DDDDDD", 1)
            self.line([place(value, 0), place(value, 1)], "#DDDDDD", 1)
            self.text(LEFT - 8, place(0, value)[1], f"{value:.1f}", "rm")
            self.text(place(value, 0)[0], TOP + HEIGHT + 8, f"{value:.1f}", "mt")
        self.line([place(0, 1), place(0, 0), place(1, 0)], "black", 1.5)
        self.text(LEFT, TOP - 14, panel.title, "ls", 17)
        self.text(LEFT + WIDTH / 2, TOP + HEIGHT + 28, panel.x_label, "mt")
        self._sideways(panel.y_label)
        # The first line, the best, lies on top.
        for i, line in reversed(list(enumerate(panel.lines))):
            color, dashed = COLORS[i % len(COLORS)], i // len(COLORS) % 2 == 1
            self.line([place(x, min(max(y, 0.0), 1.0)) for x, y in zip(line.x, line.y, strict=True)], color, 2, dashed)
            y = TOP + HEIGHT + BOTTOM + (i + 0.5) * LEGEND_ROW
            self.line([(LEFT, y), (LEFT + 34, y)], color, 3, dashed)
            self.text(LEFT + 44, y, line.label, "lm")

    def _sideways(self, text: str) -> None:
        font = ImageFont.load_default(14 * SCALE)
        width, height = (round(v) for v in font.getbbox(text, anchor="lt")[2:])
        label = Image.new("L", (width, height), 0)
        ImageDraw.Draw(label).text((0, 0), text, 255, font, "lt")
        turned = label.rotate(90, expand=True)
        x, y = self.point(10, TOP + HEIGHT / 2)
        self.draw.bitmap((round(x), round(y - turned.height / 2)), turned, "black")


def _pieces(points: Sequence[tuple[float, float]], length: float) -> list[list[tuple[float, float]]]:
    """A polyline cut into pieces of about a length."""
    pieces: list[list[tuple[float, float]]] = [[points[0]]]
    run = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        distance = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-9)
        steps = max(1, round(distance / (length / 4)))
        for k in range(1, steps + 1):
            here = (x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps)
            pieces[-1].append(here)
            run += distance / steps
            if run >= length:
                pieces.append([here])
                run = 0.0
    return pieces
