"""Contact sheets: panels in rows and columns with headings, captions and colour scales, drawn with Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from onnxcam.errors import UsageError
from onnxcam.render import Bytes

CELL = 300
"""Longest edge of a panel, in pixels."""
MARGIN, GAP, BAR = 16, 12, 12
HEADING, COLUMN, CAPTION = 18, 16, 14
INK, FAINT = "#111111", "#555555"


@dataclass(frozen=True, eq=False)
class Scale:
    """A colour bar, (256, 3) uint8 from left to right, and what is written below its left end, middle and right end."""

    colors: Bytes
    left: str
    middle: str
    right: str


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture, a scale below it, and lines of text below that."""

    image: Image.Image
    lines: tuple[str, ...] = ()
    scale: Scale | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """Panels side by side below a heading; None leaves a place empty."""

    heading: str
    panels: Sequence[Panel | None]


@dataclass(frozen=True, eq=False)
class Legend:
    """A scale at the foot of a sheet, and what it means."""

    scale: Scale
    text: str


def sheet(
    columns: Sequence[str], rows: Sequence[Row], legend: Legend | None = None, font: str | None = None
) -> Image.Image:
    """The rows below each other, on white, under one heading per column; text is wrapped, never cut.

    Pictures are scaled to CELL pixels along their longer edge. font: a file; default Pillow's own, which has Latin
    letters only, and boxes for others.

    Raises: UsageError where the font cannot be read.
    """
    drawn = [[_Drawn(p) if p is not None else None for p in row.panels] for row in rows]
    width = CELL
    total = len(columns) * (width + GAP) - GAP
    page = _Page(2 * MARGIN + total, font)
    page.columns([MARGIN + i * (width + GAP) for i in range(len(columns))], width, columns)
    for row, panels in zip(rows, drawn, strict=True):
        page.row(row.heading, panels, width)
    if legend is not None:
        page.y += GAP
        page.scale(legend.scale, MARGIN, width, page.y)
        page.y += BAR + 2 + _height(CAPTION)
        page.text([legend.text], MARGIN, total, CAPTION, FAINT)
    return page.image(page.y + MARGIN)


class _Drawn:
    """A panel with its picture at the size that it is shown."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        factor = CELL / max(panel.image.size)
        w, h = (max(1, round(edge * factor)) for edge in panel.image.size)
        filter_ = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
        self.image = panel.image.convert("RGB").resize((w, h), filter_)


class _Page:
    """Collects what is drawn, from the top down, before the height is known."""

    def __init__(self, width: int, font: str | None) -> None:
        self.width = width
        self.font = font
        self.y = MARGIN
        self.steps: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def text(self, lines: Sequence[str], x: float, width: float, size: int, ink: str) -> None:
        """Wrapped lines at x, below what is there."""
        self.y = self.text_at(lines, x, self.y, width, size, ink)

    def text_at(self, lines: Sequence[str], x: float, y: int, width: float, size: int, ink: str) -> int:
        """Wrapped lines at (x, y); the y below them."""
        for line in lines:
            for part in wrapped(line, width, size, self.font):
                self.steps.append(("text", ((x, y), part), {"fill": ink, "font": _font(size, self.font)}))
                y += _height(size)
        return y

    def columns(self, lefts: Sequence[int], width: int, names: Sequence[str]) -> None:
        """The headings of the columns, all beginning at one height."""
        ends = [
            self.text_at([name], x, self.y, width, COLUMN, INK) for x, name in zip(lefts, names, strict=True) if name
        ]
        self.y = max(ends, default=self.y)

    def row(self, heading: str, panels: Sequence[_Drawn | None], width: int) -> None:
        """A heading over the whole width, then the panels."""
        if heading:
            self.y += GAP // 2
            self.text([heading], MARGIN, self.width - 2 * MARGIN, HEADING, INK)
        self.y += 4
        top = max((p.image.height for p in panels if p), default=0)
        ends = [self.y + top]
        for i, drawn in enumerate(panels):
            if drawn is None:
                continue
            x, y = MARGIN + i * (width + GAP), self.y + top + 4
            left = x + (width - drawn.image.width) // 2
            self.steps.append(("paste", (drawn.image, (left, self.y + top - drawn.image.height)), {}))
            if drawn.panel.scale is not None:
                self.scale(drawn.panel.scale, left, drawn.image.width, y)
                y += BAR + _height(CAPTION) + 2
            ends.append(self.text_at(drawn.panel.lines, left, y, width - left + x, CAPTION, FAINT))
        self.y = max(ends) + GAP

    def scale(self, scale: Scale, x: int, width: int, y: int) -> None:
        """A colour bar at (x, y) with its three labels below."""
        bar = Image.fromarray(scale.colors[None]).resize((width, BAR), Image.Resampling.BILINEAR)
        self.steps.append(("paste", (bar, (x, y)), {}))
        for text, at, anchor in (
            (scale.left, x, "la"),
            (scale.middle, x + width / 2, "ma"),
            (scale.right, x + width, "ra"),
        ):
            style = {"fill": FAINT, "font": _font(CAPTION, self.font), "anchor": anchor}
            self.steps.append(("text", ((at, y + BAR + 2), text), style))

    def image(self, height: int) -> Image.Image:
        """Everything, on a page of this height."""
        page = Image.new("RGB", (self.width, height), "white")
        draw = ImageDraw.Draw(page)
        for kind, given, options in self.steps:
            (page.paste if kind == "paste" else draw.text)(*given, **options)
        return page


def wrapped(text: str, width: float, size: int, font: str | None = None) -> list[str]:
    """The text in lines that are at most `width` pixels wide; words longer than a line are broken."""
    drawn, lines, line = _font(size, font), [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if drawn.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while drawn.getlength(word) > width and len(word) > 1:
            end = next((n for n in range(len(word) - 1, 1, -1) if drawn.getlength(word[:n]) <= width), 1)
            lines.append(word[:end])
            word = word[end:]
        line = word
    return [*lines, line] if line else lines


@cache
def _font(size: int, file: str | None) -> Any:
    if file is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(file, size)
    except OSError as error:
        raise UsageError(f"font {file} cannot be read: {error}", "give a .ttf or .otf file") from error


def _height(size: int) -> int:
    return round(size * 1.3)
