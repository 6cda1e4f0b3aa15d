"""Draws the legend: prompts beside their colours, in a corner of every frame."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from util.colours import Colour, is_dark
from util.flags import LEGEND_PLACES
from util.images import Frame
from util.text_lines import Panel, Writer

LARGEST_SHARE = 10  # the legend covers at most one part in so many of a frame
SMALLEST_FONT = 8  # pixels
FONT_STEP = 0.95  # by which the font shrinks until the legend fits
LEAST_TEXT = 8  # font sizes; where texts would be cut to less than this, the last rows are left out
LEAST_OF_ONE = 3  # font sizes; the same in narrow frames and for a single row, which is then left out as well
LONGEST_TEXT = 200  # characters of a prompt
RIM = (150, 150, 150)  # around dark colours
Rows = list[tuple[str, Colour | None]]


class Legend:
    """Prompts beside their colours; rendered once, drawn on every frame.

    It covers at most a tenth of a frame. Until it fits, the font shrinks to half its size, then texts are shortened,
    then the last rows become "+3 more"; where not even one row fits, nothing is drawn.

    Args:
        prompts, colours: texts in any script, and the colour of each.
        height, width: size of the frames in pixels.
        place: ``top`` or ``bottom``, in the left corner; ``off`` for none.
        pixel_aspect: width of a pixel over its height when played.

    Attributes:
        panel: [h, w, 3] what is drawn; with 0 rows for nothing.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        colours: Sequence[Colour],
        height: int,
        width: int,
        place: str = "top",
        pixel_aspect: float = 1.0,
    ) -> None:
        assert place in LEGEND_PLACES, f"place must be one of {LEGEND_PLACES}, got {place}"
        self.colours = list(colours)
        self.place = place
        panel = Panel(0, 0)
        if place != "off":
            panel = _rendered(prompts, colours, height, width * pixel_aspect)
        size = (int(panel.image.width / pixel_aspect), panel.image.height)
        self.panel: NDArray[np.uint8] = _resized(panel.image, size)
        is_opaque = _resized(panel.opaque, size)[..., None] >= 128
        # How bright the frame may shine through: in all three channels, since numpy is slow at stretching one.
        self._shine = np.repeat(np.where(is_opaque, 0, 255).astype(np.uint8), 3, axis=2)

    def draw(self, frame: Frame) -> None:
        """Draws the legend on [H, W, 3] in place, over a dimmed background."""
        height, width = self.panel.shape[:2]
        top = len(frame) - height if self.place == "bottom" else 0
        corner = frame[top : top + height, :width]
        corner[:] = np.maximum(np.minimum(corner // 3, self._shine), self.panel)


def _resized(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns the pixels of an image, resized to (width, height); an empty array if a side is 0."""
    if not all(size):
        return np.asarray(Image.new(image.mode, (0, 0)))
    return np.asarray(image if image.size == size else image.resize(size))


def _rendered(prompts: Sequence[str], colours: Sequence[Colour], height: int, width: float) -> Panel:
    """Returns the legend for frames of square pixels."""
    writer = Writer([prompt[:LONGEST_TEXT] for prompt in prompts])
    size, rows = _fitted(writer, colours, height, width)
    if not rows:
        return Panel(0, 0)
    panel = Panel(*_panel_size(writer, rows, size))
    for number, (text, colour) in enumerate(rows):
        top = size // 2 + number * _line_height(size)
        if colour:
            swatch = (size // 2, top, size // 2 + size, top + size)
            ImageDraw.Draw(panel.image).rectangle(swatch, fill=colour, outline=RIM if is_dark(colour) else None)
            ImageDraw.Draw(panel.opaque).rectangle(swatch, fill=255)
        writer.draw(text, size, panel, left=2 * size, middle=top + size // 2)
    return panel


def _fitted(writer: Writer, colours: Sequence[Colour], height: int, width: float) -> tuple[int, Rows]:
    """Chooses the font size in pixels and the rows that fit into a frame; no rows if none do."""
    largest = max(SMALLEST_FONT, round(min(height, width) / 24))
    smallest = max(SMALLEST_FONT, round(largest / 2))
    all_rows: Rows = list(zip(writer.lines, colours, strict=True))
    for size in _sizes(largest, smallest):
        room, whole = _room(len(all_rows), size, height, width), width - 3 * _line_height(size)
        rows = _shortened(writer, all_rows, size, whole) if min(room, whole) >= LEAST_OF_ONE * size else []
        if rows and max(writer.width(text, size) for text, _ in rows) <= room:
            return size, rows
    for count in range(len(all_rows), 0, -1):
        rows = _squeezed(writer, _first_rows(all_rows, count), smallest, height, width)
        if rows:
            return smallest, rows
    return smallest, _single_row(writer, all_rows, smallest, height, width)


def _sizes(largest: int, smallest: int) -> list[int]:
    steps = range(round(math.log(smallest / largest, FONT_STEP)) + 1)
    return [*dict.fromkeys(round(largest * FONT_STEP**step) for step in steps), smallest]


def _first_rows(rows: Rows, count: int) -> Rows:
    """Keeps ``count`` rows, and says in one more how many are left out."""
    return rows if count == len(rows) else [*rows[:count], (f"+{len(rows) - count} more", None)]


def _squeezed(writer: Writer, rows: Rows, size: int, height: int, width: float) -> Rows:
    """Shortens texts until the rows fit; returns no rows if too little of the texts would be left."""
    room = _room(len(rows), size, height, width)
    longest = max(writer.width(text, size) for text, _ in rows)
    least = max(LEAST_OF_ONE * size, min(longest, LEAST_TEXT * size, width - 3 * _line_height(size)))
    return _shortened(writer, rows, size, room) if room >= least else []


def _single_row(writer: Writer, rows: Rows, size: int, height: int, width: float) -> Rows:
    """Keeps the beginning of the first text, and says behind it how many prompts are left out."""
    more = f" +{len(rows) - 1} more" if len(rows) > 1 else ""
    text, colour = rows[0]
    room = _room(1, size, height, width) - writer.width(more, size)
    return [(writer.shortened(text, size, room) + more, colour)] if room >= LEAST_OF_ONE * size else []


def _room(num_rows: int, size: int, height: int, width: float) -> float:
    """Returns how wide texts may be in pixels; below 0 if the rows are too high for the frame."""
    panel_height = _panel_height(num_rows, size)
    if panel_height > height:
        return -1
    # Half a pixel less, since the panel's width is rounded.
    return min(width - _line_height(size), height * width / LARGEST_SHARE / panel_height - 0.5) - 2 * _line_height(size)


def _shortened(writer: Writer, rows: Rows, size: int, room: float) -> Rows:
    return [(writer.shortened(text, size, room), colour) for text, colour in rows]


def _panel_size(writer: Writer, rows: Rows, size: int) -> tuple[int, int]:
    """Returns (width, height) in pixels."""
    longest = max(writer.width(text, size) for text, _ in rows)
    return round(longest) + 2 * _line_height(size), _panel_height(len(rows), size)


def _panel_height(num_rows: int, size: int) -> int:
    return num_rows * _line_height(size) + size // 2


def _line_height(size: int) -> int:
    return round(1.5 * size)
