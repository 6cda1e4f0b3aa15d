"""Masks as files and pictures of results."""

import cv2
import numpy as np
import pytest
from PIL import Image

from util.mask_files import write_mask
from util.visualize import Legend, colours_for, draw_masks


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


# Colours and overlays


@pytest.mark.parametrize("num_prompts", range(1, 31))
def test_every_prompt_has_a_colour_of_its_own(num_prompts):
    colours = colours_for(num_prompts)
    assert len(colours) == len(set(colours)) == num_prompts
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_a_prompt_keeps_its_colour_when_more_are_added():
    assert all(colours_for(num_prompts) == colours_for(30)[:num_prompts] for num_prompts in range(1, 30))


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


# The legend


@pytest.mark.parametrize("size", [(48, 64), (240, 416), (720, 1280)])
def test_a_long_prompt_is_cut_to_the_width_of_the_frame(size):
    panel = Legend(["the dog that " * 50], colours_for(1), *size).panel
    assert panel.shape[1] <= size[1]
    assert panel[:, : panel.shape[1] // 2].any()
    assert not panel[:, -1].any()  # a margin: no letter was cut through


def test_a_short_prompt_takes_less_room_than_a_long_one():
    short, long = (Legend([text], colours_for(1), 480, 832).panel.shape[1] for text in ("dog", "dog on the left"))
    assert short < long < 832


def test_the_legend_shows_every_colour():
    colours = colours_for(7)
    panel = Legend(["dog"] * 7, colours, 480, 832).panel.reshape(-1, 3)
    assert all((panel == colour).all(axis=1).any() for colour in colours)


def test_the_legend_changes_its_corner_only(rng):
    frame = rng.integers(100, 256, (240, 416, 3), np.uint8)
    drawn = frame.copy()
    legend = Legend(["the dog"], colours_for(1), 240, 416)
    legend.draw(drawn)
    height, width = legend.panel.shape[:2]
    assert height < 240
    assert width < 416
    assert (drawn[:height, :width] != frame[:height, :width]).any()
    drawn[:height, :width] = frame[:height, :width]
    np.testing.assert_array_equal(drawn, frame)


@pytest.mark.parametrize("text", ["", "two\nlines", "tab\there", "狗 🐕", "…"])
def test_any_text_has_a_legend(text):
    assert Legend([text], colours_for(1), 240, 416).panel.any()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 200), (200, 1)])
@pytest.mark.parametrize("num_prompts", [1, 12])
def test_tiny_frames_keep_their_size_under_masks_and_legend(size, num_prompts):
    frame = np.full((*size, 3), 90, np.uint8)
    colours = colours_for(num_prompts)
    drawn = draw_masks(frame, np.ones((num_prompts, *size), bool), colours)
    Legend(["the dog on the left"] * num_prompts, colours, *size).draw(drawn)
    assert drawn.shape == frame.shape
    assert (drawn != frame).any()
