"""The forms in which COCO stores a mask: polygons, and runs of pixels. Free of torch."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from util.masks import LONGEST_SIDE, checked_rle


@dataclass(frozen=True)
class CocoMask:
    """A checked mask, not yet pixels.

    Attributes:
        size: (H, W) of the picture.
        polygons: each [2 N] of x and y in turn; their union is the mask.
        counts: a compressed RLE instead; None for polygons.
    """

    size: tuple[int, int]
    polygons: tuple[NDArray[np.float64], ...] = ()
    counts: bytes | None = None

    def decode(self) -> NDArray[np.bool_]:
        """[H, W] bool."""
        if self.counts is not None:
            return coco_mask.decode({"size": list(self.size), "counts": self.counts}).astype(bool)
        if not self.polygons:
            return np.zeros(self.size, bool)
        pieces = coco_mask.frPyObjects([polygon.tolist() for polygon in self.polygons], *self.size)
        return coco_mask.decode(coco_mask.merge(pieces)).astype(bool)


def checked_mask(segmentation: Any, size: tuple[int, int]) -> CocoMask:
    """A ``segmentation`` of COCO: a list of polygons, a compressed RLE, or one whose ``counts`` are a list.

    Args:
        size: (H, W) of the picture.

    Raises:
        ValueError: if it is none of these, or does not fit the picture.
    """
    if max(size) > LONGEST_SIDE:
        raise ValueError(f"a picture must be at most {LONGEST_SIDE} pixels wide and high, got {size[1]} x {size[0]}")
    if isinstance(segmentation, list):
        polygons = [_checked_polygon(polygon, size) for polygon in segmentation]
        if not polygons:
            raise ValueError("'segmentation' must list at least one polygon, got none")
        return CocoMask(size, tuple(polygon for polygon in polygons if len(polygon) > 4))  # two points enclose nothing
    if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        segmentation = _compressed(segmentation)
    own_size, counts = checked_rle(segmentation)
    if own_size != size:
        raise ValueError(f"the size of an RLE must be that of its picture, {size}, got {own_size}")
    return CocoMask(size, counts=counts)


def _checked_polygon(polygon: Any, size: tuple[int, int]) -> NDArray[np.float64]:
    if not isinstance(polygon, list) or len(polygon) < 4 or len(polygon) % 2:
        raise ValueError(f"a polygon must list x and y of its points in turn, got {str(polygon)[:60]!r}")
    # The C library asks for memory by the length of the sides: a damaged number must not ask for all of it.
    limit = 2 * max(size)
    try:
        points = np.array(polygon if set(map(type, polygon)) <= {int, float} else math.nan, np.float64)
    except OverflowError:
        points = np.array(math.inf)
    if not np.abs(points).max() <= limit:  # not for a number that is none, either
        raise ValueError(f"a polygon must stay near its picture of {size[1]} x {size[0]}, got {str(polygon)[:60]}")
    return points


def _compressed(rle: dict[str, Any]) -> dict[str, Any]:
    """An RLE whose ``counts`` are the lengths of its runs, first of background, as a compressed one."""
    size, runs = rle.get("size"), rle["counts"]
    if not isinstance(size, list) or len(size) != 2 or not all(_is_length(side) and side for side in size):
        raise ValueError(f"the size of an RLE must be two positive whole numbers, got {str(size)[:60]}")
    if not all(_is_length(run) for run in runs) or sum(runs) != math.prod(size):
        raise ValueError(f"the runs of an RLE must fill its {size[0]} x {size[1]} pixels, got {str(runs)[:60]}")
    compressed: dict[str, Any] = coco_mask.frPyObjects(rle, *size)
    return compressed


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LONGEST_SIDE**2
