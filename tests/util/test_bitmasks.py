"""Packed masks, where J and F do not look: every radius, every place of a pixel in its word."""

import numpy as np
import pytest

from util.bitmasks import Patch, contours, count_shared, crop, surroundings, to_words


def unpack(words, width):
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").astype(bool)
    assert not bits[..., width:].any(), "no pixel beyond the width"
    return bits[..., :width]


def placed(patch, size):
    """A patch on frames of a size; what reaches beyond them is cut off."""
    margin = 2
    rows, words = size[0] + 400, -(-size[1] // 64) + 2 * margin
    canvas = np.zeros((len(patch.words), rows, words), np.uint64)
    canvas[:, patch.top + 200 : patch.bottom + 200, patch.left + margin : patch.right + margin] = patch.words
    frames = np.unpackbits(canvas.view(np.uint8), axis=-1, bitorder="little").astype(bool)
    return frames[:, 200 : 200 + size[0], 64 * margin : 64 * margin + size[1]]


@pytest.mark.parametrize("width", [1, 7, 8, 9, 63, 64, 65, 128, 200])
def test_packing_keeps_every_pixel(width):
    masks = np.random.default_rng(width).random((3, 5, width)) < 0.5
    words = to_words(masks)
    assert (unpack(words, width) == masks).all()
    assert unpack(contours(words, width), width).shape == masks.shape


@pytest.mark.parametrize("radius", [*range(1, 34), 62, 63, 64, 65, 71, 100])
def test_surroundings_of_pixels_are_disks(radius):
    rng = np.random.default_rng(radius)
    size = (150, 330)
    pixels = [(0, 0), (149, 329), *zip(rng.integers(size[0], size=9), rng.integers(size[1], size=9), strict=True)]
    masks = np.zeros((len(pixels), *size), bool)
    y, x = np.mgrid[: size[0], : size[1]]
    for mask, (row, column) in zip(masks, pixels, strict=True):
        mask[row, column] = True
    expected = np.stack([(x - column) ** 2 + (y - row) ** 2 <= radius**2 for row, column in pixels])
    assert (placed(surroundings(crop(to_words(masks)), radius), size) == expected).all()


def test_the_crop_holds_every_pixel_and_no_empty_edge():
    masks = np.zeros((2, 40, 300), bool)
    masks[0, 7, 130], masks[1, 20, 200] = True, True
    patch = crop(to_words(masks))
    assert (patch.top, patch.bottom, patch.left, patch.right) == (7, 21, 2, 4)
    assert (placed(patch, (40, 300)) == masks).all()


def test_nothing_has_no_surroundings_and_shares_nothing():
    nothing, something = crop(to_words(np.zeros((2, 9, 70), bool))), crop(to_words(np.ones((2, 9, 70), bool)))
    assert surroundings(nothing, 3).words.size == 0
    assert count_shared(nothing, something).tolist() == count_shared(something, nothing).tolist() == [0, 0]


@pytest.mark.parametrize("place", [(-6, 0), (6, 0), (0, -4), (0, 4), (-6, 4), (2, 1), (-2, -1), (0, 0)])
def test_patches_share_the_pixels_of_their_overlap(place):
    one = Patch(np.full((1, 4, 3), 3, np.uint64), 0, 0)
    other = Patch(np.full((1, 4, 3), 6, np.uint64), *place)  # one bit of each word is in both
    expected = max(0, 4 - abs(place[0])) * max(0, 3 - abs(place[1]))
    assert count_shared(one, other).tolist() == [expected]
