"""Colours of prompts: our own list, and those that a user gives."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from util.colours import colours_for, parse_colour

CHANNEL = st.integers(0, 255)
COLOUR = st.tuples(CHANNEL, CHANNEL, CHANNEL)


@pytest.mark.parametrize("num_prompts", range(1, 51))
def test_every_prompt_has_a_colour_of_its_own(num_prompts):
    colours = colours_for(num_prompts)
    assert len(colours) == len(set(colours)) == num_prompts
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


def test_a_prompt_keeps_its_colour_when_more_are_added():
    assert all(colours_for(num_prompts) == colours_for(50)[:num_prompts] for num_prompts in range(1, 50))


@given(st.lists(COLOUR, unique=True, max_size=8), st.integers(1, 50))
def test_given_colours_come_first_and_all_are_different(colours, num_prompts):
    chosen = colours_for(num_prompts, colours)
    assert chosen[: len(colours)] == colours[:num_prompts]
    assert len(chosen) == len(set(chosen)) == num_prompts


def test_our_own_colours_that_look_like_a_given_one_come_last():
    orange, blue = colours_for(2)
    chosen = colours_for(5, [(255, 165, 0)])
    assert chosen[:2] == [(255, 165, 0), blue]
    assert orange not in chosen


@given(COLOUR)
def test_a_colour_in_six_digits_is_itself(colour):
    text = "#{:02x}{:02x}{:02x}".format(*colour)
    assert parse_colour(text) == parse_colour(text.upper()) == colour


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        *[("red", (255, 0, 0)), (" Gold ", (255, 215, 0)), ("cyan", (0, 255, 255)), ("orange", (255, 165, 0))],
        *[("#f80", (255, 136, 0)), ("GREY", (128, 128, 128)), ("gray", (128, 128, 128))],
    ],
)
def test_names_and_three_digits_are_read(text, colour):
    assert parse_colour(text) == colour
    assert parse_colour(text) == colour  # Pillow keeps a name that it has read in another form


@pytest.mark.parametrize(
    "text", ["", "#", "#ff", "#ffff", "#ffffffff", "#gggggg", "ff0000", "rgb(1,2,3)", "reddd", "①"]
)
def test_another_colour_is_an_argparse_error_that_says_what_is_accepted(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"name such as red.*#rgb.*#rrggbb.*got") as error:
        parse_colour(text)
    assert f"'{text}'" in str(error.value)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(argparse.ArgumentTypeError, match="did you mean 'orange'"):
        parse_colour("ornage")
