"""Masks as COCO stores them: run-length encodings (RLE) and polygons."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

LONGEST_SIDE = 1 << 15  # longest side in pixels: a damaged size must not allocate all memory


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any] | None:
    """Encodes [H, W] bool as a compressed COCO RLE that JSON can hold; None if it is empty, as in MeViS."""
    if not mask.any():
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decodes a compressed COCO RLE, or None for an empty mask of ``size``, to [H, W] bool.

    Raises:
        ValueError: if it is not an RLE, or its runs do not fill its own size.
    """
    if rle is None:
        return np.zeros(size, bool)
    own_size, counts = checked_rle(rle)
    return coco_mask.decode({"size": list(own_size), "counts": counts}).astype(bool)


def checked_rle(rle: Any) -> tuple[tuple[int, int], bytes]:
    """Returns the size (H, W) and the counts of a compressed COCO RLE, checked.

    The C library leaves uninitialised memory where runs are missing.

    Raises:
        ValueError: if it is not an RLE, or its runs do not fill its size.
    """
    try:
        height, width = rle["size"]
        counts = rle["counts"]
        counts = counts.encode("ascii") if isinstance(counts, str) else memoryview(counts).tobytes()
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"not a compressed RLE with the keys 'size' and 'counts', got {str(rle)[:60]!r}") from error
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise ValueError(f"the size of an RLE must be two positive whole numbers, got {rle['size']}")
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(f"the sides of an RLE must be at most {LONGEST_SIDE} pixels, got {height} x {width}")
    if run_lengths(counts).sum() != height * width:
        raise ValueError(f"the runs of an RLE must fill its {height} x {width} pixels, got {counts[:40]!s}")
    return (height, width), counts


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Decodes the run lengths of a compressed COCO RLE.

    The format: numbers of 5 bits per byte, lowest first, with 48 added; bit 5 says that more bytes follow, bit 4 of
    the last
    byte is the sign. From the fourth number on, each is the difference to the last but one.

    Raises:
        ValueError: if the bytes are not such numbers, or a run is negative.
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (bits & 32) == 0
    if len(bits) == 0 or bits.min() < 0 or bits.max() > 63 or not last[-1]:
        raise ValueError(f"not the characters of a compressed RLE, {counts[:40]!s}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: beyond any image; sums of larger numbers would overflow
        raise ValueError(f"a number of a compressed RLE is too long, {counts[:40]!s}")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    values = np.add.reduceat((bits & 31) << shifts, starts)
    values -= np.where(bits[ends] & 16, np.int64(1) << 5 * lengths, 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise ValueError(f"a run of a compressed RLE is negative, {counts[:40]!s}")
    if values.max() > LONGEST_SIDE**2:
        raise ValueError(f"a run of a compressed RLE is longer than any image, {counts[:40]!s}")
    return values


@dataclass(frozen=True)
class CocoMask:
    """A checked mask, not decoded yet.

    Attributes:
        size: (H, W) of the image.
        polygons: [2 N] alternating x and y each; the mask is their union.
        counts: a compressed RLE instead; None for polygons.
    """

    size: tuple[int, int]
    polygons: tuple[NDArray[np.float64], ...] = ()
    counts: bytes | None = None

    def decode(self) -> NDArray[np.bool_]:
        """Returns the mask, [H, W] bool."""
        if self.counts is not None:
            return coco_mask.decode({"size": list(self.size), "counts": self.counts}).astype(bool)
        if not self.polygons:
            return np.zeros(self.size, bool)
        pieces = coco_mask.frPyObjects([polygon.tolist() for polygon in self.polygons], *self.size)
        return coco_mask.decode(coco_mask.merge(pieces)).astype(bool)


def checked_mask(segmentation: Any, size: tuple[int, int]) -> CocoMask:
    """Checks a ``segmentation`` of COCO: a list of polygons, a compressed RLE, or one whose ``counts`` are a list.

    Args:
        size: (H, W) of the image.

    Raises:
        ValueError: if it is none of these, or does not fit the image.
    """
    if max(size) > LONGEST_SIDE:
        raise ValueError(f"an image must be at most {LONGEST_SIDE} pixels wide and high, got {size[1]} x {size[0]}")
    if isinstance(segmentation, list):
        polygons = [_checked_polygon(polygon, size) for polygon in segmentation]
        if not polygons:
            raise ValueError("'segmentation' must list at least one polygon, got none")
        return CocoMask(size, tuple(polygon for polygon in polygons if len(polygon) > 4))  # two points enclose nothing
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        segmentation = _compressed(segmentation)
    own_size, counts = checked_rle(segmentation)
    if own_size != size:
        raise ValueError(f"the size of an RLE must be that of its image, {size}, got {own_size}")
    return CocoMask(size, counts=counts)


def _checked_polygon(polygon: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    if not isinstance(polygon, list) or len(polygon) < 4 or len(polygon) % 2:
        raise ValueError(f"a polygon must list x and y of its points in turn, got {str(polygon)[:60]!r}")
    # The C library allocates memory by the length of the sides: a damaged number must not allocate all of it.
    limit = 2 * max(size)
    try:
        points = np.array(polygon if set(map(type, polygon)) <= {int, float} else math.nan, np.float64)
    except OverflowError:
        points = np.array(math.inf)
    if not np.abs(points).max() <= limit:  # also refuses NaN
        raise ValueError(f"a polygon must stay near its image of {size[1]} x {size[0]}, got {str(polygon)[:60]}")
    return points


def _compressed(rle: dict[str, Any]) -> dict[str, Any]:
    """Compresses an RLE whose ``counts`` are a list of run lengths, background first."""
    size, runs = rle.get("size"), rle["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(_is_length(side) and side for side in size):
        raise ValueError(f"the size of an RLE must be two positive whole numbers, got {str(size)[:60]}")
    if not all(_is_length(run) for run in runs) or sum(runs) != math.prod(size):
        raise ValueError(f"the runs of an RLE must fill its {size[0]} x {size[1]} pixels, got {str(runs)[:60]}")
    compressed: dict[str, Any] = coco_mask.frPyObjects(rle, *size)
    return compressed


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LONGEST_SIDE**2
