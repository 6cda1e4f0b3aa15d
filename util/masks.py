"""Masks as files."""

import functools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

# The decoder's logits are clamped to [-1, 1]: a threshold outside their sigmoids would decide nothing.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.27, 0.73

LONGEST_SIDE = 1 << 15  # pixels of a stored mask: a damaged size must not ask for all memory

# Two grey levels in runs, alike from row to row: this is the smallest of all settings at 1080p (14 KB; zlib's level 6
# gives 18), and takes 10 ms where the defaults take 39.
PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Writes [H, W] bool as a one-channel PNG of 0 and 255.

    Raises:
        OSError: if the file cannot be written.
    """
    png = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255), PNG_OPTIONS)[1]
    path.write_bytes(png.tobytes())


def write_labels(path: Path, labels: NDArray[np.uint8]) -> None:
    """Writes [H, W] object numbers, 0 for none, as a palette PNG in the colours of PASCAL VOC and DAVIS.

    Raises:
        OSError: if the file cannot be written.
    """
    image = Image.fromarray(labels)
    image.putpalette(_label_colours().tobytes())  # which makes a palette image of a grey one
    with path.open("wb") as file:
        image.save(file, "PNG")


def unpack_masks(bits: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.bool_]:
    """[..., ceil(H * W / 8)] packed pixels, the first in the highest bit, to [..., H, W] bool; ``size`` is (H, W)."""
    pixels = np.unpackbits(bits, axis=-1, count=size[0] * size[1])
    return pixels.reshape(*bits.shape[:-1], *size).view(bool)


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any] | None:
    """[H, W] bool to a compressed COCO RLE that JSON can hold; None where it is empty, as MeViS has it."""
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A compressed COCO RLE, or None for nothing, to [H, W] bool; ``size`` is that of nothing.

    Raises:
        ValueError: if it is none, or its runs do not fill its own size.
    """
    if rle is None:
        return np.zeros(size, bool)
    own_size, counts = checked_rle(rle)
    return coco_mask.decode({"size": list(own_size), "counts": counts}).astype(bool)


def checked_rle(rle: Any) -> tuple[tuple[int, int], bytes]:
    """The size (H, W) and the counts of a compressed COCO RLE.

    The C library leaves what missing runs do not fill as it found it in memory.

    Raises:
        ValueError: if it is none, or its runs do not fill its size.
    """
    try:
        height, width = rle["size"]
        counts = rle["counts"]
        counts = counts.encode("ascii") if isinstance(counts, str) else memoryview(counts).tobytes()
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"no compressed RLE of keys 'size' and 'counts', got {str(rle)[:60]!r}") from error
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise ValueError(f"the size of an RLE must be two positive whole numbers, got {rle['size']}")
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(f"the sides of an RLE must be at most {LONGEST_SIDE} pixels, got {height} x {width}")
    if run_lengths(counts).sum() != height * width:
        raise ValueError(f"the runs of an RLE must fill its {height} x {width} pixels, got {counts[:40]!s}")
    return (height, width), counts


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The run lengths of a compressed COCO RLE.

    Its format: numbers of 5 bits a byte, lowest first, with 48 added; bit 5 says that more bytes follow, bit 4 of the
    last one is the sign. From the fourth number on each is the difference to the last but one.

    Raises:
        ValueError: if the bytes are no such numbers, or a run is negative.
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (bits & 32) == 0
    if len(bits) == 0 or bits.min() < 0 or bits.max() > 63 or not last[-1]:
        raise ValueError(f"not the characters of a compressed RLE, {counts[:40]!s}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: beyond any picture; sums of more would go beyond the integer
        raise ValueError(f"a number of a compressed RLE is too long, {counts[:40]!s}")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 31) << shifts, starts)
    values -= np.where(bits[ends] & 16, np.int64(1) << 5 * lengths, 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError(f"a run of a compressed RLE is negative, {counts[:40]!s}")
    if values.max() > LONGEST_SIDE**2:
        raise ValueError(f"a run of a compressed RLE is longer than any picture, {counts[:40]!s}")
    return values


@functools.cache
def _label_colours() -> NDArray[np.uint8]:
    """[256, 3]: the bits of a number, three by three, are the highest, second highest, ... of red, green and blue."""
    numbers = np.arange(256)[:, None] >> np.array([0, 1, 2])  # which bit of three goes to which colour
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        colours |= ((numbers >> 3 * place & 1) << 7 - place).astype(np.uint8)
    return colours
