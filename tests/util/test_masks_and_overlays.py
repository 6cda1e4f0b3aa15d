"""Masks as files, and masks over frames."""

import cv2
import numpy as np
import pytest
from PIL import Image

from util.colours import colours_for
from util.flags import OVERLAY_STYLES
from util.mask_files import write_mask
from util.visualize import draw_masks


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# Masks as files


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 47), (64, 48)])
def test_a_mask_file_is_one_channel_of_0_and_255_and_reads_back(tmp_path, rng, size):
    mask = rng.random(size) > 0.5
    write_mask(tmp_path / "mask.png", mask)
    with Image.open(tmp_path / "mask.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", size[::-1])
        np.testing.assert_array_equal(np.asarray(image), np.where(mask, 255, 0))


def test_a_turned_mask_is_written_as_it_looks(tmp_path, rng):
    mask = (rng.random((6, 9)) > 0.5).T  # not contiguous
    write_mask(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")) > 0, mask)


def test_a_mask_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_mask(tmp_path / "absent" / "mask.png", np.zeros((4, 4), bool))


# Overlays


@pytest.mark.parametrize("size", [(40, 60), (1100, 200)])
def test_drawing_changes_the_masked_pixels_and_an_outline_only(rng, size):
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    before = frame.copy()
    mask = np.zeros((1, *size), bool)
    mask[0, 10:30, 20:50] = True
    drawn = draw_masks(frame, mask, [(255, 0, 0)])
    np.testing.assert_array_equal(frame, before)  # a copy was drawn upon
    changed = (drawn != frame).any(axis=2)
    reach = 2 * max(1, round(min(size) / 500)) + 1
    near = cv2.dilate(mask[0].astype(np.uint8), np.ones((reach, reach))) > 0
    assert not (changed & ~near).any()
    inner = (slice(15, 25), slice(25, 45))
    mixed = 0.5 * frame[inner] + 0.5 * np.array([255, 0, 0])
    assert np.abs(drawn[inner] - mixed).max() <= 1  # rounding
    assert (drawn[10, 20:50] == (255, 0, 0)).all()  # the outline is opaque


def test_an_empty_mask_changes_nothing(rng):
    frame = rng.integers(0, 256, (20, 30, 3), np.uint8)
    np.testing.assert_array_equal(draw_masks(frame, np.zeros((2, 20, 30), bool), colours_for(2)), frame)


def test_a_full_opacity_paints_the_colour_itself(rng):
    frame = rng.integers(0, 256, (20, 30, 3), np.uint8)
    drawn = draw_masks(frame, np.ones((1, 20, 30), bool), [(1, 2, 3)], opacity=1.0)
    assert (drawn == (1, 2, 3)).all()


def test_a_later_prompt_lies_over_an_earlier_one(rng):
    frame = np.full((20, 30, 3), 100, np.uint8)
    masks = np.ones((2, 20, 30), bool)
    drawn = draw_masks(frame, masks, [(250, 0, 0), (0, 0, 250)])
    assert drawn[10, 15, 2] > drawn[10, 15, 0] > 0


# The other styles


LIGHT_AND_DARK = [(250, 250, 245), (128, 128, 128), (8, 8, 10)]


def disc(height=240, width=320, radius=60):
    rows, columns = np.ogrid[:height, :width]
    return ((rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2)[None]


def near_edge(mask, reach):
    brush = np.ones((2 * reach + 1, 2 * reach + 1))
    return (cv2.dilate(mask.astype(np.uint8), brush) - cv2.erode(mask.astype(np.uint8), brush)) > 0


def test_fill_is_the_style_without_a_name(rng):
    frame = rng.integers(0, 256, (60, 80, 3), np.uint8)
    masks = rng.random((3, 60, 80)) > 0.7
    np.testing.assert_array_equal(
        draw_masks(frame, masks, colours_for(3)), draw_masks(frame, masks, colours_for(3), 0.5, OVERLAY_STYLES[0])
    )


@pytest.mark.parametrize("size", [(1, 1), (17, 23), (240, 320), (1100, 700)])
def test_fill_looks_as_in_the_first_version(rng, size):
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    masks = np.stack([rng.random(size) > density for density in (0.3, 0.95, 1)])
    expected = frame.copy()
    outline = 2 * max(1, round(min(size) / 500)) + 1
    for mask, colour in zip(masks, colours_for(3), strict=True):
        expected[mask] = (0.7 * expected[mask] + 0.3 * np.array(colour)).astype(np.uint8)
        edge = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((outline, outline), np.uint8))
        expected[edge > 0] = colour
    assert np.abs(draw_masks(frame, masks, colours_for(3), 0.3).astype(int) - expected).max() <= 1  # rounding


@pytest.mark.parametrize("style", OVERLAY_STYLES)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 200), (200, 1), (48, 32)])
def test_every_style_draws_on_a_copy_of_any_size(rng, style, size):
    frame = rng.integers(0, 256, (*size, 3), np.uint8)
    before = frame.copy()
    drawn = draw_masks(frame, np.ones((2, *size), bool), colours_for(2), style=style)
    np.testing.assert_array_equal(frame, before)
    assert drawn.shape == frame.shape
    assert (drawn != frame).any()  # also a mask of the whole frame shows


