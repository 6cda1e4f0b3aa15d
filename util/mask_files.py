"""Predicted masks as PNG files of one channel: what is accepted, read strictly. Free of torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.errors import UserError

ACCEPTED = "a PNG of one channel: grey with values 0 and 255, 1 bit, or a palette with numbers 0 and 1, or 0 and 255"
GREY, PALETTE, BIT = "L", "P", "1"


def check_mask_file(file: Path, size: tuple[int, int], modes: tuple[str, ...] = (GREY, PALETTE, BIT)) -> None:
    """Nothing, where the header is that of a mask; its pixels are not read.

    Args:
        size: (H, W) in pixels.
        modes: of Pillow, that are accepted.

    Raises:
        UserError: if it is no PNG, has colours, or another size.
    """
    with _opened(file) as image:
        _check_header(file, image, size, modes)


def read_mask(file: Path, size: tuple[int, int], modes: tuple[str, ...] = (GREY, PALETTE, BIT)) -> NDArray[np.bool_]:
    """[H, W] of a mask file; see ``check_mask_file``.

    Raises:
        UserError: likewise, if it is damaged, or has other values than ``ACCEPTED``.
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
    """[H, W] of a file whose values are the numbers of objects.

    Raises:
        UserError: if it is no PNG, damaged, has colours, or another size.
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
        raise UserError(f"{file}: no PNG or damaged ({error}); write it again") from None


def _check_header(file: Path, image: Image.Image, size: tuple[int, int], modes: tuple[str, ...]) -> None:
    if image.mode not in modes:
        accepted = ACCEPTED if modes != (GREY,) else "a PNG of one grey channel with values 0 and 255"
        raise UserError(f"{file}: must be {accepted}, got mode {image.mode}; write one channel")
    if image.size[::-1] != size:
        raise UserError(
            f"{file}: must have the size of the video's frames, {size[1]} x {size[0]}, got {image.width} x "
            f"{image.height}; resize the logits before the threshold"
        )
