"""Writes masks as PNG files, and reads predicted masks strictly."""

import functools
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError

ACCEPTED = "a PNG of one channel: grey with values 0 and 255, 1 bit, or a palette with numbers 0 and 1, or 0 and 255"
GREY, PALETTE, BIT = "L", "P", "1"

# Masks have two grey levels in runs. With these settings files are at most as large as with Pillow's defaults, which
# the original uses, mostly a fifth to half smaller, and written in a fifth of the time. Only for ragged masks, which
# take more than a bit in five pixels, zlib's own search for repetitions is a little better.
RUN_LENGTHS = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
)
REPETITIONS = (*(cv2.IMWRITE_PNG_COMPRESSION, 6), *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE))
RAGGED = 40  # pixels per byte


def check_mask_file(file: Path, size: tuple[int, int], modes: tuple[str, ...] = (GREY, PALETTE, BIT)) -> None:
    """Checks the header of a mask file; does not read its pixels.

    Args:
        size: (H, W) in pixels.
        modes: accepted modes of Pillow.

    Raises:
        UserError: if it is not a PNG, has colours, or another size.
    """
    with _opened(file) as image:
        _check_header(file, image, size, modes)


def read_mask(file: Path, size: tuple[int, int], modes: tuple[str, ...] = (GREY, PALETTE, BIT)) -> NDArray[np.bool_]:
    """Reads a mask file as [H, W] bool; see ``check_mask_file``.

    Raises:
        UserError: as there, and if it is damaged or has other values than ``ACCEPTED``.
    """
    values, mode = _read(file, size, modes)
    if mode == BIT:
        return values > 0
    mask = values == 255
    if mode == PALETTE and not mask.any():
        mask = values == 1
    if np.count_nonzero(mask) + np.count_nonzero(values == 0) != values.size:
        other = next(value for value in np.unique(values).tolist() if value not in (0, 255))
        raise UserError(
            f"{file}: must be {ACCEPTED}, got the value {other}; write 0 for background, 255 for the object"
        )
    return mask


def read_numbers(file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reads [H, W] object numbers from a file.

    Raises:
        UserError: if it is damaged, not a PNG, has colours, or another size.
    """
    return _read(file, size, (GREY, PALETTE))[0]


def _read(file: Path, size: tuple[int, int], modes: tuple[str, ...]) -> tuple[NDArray[np.uint8], str]:
    with _opened(file) as image:
        _check_header(file, image, size, modes)
        try:
            return np.asarray(image.convert(GREY) if image.mode == BIT else image, np.uint8), image.mode
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{file}: a damaged PNG ({error}); write it again") from None


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file, formats=("PNG",))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: damaged or not a PNG ({error}); write it again") from None


def _check_header(file: Path, image: Image.Image, size: tuple[int, int], modes: tuple[str, ...]) -> None:
    if image.mode not in modes:
        accepted = ACCEPTED if modes != (GREY,) else "a PNG of one grey channel with values 0 and 255"
        raise UserError(f"{file}: must be {accepted}, got mode {image.mode}; write one channel")
    if image.size[::-1] != size:
        raise UserError(
            f"{file}: must have the size of the video's frames, {size[1]} x {size[0]}, got {image.width} x "
            f"{image.height}; resize the logits before the threshold"
        )


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Writes [H, W] bool as a one-channel PNG of 0 and 255.

    Raises:
        OSError: if the file cannot be written.
    """
    grey = mask.view(np.uint8) * np.uint8(255)
    png = cv2.imencode(".png", grey, RUN_LENGTHS)[1]
    if RAGGED * len(png) > mask.size:
        png = min(png, cv2.imencode(".png", grey, REPETITIONS)[1], key=len)
    path.write_bytes(png.tobytes())


def write_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    """Writes [H, W] object numbers, 0 for none, as a palette PNG in the colours of PASCAL VOC and DAVIS.

    Raises:
        OSError: if the file cannot be written.
    """
    image = Image.fromarray(labels)
    image.putpalette(_label_colours().tobytes())  # turns a grey image into a palette image
    with path.open("wb") as file:
        image.save(file, "PNG")


@functools.cache
def _label_colours() -> NDArray[np.uint8]:
    """Returns [256, 3] colours: the bits of a number, three by three, become the high bits of red, green and blue."""
    numbers = np.arange(256)[:, None] >> np.array([0, 1, 2])  # bit of each three to colour
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        colours |= ((numbers >> 3 * place & 1) << 7 - place).astype(np.uint8)
    return colours