def test_a_contour_changes_pixels_near_the_edge_only(rng):
    frame = rng.integers(0, 256, (240, 320, 3), np.uint8)
    drawn = draw_masks(frame, disc(), [(255, 0, 0)], style="contour")
    changed = (drawn != frame).any(axis=2)
    assert changed.any()
    assert not (changed & ~near_edge(disc()[0], 4)).any()
    assert (drawn[near_edge(disc()[0], 1)] == (255, 0, 0)).all()


@pytest.mark.parametrize("background", LIGHT_AND_DARK)
@pytest.mark.parametrize("colour", [*colours_for(12), (0, 0, 0), (255, 255, 255)])
def test_a_contour_of_any_colour_shows_on_any_background(background, colour):
    frame = np.full((240, 320, 3), background, np.uint8)
    drawn = draw_masks(frame, disc(), [colour], style="contour")
    assert np.abs(drawn.astype(int) - background).max() > 70


def test_a_spotlight_keeps_what_is_inside_and_darkens_the_rest(rng):
    frame = rng.integers(0, 256, (240, 320, 3), np.uint8)
    masks = np.concatenate([disc(radius=60), np.roll(disc(radius=30), 100, axis=2)])
    drawn = draw_masks(frame, masks, colours_for(2), opacity=0.75, style="spotlight")
    edges = near_edge(masks[0], 5) | near_edge(masks[1], 5)
    inside = masks.any(axis=0)
    np.testing.assert_array_equal(drawn[inside & ~edges], frame[inside & ~edges])
    assert np.abs(drawn[~inside & ~edges] - 0.25 * frame[~inside & ~edges]).max() < 1
    assert (drawn[near_edge(masks[0], 1) & ~near_edge(masks[1], 5)] == colours_for(2)[0]).all()


@pytest.mark.parametrize("style", ["contour", "spotlight"])
def test_at_opacity_0_a_spotlight_is_a_contour_and_an_empty_mask_changes_nothing(rng, style):
    frame = rng.integers(0, 256, (60, 80, 3), np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    np.testing.assert_array_equal(draw_masks(frame, masks, colours_for(2), 0, style), frame)
    masks[0, 20:40, 20:60] = True
    contour = draw_masks(frame, masks, colours_for(2), 0, "contour")
    np.testing.assert_array_equal(draw_masks(frame, masks, colours_for(2), 0, style), contour)


def test_a_spotlight_on_nothing_darkens_the_whole_frame(rng):
    frame = rng.integers(0, 256, (60, 80, 3), np.uint8)
    drawn = draw_masks(frame, np.zeros((1, 60, 80), bool), colours_for(1), 1.0, "spotlight")
    assert not drawn.any()


def shapes(size):
    """Masks from empty to ragged."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.normal(size=(size[0] // 8, size[1] // 8)), size[::-1], interpolation=cv2.INTER_CUBIC)
    disc = np.hypot(rows - size[0] / 2, columns - size[1] / 3)
    yield np.zeros(size, bool)
    yield np.ones(size, bool)
    yield disc < size[0] / 4
    yield disc + 20 * noise < size[0] / 3
    yield noise > 0.5


@pytest.mark.parametrize("size", [(64, 96), (241, 417), (720, 1280)])
def test_no_mask_file_is_larger_than_that_of_the_original(tmp_path, size):
    for mask in shapes(size):
        write_mask(tmp_path / "ours.png", mask)
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(tmp_path / "pillow.png")
        assert (tmp_path / "ours.png").stat().st_size <= (tmp_path / "pillow.png").stat().st_size
