"""Masks with one bit per pixel. Word masks (64 pixels in a word) find contours and count pixels fast.

In a word mask, bit ``x % 64`` of word ``x // 64`` is the pixel in column x; bits beyond the width are 0. All results
are
exact. Packed masks are another format, eight pixels in a byte, which leaves the device: see ``unpack_masks``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
Words = NDArray[np.uint64]

WORD = 64  # pixels in a word


def num_words(width: int) -> int:
    """Returns the number of words in a row of ``width`` pixels."""
    return -(-width // WORD)


def to_words(masks: Masks) -> Words:
    """Converts masks [T, H, W] bool to word masks [T, H, ceil(W / 64)]."""
    num_frames, height, width = masks.shape
    packed = np.zeros((num_frames, height, num_words(width) * WORD // 8), np.uint8)
    packed[..., : -(-width // 8)] = np.packbits(masks, axis=-1, bitorder="little")
    return packed.view("<u8")  # the first byte holds the first columns on any machine


def contours(masks: Words, width: int) -> Words:
    """Finds pixels that differ from their neighbour to the east, south or south-east; the edge is continued beyond the
    frame.

    Continuing the edge is equal to DAVIS's rules for the last row and column: in the last row only east can differ,
    in the
    last column only south, at the last corner nothing.

    Source: the DAVIS-2017 toolkit's segment-to-boundary map, at equal size.
    """
    south = np.zeros_like(masks)  # where the pixel to the south differs
    south[:, :-1] = masks[:, :-1] ^ masks[:, 1:]
    # South-east differs only if a pixel on the way there does.
    contour = (masks ^ _eastern(masks)) | _eastern(south)
    contour[..., -1] &= (1 << (width - 1) % WORD) - 1
    return contour | south


def _eastern(masks: Words) -> Words:
    """Returns each pixel's neighbour to the east; meaningless for the last pixel of a row."""
    flat = masks.ravel()
    shifted = flat >> np.uint64(1)
    shifted[:-1] |= flat[1:] << (WORD - 1)
    return shifted.reshape(masks.shape)


@dataclass(frozen=True)
class Patch:
    """The region of word masks that holds all set pixels.

    Attributes:
        words: [T, rows, words].
        top, left: row and word of the frame where the region begins; below 0 if surroundings reach beyond the frame.
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

    def slice(self, top: int, bottom: int, left: int, right: int) -> Words:
        """Returns a slice of the region between rows and words of the frame, all of them inside it."""
        return self.words[:, top - self.top : bottom - self.top, left - self.left : right - self.left]


def crop(masks: Words) -> Patch:
    """Crops [T, H, words] to the smallest region that holds the set pixels of all frames."""
    any_frame = np.bitwise_or.reduce(masks, axis=0)
    rows = np.flatnonzero(np.bitwise_or.reduce(any_frame, axis=1))
    columns = np.flatnonzero(np.bitwise_or.reduce(any_frame, axis=0))
    if len(rows) == 0:
        return Patch(masks[:, :0, :0], 0, 0)
    return Patch(masks[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], int(rows[0]), int(columns[0]))


def surroundings(patch: Patch, radius: int) -> Patch:
    """Sets all pixels within ``radius`` of a set one: x^2 + y^2 <= radius^2.

    The disk is applied row by row, narrowest first: each row's run extends the run of the row before.
    """
    num_frames, rows, columns = patch.words.shape
    if patch.words.size == 0:
        return patch
    margin = num_words(radius)  # keeps pixels that leave a row out of the next row
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
    """Sets the pixels ``step`` columns to either side of set pixels; rows are contiguous.

    0 < step < 64. From row to row a disk widens by at most sqrt(2 radius), so this holds for radii up to 2,000.
    """
    wide = masks << np.uint64(step)
    wide |= masks >> step
    wide |= masks
    wide[1:] |= masks[:-1] >> (WORD - step)
    wide[:-1] |= masks[1:] << (WORD - step)
    return wide


def count(masks: Words) -> NDArray[np.int64]:
    """Counts the set pixels of each frame, [T]."""
    return np.bitwise_count(masks).sum(axis=(1, 2), dtype=np.int64)


def count_shared(one: Patch, other: Patch) -> NDArray[np.int64]:
    """Counts the pixels of each frame that are set in both, [T]."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom, right = max(top, min(one.bottom, other.bottom)), max(left, min(one.right, other.right))
    return count(one.slice(top, bottom, left, right) & other.slice(top, bottom, left, right))


def unpack_masks(bits: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Unpacks packed masks [..., ceil(H * W / 8)], first pixel in the highest bit, to [..., H, W] bool.

    Args:
        size: (H, W) in pixels.
    """
    pixels = np.unpackbits(bits, axis=-1, count=size[0] * size[1])
    return pixels.reshape(*bits.shape[:-1], *size).view(bool)
