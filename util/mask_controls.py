"""Cleans masks as a user asks: removes specks, fills holes, grows, shrinks and smooths."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]  # [H, W]


@dataclass(frozen=True)
class MaskControls:
    """What to do to every mask, in this order. Lengths are in pixels of the source; 0 and False change nothing.

    Attributes:
        min_area: remove connected components of fewer pixels.
        keep_largest: keep only the largest component.
        fill_holes: fill background that is enclosed by the mask.
        smooth: radius of a Gaussian over which contours are averaged.
        grow, shrink: radius by which the mask grows, then shrinks; both together close gaps.
    """

    min_area: int = 0
    keep_largest: bool = False
    fill_holes: bool = False
    smooth: int = 0
    grow: int = 0
    shrink: int = 0

    def apply(self, mask: Mask) -> Mask:
        """Returns the mask [H, W] bool after all that is asked for; the same array if that is nothing."""
        if self == MaskControls() or not mask.any():
            return mask
        if self.min_area > 1 or self.keep_largest:
            mask = _components(mask, self.min_area, self.keep_largest)
        if self.fill_holes:
            mask = _filled(mask)
        if self.smooth:
            mask = _smoothed(mask, self.smooth)
        if self.grow:
            mask = _grown(mask, self.grow)
        if self.shrink:
            mask = ~_grown(~mask, self.shrink)
        return mask


def _components(mask: Mask, min_area: int, largest_alone: bool) -> Mask:
    """Keeps the components (8 neighbours) that are large enough."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    is_kept = areas >= max(min_area, 1)
    if largest_alone and count > 1:
        is_kept &= np.arange(count) == areas.argmax()
    return is_kept[labels]


def _filled(mask: Mask) -> Mask:
    """Fills the background that a path of 4 neighbours does not join with the edge of the frame."""
    height, width = mask.shape
    outside = np.zeros((height + 2, width + 2), np.uint8)
    outside[1:-1, 1:-1] = mask
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return outside[1:-1, 1:-1] != 2


def _smoothed(mask: Mask, radius: int) -> Mask:
    """Averages over a Gaussian that ends at ``radius`` pixels, and keeps what is at least half inside."""
    size = 2 * radius + 1
    grey = mask.view(np.uint8) * np.uint8(255)
    return cv2.GaussianBlur(grey, (size, size), radius / 2, borderType=cv2.BORDER_REPLICATE) >= 128


def _grown(mask: Mask, radius: int) -> Mask:
    """Adds the pixels whose centre is at most ``radius`` pixels from one of the mask."""
    if not mask.any() or mask.all():
        return mask
    distance = cv2.distanceTransform((~mask).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= radius
