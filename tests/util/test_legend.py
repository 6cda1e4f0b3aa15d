"""The legend: how large it is, where it lies and what it leaves out."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from util import legend as legend_module
from util.colours import colours_for
from util.flags import LEGEND_PLACES
from util.fonts import default_font, load_font
from util.legend import Legend

SIZES = [(1, 1), (16, 16), (32, 48), (1, 200), (200, 1), (96, 128), (37, 3001), (3000, 60), (240, 416), (480, 832)]
LARGE = [(1080, 1920), (2160, 3840), (3840, 2160)]
LONG = "the man who stands on the left of the blue car"


def drawn_on(legend, size, value=200):
    frame = np.full((*size, 3), value, np.uint8)
    legend.draw(frame)
    return frame


def texts_of(monkeypatch, prompts, *size):
    """The rows that a legend draws."""
    rows = []
    draw = legend_module.Writer.draw
    monkeypatch.setattr(
        legend_module.Writer,
        "draw",
        lambda self, line, *args, **kwargs: (rows.append(line), draw(self, line, *args, **kwargs)),
    )
    Legend(prompts, colours_for(len(prompts)), *size)
    return rows


# How large it is


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES + LARGE)
@pytest.mark.parametrize("num_prompts", [1, 2, 4, 12, 50])
@pytest.mark.parametrize("text", ["dog", LONG, "the dog, der Hund, le chien, כלב"])
def test_it_changes_at_most_a_tenth_of_a_frame(size, num_prompts, text):
    for place in LEGEND_PLACES:
        frame = drawn_on(Legend([text] * num_prompts, colours_for(num_prompts), *size, place=place), size)
        assert 10 * (frame != 200).any(axis=2).sum() <= size[0] * size[1]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 50), st.floats(0.1, 10), st.sampled_from(LEGEND_PLACES))
def test_it_does_so_at_every_size_and_shape_of_pixels(height, width, num_prompts, pixel_aspect, place):
    texts = [f"prompt {number}" * (number % 4) for number in range(num_prompts)]
    legend = Legend(texts, colours_for(num_prompts), height, width, place, pixel_aspect)
    frame = drawn_on(legend, (height, width))
    assert 10 * (frame != 200).any(axis=2).sum() <= height * width
    assert 10 * legend.panel.shape[0] * legend.panel.shape[1] <= height * width


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (32, 48)])
def test_where_not_even_one_row_fits_nothing_is_drawn(size):
    assert (drawn_on(Legend([LONG] * 3, colours_for(3), *size), size) == 200).all()


@pytest.mark.parametrize("size", [(120, 160), (240, 416), (480, 832), (60, 3000), (3000, 60), *LARGE])
@pytest.mark.parametrize("num_prompts", [1, 4, 50])
def test_a_frame_of_some_size_has_a_legend(size, num_prompts):
    assert Legend([LONG] * num_prompts, colours_for(num_prompts), *size).panel.any()


# How it looks


@pytest.mark.parametrize(("size", "font_size"), [((240, 416), 10), ((480, 832), 20), ((1080, 1920), 45)])
@pytest.mark.parametrize("prompts", [["dog"], ["the red car", "a man in black"], ["cat"] * 4])
def test_a_few_short_prompts_look_as_in_the_first_version(size, font_size, prompts):
    font = (
        ImageFont.truetype(default_font(), font_size)
        if default_font().exists()
        else load_font(default_font(), font_size)[0]
    )
    line = round(1.5 * font_size)
    width = round(max(font.getlength(text) for text in prompts)) + 2 * line
    expected = Image.new("RGB", (width, line * len(prompts) + font_size // 2))
    draw = ImageDraw.Draw(expected)
    for row, (text, colour) in enumerate(zip(prompts, colours_for(len(prompts)), strict=True)):
        top = font_size // 2 + row * line
        draw.rectangle((font_size // 2, top, font_size // 2 + font_size, top + font_size), fill=colour)
        draw.text((2 * font_size, top + font_size // 2), text, font=font, fill=(255, 255, 255), anchor="lm")
    np.testing.assert_array_equal(Legend(prompts, colours_for(len(prompts)), *size).panel, np.asarray(expected))


def test_letters_are_drawn_over_a_dimmed_frame_and_colours_over_all_of_it():
    colours = [(0, 0, 128), (255, 0, 0)]
    legend = Legend(["one", "two"], colours, 480, 832)
    corner = drawn_on(legend, (480, 832), 255)[: legend.panel.shape[0], : legend.panel.shape[1]].reshape(-1, 3)
    values = {tuple(map(int, pixel)) for pixel in corner}
    assert {(85, 85, 85), (255, 255, 255), *colours} <= values


def test_a_black_prompt_has_a_rim():
    black, red = (Legend(["dog"], [colour], 480, 832).panel[:, :30] for colour in ((0, 0, 0), (255, 0, 0)))
    assert (black == 150).all(axis=2).any()
    assert not (red == 150).all(axis=2).any()


@pytest.mark.parametrize("num_prompts", [1, 7])
def test_it_shows_every_colour(num_prompts):
    colours = colours_for(num_prompts)
    panel = Legend(["dog"] * num_prompts, colours, 480, 832).panel.reshape(-1, 3)
    assert all((panel == colour).all(axis=1).any() for colour in colours)


@pytest.mark.parametrize("size", [(96, 128), (240, 416), (720, 1280)])
def test_a_long_prompt_is_cut_to_the_width_of_the_frame(size):
    panel = Legend(["the dog that " * 50], colours_for(1), *size).panel
    assert panel.shape[1] <= size[1]
    assert panel[:, : panel.shape[1] // 2].any()
    assert not panel[:, -1].any()  # a margin: no letter was cut through


def test_a_short_prompt_takes_less_room_than_a_long_one():
    short, long = (Legend([text], colours_for(1), 480, 832).panel.shape[1] for text in ("dog", "dog on the left"))
    assert short < long < 832


# What it leaves out


def test_texts_are_shortened_before_rows_are_left_out(monkeypatch):
    rows = texts_of(monkeypatch, [LONG] * 12, 480, 832)
    assert len(rows) == 12
    assert all(row.endswith("…") and LONG.startswith(row[:-1]) for row in rows)


def test_the_last_rows_are_counted_if_they_are_left_out(monkeypatch):
    rows = texts_of(monkeypatch, [LONG] * 50, 480, 832)
    assert rows[-1] == f"+{50 - len(rows) + 1} more"
    assert len(rows) > 5


def test_a_single_row_says_how_many_more_there_are(monkeypatch):
    assert [row[-8:] for row in texts_of(monkeypatch, [LONG] * 3, 120, 160)] == [" +2 more"]


# Where it lies


def test_it_changes_its_corner_only():
    noise = np.random.default_rng(0).integers(100, 256, (240, 416, 3), np.uint8)
    for place, corner in (("top", slice(0, None)), ("bottom", slice(-1, None))):
        legend = Legend(["the dog"], colours_for(1), 240, 416, place)
        height, width = legend.panel.shape[:2]
        rows = slice(0, height) if place == "top" else slice(240 - height, 240)
        drawn = noise.copy()
        legend.draw(drawn)
        assert (drawn[corner][0, :width] != noise[corner][0, :width]).any()
        drawn[rows, :width] = noise[rows, :width]
        np.testing.assert_array_equal(drawn, noise)


def test_off_draws_nothing():
    assert (drawn_on(Legend(["dog"], colours_for(1), 480, 832, "off"), (480, 832)) == 200).all()


@pytest.mark.parametrize("pixel_aspect", [0.5, 1.5, 2.0])
def test_wide_pixels_get_a_narrow_panel_so_that_letters_look_right_when_played(pixel_aspect):
    square = Legend(["the dog"], colours_for(1), 480, 832).panel
    panel = Legend(["the dog"], colours_for(1), 480, round(832 / pixel_aspect), pixel_aspect=pixel_aspect).panel
    assert panel.shape[0] == square.shape[0]
    assert abs(panel.shape[1] - square.shape[1] / pixel_aspect) <= 1


# Any text


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=30), min_size=1, max_size=4))
def test_any_text_has_a_legend(texts):
    logging.disable()
    try:
        assert Legend(texts, colours_for(len(texts)), 480, 832).panel.any()
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "text", ["", "two\nlines", "tab\there", "狗 🐕", "…", "\udc80", "\0", "e\u0301" * 90, "👩‍🚀🏽🇩🇪🇩"]
)
def test_odd_texts_have_a_legend(text):
    assert Legend([text], colours_for(1), 240, 416).panel.any()
