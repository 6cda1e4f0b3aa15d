"""Reads image files as 8-bit RGB arrays, and fits frames to the model's size."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from util.errors import UserError

Frame = NDArray[np.uint8]  # [H, W, 3] RGB
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
JPEG_REDUCTIONS = {  # the flag for RGB excludes the one for BGR
    8: cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR_BGR | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR_BGR | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR_BGR | cv2.IMREAD_COLOR_RGB,
}
TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
ORIENTATION_TAG = 0x0112


def fit_size(height: int, width: int, box_height: int, box_width: int, multiple: int) -> tuple[int, int]:
    """Returns the largest size of the same aspect ratio that fits into the box, each side floored to ``multiple``.

    Small frames are enlarged. A side is never smaller than ``multiple``.

    Args:
        height, width: source size in pixels.
        box_height, box_width: the box in pixels, each at least ``multiple`` and floored to it.

    Returns:
        (height, width) in pixels; frames of that size are not resized.
    """
    box_height, box_width = box_height // multiple * multiple, box_width // multiple * multiple
    # Whole numbers throughout: a float scale can fall just below a multiple and lose 16 pixels.
    if box_width * height <= box_height * width:
        fitted = (height * box_width // width, box_width)
    else:
        fitted = (box_height, width * box_height // height)
    return max(multiple, fitted[0] // multiple * multiple), max(multiple, fitted[1] // multiple * multiple)


def resize_frame(frame: Frame, height: int, width: int) -> Frame:
    """Resizes [H, W, 3] to [height, width, 3] with an antialiased bilinear filter on 8 bits, as the method asks."""
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def read_image(file: Path, at_least: tuple[int, int] | None = None) -> Frame:
    """Reads an image as [H, W, 3] uint8 RGB, upright; grey becomes three channels, transparency is dropped.

    Args:
        at_least: (height, width) in pixels: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is much
            faster, if
            the result is not smaller than this.

    Raises:
        UserError: if the file is damaged or not an image.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: damaged or not an image ({error}); replace or remove it") from None
    # OpenCV is the faster decoder but fills a cut JPEG with grey: one without its end goes to Pillow, which complains.
    if data[:3] == JPEG_START and JPEG_END in data[-64:]:
        flag = cv2.IMREAD_COLOR_RGB
        if at_least is not None:
            flag = _reduction(image_size(file), at_least)
        picture: Frame | None = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        if picture is not None:
            return picture
    return _read_with_pillow(file)


def image_size(file: Path) -> tuple[int, int]:
    """Reads (height, width) in pixels of an upright image from its header.

    Raises:
        UserError: if the file is not an image.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            is_turned = image.getexif().get(ORIENTATION_TAG) in TRANSPOSING_ORIENTATIONS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: damaged or not an image ({error}); replace or remove it") from None
    return (width, height) if is_turned else (height, width)


def read_palette(file: Path) -> NDArray[np.uint8]:
    """Reads [H, W] object numbers from a palette or grey image, 0 for none.

    Raises:
        UserError: if the file is damaged or another kind of image.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in ("P", "L", "1"):
                raise UserError(f"{file}: must be a palette or grey image of object numbers, got mode {image.mode}")
            return np.asarray(image.convert("L") if image.mode == "1" else image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: damaged or not an image ({error}); replace or remove it") from None


def is_jpeg(file: Path) -> bool:
    """Whether the file begins like a JPEG, whatever its name.

    Raises:
        OSError: if it cannot be read.
    """
    with file.open("rb") as stream:
        return stream.read(len(JPEG_START)) == JPEG_START


def lacks_end(file: Path) -> bool:
    """Whether the file is a JPEG without an end marker: truncated, or filled up with zeros.

    Decoders may accept such a file. Bytes after the end are ignored; some cameras add them.

    Raises:
        OSError: if it cannot be read.
    """
    data = file.read_bytes()
    return data.startswith(JPEG_START) and JPEG_END not in data


def write_jpeg(file: Path, frame: Frame) -> None:
    """Writes [H, W, 3] uint8 RGB at quality 95.

    Raises:
        OSError: if the file cannot be written.
    """
    file.write_bytes(cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def _reduction(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    """Returns the strongest reduction of a JPEG of ``size`` that is not smaller than ``at_least``."""
    for factor, flag in JPEG_REDUCTIONS.items():
        if size[0] // factor >= at_least[0] and size[1] // factor >= at_least[1]:
            return flag
    return cv2.IMREAD_COLOR_RGB


def _read_with_pillow(file: Path) -> Frame:
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey: Pillow would clip them, not scale
                wide: NDArray[np.int64] = np.asarray(upright, dtype=np.int64)
                return np.repeat((wide >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            return np.asarray(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError
        raise UserError(f"{file}: damaged or not an image ({error}); replace or remove it") from None
