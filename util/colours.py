"""Chooses the colours of prompts: those that a user gives, then a list of our own. Imports nothing heavy."""

import argparse
import colorsys
import re
from collections.abc import Sequence

from util.errors import did_you_mean

Colour = tuple[int, int, int]  # red, green and blue in [0, 255]

# Distinct on video and for most colour-blind people (after Okabe and Ito), strongest first.
FIRST_COLOURS: tuple[Colour, ...] = ((230, 159, 0), (86, 180, 233), (213, 94, 180), (0, 190, 130), (240, 228, 66))
GOLDEN_RATIO = 0.618034
DARK = 80  # of 255; a colour whose brightest channel is below this does not show on black
ALIKE = 70  # a distance in RGB; two colours that are closer are hard to tell apart on video


def colours_for(num_prompts: int, given: Sequence[Colour] = ()) -> list[Colour]:
    """Returns one RGB colour per prompt: ``given`` first, the rest from our own list.

    No colour of the list is one of ``given``, and those that look like one of them come last. All are different
    if those given are; more than ``num_prompts`` of them are cut off.
    """
    own = [colour for colour in _own_colours(num_prompts + 4 * len(given)) if colour not in given]
    own.sort(key=lambda colour: any(_distance(colour, other) < ALIKE for other in given))
    return [*given, *own][:num_prompts]


def is_dark(colour: Colour) -> bool:
    """Whether a colour is hard to see on black."""
    return max(colour) < DARK


def parse_colour(text: str) -> Colour:
    """An argparse type: a name of CSS such as ``gold``, ``#rgb`` or ``#rrggbb``; returns RGB."""
    from PIL import ImageColor  # noqa: PLC0415  # 40 ms that --help need not take

    name = text.strip().lower()
    if name in ImageColor.colormap or re.fullmatch(r"#([0-9a-f]{3}|[0-9a-f]{6})", name):
        red, green, blue = ImageColor.getrgb(name)[:3]
        return red, green, blue
    raise argparse.ArgumentTypeError(
        f"must be a colour name such as red, orange, gold or cyan, or '#rgb' or '#rrggbb' in hexadecimal digits, "
        f"got '{text}'{did_you_mean(name, ImageColor.colormap)}"
    )


def _own_colours(number: int) -> list[Colour]:
    colours = list(FIRST_COLOURS[:number])
    while len(colours) < number:
        red, green, blue = colorsys.hsv_to_rgb(GOLDEN_RATIO * len(colours) % 1, 0.75, 0.95)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def _distance(colour: Colour, other: Colour) -> float:
    return sum((one - two) ** 2 for one, two in zip(colour, other, strict=True)) ** 0.5
