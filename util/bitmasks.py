"""Masks packed into bits: their contours, the surroundings of contours, and how many pixels are set.

Bit ``x % 64`` of word ``x // 64`` is the pixel in column x, so one operation treats 64 pixels. Bits beyond the width
are 0. Everything is exact; there are no distances to be rounded.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Words = NDArray[np.uint64]

WORD = 64  # pixels in a word


def num_words(width: int) -> int:
    """Words in a row of ``width`` pixels."""
    return -(-width // WORD)


def pack(masks: Masks) -> Words:
    """[T, H, W] bool to [T, H, ceil(W / 64)]."""
    num_frames, height, width = masks.shape
    packed = np.zeros((num_frames, height, num_words(width) * WORD // 8), np.uint8)
    packed[..., : -(-width // 8)] = np.packbits(masks, axis=-1, bitorder="little")
    return packed.view("<u8")  # the first byte holds the first columns on any machine


def contours(masks: Words, width: int) -> Words:
    """Pixels that differ from their neighbour to the east, south or south-east; the frame's edge goes on beyond it.

    An edge that goes on is what DAVIS's rules for the last row and column come to: along the last row only east can
    differ, along the last column only south, at the last corner nothing.

    Source: the DAVIS-2017 toolkit's segment-to-boundary map, at equal size.
    """
    south = np.zeros_like(masks)  # whether the pixel to the south differs
    south[:, :-1] = masks[:, :-1] ^ masks[:, 1:]
    # South-east differs only if something on the way there does.
    contour = (masks ^ _eastern(masks)) | _eastern(south)
    contour[..., -1] &= (1 << (width - 1) % WORD) - 1
    return contour | south


def _eastern(masks: Words) -> Words:
    """Each pixel's neighbour to the east; that of a row's last one means nothing."""
    flat = masks.ravel()
    shifted = flat >> np.uint64(1)
    shifted[:-1] |= flat[1:] << (WORD - 1)
    return shifted.reshape(masks.shape)


@dataclass(frozen=True)
class Patch:
    """The part of packed frames that holds all their set pixels.

    Attributes:
        words: [T, rows, words].
        top, left: row and word of the frame where the part begins; surroundings reach beyond the frame, so below 0.
    """

    words: Words
    top: int
    left: int

    @property
    def bottom(self) -> int:
        return self.top + self.words.shape[1]

    @property
    def right(self) -> int:
        return self.left + self.words.shape[2]

    def part(self, top: int, bottom: int, left: int, right: int) -> Words:
        """What lies between these rows and words of the frame, none of them outside the patch."""
        return self.words[:, top - self.top : bottom - self.top, left - self.left : right - self.left]


def crop(masks: Words) -> Patch:
    """The smallest part of [T, H, words] that holds the set pixels of all frames."""
    any_frame = np.bitwise_or.reduce(masks, axis=0)
    rows = np.flatnonzero(np.bitwise_or.reduce(any_frame, axis=1))
    columns = np.flatnonzero(np.bitwise_or.reduce(any_frame, axis=0))
    if len(rows) == 0:
        return Patch(masks[:, :0, :0], 0, 0)
    return Patch(masks[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(rows[0]), int(columns[0]))


def surroundings(patch: Patch, radius: int) -> Patch:
    """All pixels within ``radius`` of a set one: x^2 + y^2 <= radius^2.

    The disk is laid row by row, the narrowest first: the run of one row grows out of that of the row before.
    """
    num_frames, rows, columns = patch.words.shape
    if patch.words.size == 0:
        return patch
    margin = num_words(radius)  # keeps what leaves a row out of the next one
    run = np.zeros((num_frames, rows, margin + columns + margin), np.uint64)
    run[..., margin : margin + columns] = patch.words
    around = np.zeros((num_frames, radius + rows + radius, run.shape[2]), np.uint64)
    reach = 0
    for distance in range(radius, -1, -1):
        half_width = math.isqrt(radius**2 - distance**2)
        while reach < half_width:
            step = min(half_width - reach, 2 * reach + 1)  # a longer one would leave gaps
            run = _widened(run.ravel(), step).reshape(run.shape)
            reach += step
        for place in {radius - distance, radius + distance}:
            around[:, place : place + rows] |= run
    return Patch(around, patch.top - radius, patch.left - margin)


def _widened(masks: Words, step: int) -> Words:
    """The set pixels, and the pixels ``step`` columns to either side of them; all rows one after the other.

    0 < step < 64: from row to row a disk widens by sqrt(2 radius) at most, so it is for radii up to 2,000.
    """
    wide = masks << np.uint64(step)
    wide |= masks >> step
    wide |= masks
    wide[1:] |= masks[:-1] >> (WORD - step)
    wide[:-1] |= masks[1:] << (WORD - step)
    return wide


def count(masks: Words) -> NDArray[np.int64]:
    """Set pixels of each frame, [T]."""
    return np.bitwise_count(masks).sum(axis=(1, 2), dtype=np.int64)


def count_shared(one: Patch, other: Patch) -> NDArray[np.int64]:
    """Pixels of each frame that are set in both, [T]."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom, right = max(top, min(one.bottom, other.bottom)), max(left, min(one.right, other.right))
    return count(one.part(top, bottom, left, right) & other.part(top, bottom, left, right))


def unpack_masks(bits: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.bool_]:
    """[..., ceil(H * W / 8)] packed pixels, the first in the highest bit, to [..., H, W] bool; ``size`` is (H, W)."""
    pixels = np.unpackbits(bits, axis=-1, count=size[0] * size[1])
    return pixels.reshape(*bits.shape[:-1], *size).view(bool)
