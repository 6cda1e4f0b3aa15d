"""Frames as 8-bit RGB pictures: the size the model sees, and how they get there."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frame = NDArray[np.uint8]  # [H, W, 3] RGB


def fit_size(height: int, width: int, box_height: int, box_width: int, multiple: int) -> tuple[int, int]:
    """The largest size of the same aspect ratio inside the box, each side floored to ``multiple``.

    Small frames are enlarged. A side never falls below ``multiple``.

    Args:
        height, width: source size in pixels.
        box_height, box_width: the box in pixels, each at least ``multiple`` and floored to it.

    Returns:
        (height, width) in pixels; frames of that size fit as they are.
    """
    box_height, box_width = box_height // multiple * multiple, box_width // multiple * multiple
    # Whole numbers throughout: a float scale can land a hair under a multiple and lose 16 pixels.
    if box_width * height <= box_height * width:
        fitted = (height * box_width // width, box_width)
    else:
        fitted = (box_height, width * box_height // height)
    return max(multiple, fitted[0] // multiple * multiple), max(multiple, fitted[1] // multiple * multiple)


def resize_frame(frame: Frame, height: int, width: int) -> Frame:
    """[H, W, 3] to [height, width, 3] by an antialiased bilinear filter on 8 bits, as the method asks."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
