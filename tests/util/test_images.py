"""The size the model sees, and how frames get there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from util.images import fit_size, resize_frame

SIDES = st.integers(1, 5000)


@st.composite
def boxes(draw):
    """(height, width, multiple) of a box that holds at least one multiple on each side."""
    multiple = draw(st.sampled_from([1, 8, 16, 32]))
    return draw(st.integers(multiple, 2000)), draw(st.integers(multiple, 2000)), multiple


@given(SIDES, SIDES, boxes())
def test_fitted_sides_are_multiples_inside_the_floored_box(height, width, box):
    box_height, box_width, multiple = box
    fitted = fit_size(height, width, *box)
    assert fitted[0] % multiple == fitted[1] % multiple == 0
    assert multiple <= fitted[0] <= box_height // multiple * multiple
    assert multiple <= fitted[1] <= box_width // multiple * multiple


@given(SIDES, SIDES, boxes())
def test_one_side_fills_the_box_and_the_other_follows_the_aspect(height, width, box):
    box_height, box_width, multiple = box
    fitted = fit_size(height, width, *box)
    full_width = fitted[1] == box_width // multiple * multiple
    full_height = fitted[0] == box_height // multiple * multiple
    # Exact heights and widths of the same aspect, in whole numbers: fitted <= exact < fitted + multiple.
    height_follows = fitted[0] == multiple or fitted[0] * width <= height * fitted[1] < (fitted[0] + multiple) * width
    width_follows = fitted[1] == multiple or fitted[1] * height <= width * fitted[0] < (fitted[1] + multiple) * height
    assert (full_width and height_follows) or (full_height and width_follows)


@given(SIDES, SIDES, boxes())
def test_a_fitted_size_fits_as_it_is(height, width, box):
    fitted = fit_size(height, width, *box)
    assert fit_size(*fitted, *box) == fitted


@given(SIDES, SIDES, boxes())
def test_fitting_a_turned_frame_into_a_turned_box_turns_the_result(height, width, box):
    box_height, box_width, multiple = box
    assert fit_size(width, height, box_width, box_height, multiple) == fit_size(height, width, *box)[::-1]


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((720, 1280), (480, 832), (464, 832)),  # 468 floored
        ((1080, 1920), (480, 832), (464, 832)),
        ((480, 832), (480, 832), (480, 832)),
        ((1280, 720), (480, 832), (480, 256)),  # portrait: 270 floored
        ((240, 416), (480, 832), (480, 832)),  # enlarged
        ((720, 1280), (487, 840), (464, 832)),  # the box is floored first
        ((4000, 10), (480, 832), (480, 16)),  # never below one multiple
    ],
)
def test_known_sizes_at_multiples_of_16(size, box, expected):
    assert fit_size(*size, *box, 16) == expected


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


@pytest.mark.parametrize("size", [(16, 32), (37, 32), (80, 112), (1, 1)])
def test_resizing_equals_pillows_bilinear_filter(noise, size):
    expected = Image.fromarray(noise).resize(size[::-1], Image.Resampling.BILINEAR)
    resized = resize_frame(noise, *size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, np.asarray(expected))


def test_a_frame_of_the_right_size_stays_as_it_is(noise):
    np.testing.assert_array_equal(resize_frame(noise, 37, 53), noise)


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    grey = resize_frame(stripes, 8, 8)[:, 1:-1]  # at the borders the filter is cut
    assert 100 < grey.min() <= grey.max() < 155
