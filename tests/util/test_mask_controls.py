"""Mask controls against their definitions, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from util.mask_controls import MaskControls

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))
EIGHT = np.ones((3, 3), bool)


@given(MASKS)
def test_nothing_asked_for_changes_nothing(mask):
    assert MaskControls().apply(mask) is mask


@given(MASKS, st.integers(1, 40))
def test_min_area_removes_smaller_components_alone(mask, min_area):
    labels, count = ndimage.label(mask, EIGHT)
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1))
    expected = np.isin(labels, 1 + np.flatnonzero(areas >= min_area))
    np.testing.assert_array_equal(MaskControls(min_area=min_area).apply(mask), expected)


@given(MASKS)
def test_keep_largest_leaves_one_component_of_the_largest_area(mask):
    kept = MaskControls(keep_largest=True).apply(mask)
    labels, count = ndimage.label(mask, EIGHT)
    assert ndimage.label(kept, EIGHT)[1] == min(count, 1)
    areas = ndimage.sum_labels(mask, labels, range(1, count + 1)) if count else [0]
    assert kept.sum() == max(areas)
    assert not (kept & ~mask).any()


@given(MASKS)
def test_fill_holes_fills_what_the_mask_encloses(mask):
    np.testing.assert_array_equal(MaskControls(fill_holes=True).apply(mask), ndimage.binary_fill_holes(mask))


def disc_grown(mask, radius):
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask) <= radius


@given(MASKS, st.integers(1, 8))
def test_grow_adds_what_lies_within_the_radius(mask, radius):
    np.testing.assert_array_equal(MaskControls(grow=radius).apply(mask), disc_grown(mask, radius))


@given(MASKS, st.integers(1, 8))
def test_shrink_is_growing_of_the_background(mask, radius):
    np.testing.assert_array_equal(MaskControls(shrink=radius).apply(mask), ~disc_grown(~mask, radius))


@given(MASKS, st.integers(1, 5))
def test_grow_then_shrink_never_loses_a_pixel(mask, radius):
    closed = MaskControls(grow=radius, shrink=radius).apply(mask)
    assert not (mask & ~closed).any()


def test_smooth_rounds_teeth_and_keeps_area():
    rows, columns = np.mgrid[:60, :60]
    mask = columns < 30 + 2 * (rows // 2 % 2)
    smooth = MaskControls(smooth=6).apply(mask)
    widths = smooth.sum(axis=1)[8:-8]
    assert widths.max() - widths.min() <= 1
    assert smooth.sum() == pytest.approx(mask.sum(), rel=0.03)


def test_controls_apply_in_the_documented_order():
    mask = np.zeros((40, 40), bool)
    mask[5:20, 5:20] = True
    mask[10:13, 10:13] = False
    mask[30:32, 30:32] = True
    result = MaskControls(min_area=10, fill_holes=True, grow=2, shrink=2).apply(mask)
    expected = np.zeros((40, 40), bool)
    expected[5:20, 5:20] = True
    np.testing.assert_array_equal(result, expected)
