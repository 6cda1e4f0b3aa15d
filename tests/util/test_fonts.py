"""Fonts by script: which is taken, what stands for characters without one, and the order of a line."""

import logging
import os
import random

import numpy as np
import pytest

from util import fonts, text_lines
from util.bidi import visual_runs
from util.colours import colours_for
from util.fonts import BUNDLED, font_folders, fonts_for
from util.legend import Legend
from util.text_lines import Panel, Writer
from util.unicode_scripts import script_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only font folder, at first empty; the default font is the one that comes with Pillow."""
    monkeypatch.setattr(fonts, "font_folders", lambda: (tmp_path,))
    monkeypatch.setattr(fonts, "DEFAULT_FONTS", ())
    fonts.default_font.cache_clear()
    yield tmp_path
    fonts.default_font.cache_clear()


@pytest.fixture
def draws(folder, monkeypatch):
    """Makes font files, and says which characters they draw."""
    characters = {}
    monkeypatch.setattr(
        fonts, "_draws_character", lambda file, char: char.isascii() or char in characters.get(file.name, "")
    )

    def make(**files):
        for name, drawn in files.items():
            characters[f"{name.replace('_', '-')}.ttf"] = drawn
            (folder / f"{name.replace('_', '-')}.ttf").write_bytes(b"")

    return make


def names(found):
    return {cluster: file.stem for cluster, file in found.items()}


def drawn_as(text):
    panel = Panel(400, 40)
    writer = Writer([text])
    writer.draw(writer.lines[0], 20, panel, left=0, middle=20)
    return np.asarray(panel.image)


# Which font


def test_the_default_font_is_taken_without_a_look_at_the_folders(folder, monkeypatch):
    monkeypatch.setattr(fonts, "font_folders", lambda: pytest.fail("looked"))
    assert set(fonts_for("the dog…").values()) == {BUNDLED}


def test_the_usual_font_of_a_script_comes_first_then_any_and_odd_styles_last(draws):
    draws(A_Bold="กд", B="กд", NotoSansThai_Regular="ก", C="狗")
    assert names(fonts_for("กд狗")) == {"ก": "NotoSansThai-Regular", "д": "B", "狗": "C"}


def test_an_odd_style_is_better_than_none(draws):
    draws(A_Bold="狗")
    assert names(fonts_for("狗")) == {"狗": "A-Bold"}


def test_characters_that_no_font_has_are_left_out(draws):
    draws(A="狗")
    assert names(fonts_for("狗ก")) == {"狗": "A"}


def test_a_character_needs_a_font_that_has_its_marks_too(draws):
    draws(A="น", B="น\u0e49")
    assert names(fonts_for(["น\u0e49"])) == {"น\u0e49": "B"}


def test_an_emoji_is_taken_from_a_font_in_colour_even_if_the_default_has_it(draws, monkeypatch):
    draws(NotoColorEmoji="🐕❤")
    monkeypatch.setattr(fonts, "DEFAULT_FONTS", ())
    assert names(fonts_for(["🐕", "❤\ufe0f"])) == dict.fromkeys(["🐕", "❤\ufe0f"], "NotoColorEmoji")


def test_fonts_that_are_damaged_or_draw_boxes_for_everything_are_passed_over(folder):
    (folder / "NotoSansThai-Regular.ttf").write_bytes(b"not a font")
    (folder / "empty.otf").write_bytes(b"")
    (folder / "LastResort.otf").write_bytes(b"")
    assert fonts_for("ก") == {}


def test_the_users_folders_are_searched(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_DATA_DIRS", os.pathsep.join(map(str, (tmp_path / "one", tmp_path / "two"))))
    found = font_folders()
    assert [folder.relative_to(tmp_path).parts for folder in found[:4]] == [
        *((".fonts",), ("data", "fonts"), ("one", "fonts"), ("two", "fonts"))
    ]


def test_a_font_of_the_system_draws_what_pillows_own_lacks(folder, monkeypatch):
    monkeypatch.setattr(fonts, "font_folders", font_folders)
    found = fonts_for("д")
    if not found:
        pytest.skip("this machine has no font with Cyrillic letters")
    assert found["д"] != BUNDLED
    assert (drawn_as("д") != drawn_as("ж")).any()


@pytest.mark.parametrize("text", ["狗", "猫は", "개", "كلب", "כלב", "कुत्ता", "หมา", "🐕", "👩🏽‍🚀", "🇩🇪", "❤\ufe0f"])
def test_text_in_any_script_is_drawn_where_the_system_has_a_font_for_it(text):
    if set(text_lines._clusters(text)) - fonts_for(text_lines._clusters(text)).keys():
        pytest.skip(f"this machine has no font for {script_of(text)}")
    drawn = drawn_as(text)
    assert drawn.any()
    assert Writer([text]).lines == [text]


@pytest.mark.parametrize("text", ["🐕", "❤\ufe0f"])
def test_emoji_have_colours_at_every_size(text):
    if fonts_for([text]).get(text, BUNDLED).stem != "NotoColorEmoji":
        pytest.skip("this machine has no NotoColorEmoji.ttf; apt install fonts-noto-color-emoji")
    for size in (8, 20, 90):
        panel = Panel(4 * size, 2 * size)
        writer = Writer([text])
        writer.draw(text, size, panel, left=0, middle=size)
        drawn = np.asarray(panel.image).astype(int)
        assert (drawn.max(axis=2) - drawn.min(axis=2)).max() > 60
        assert np.asarray(panel.opaque).any()
        assert size < writer.width(text, size) < 1.5 * size


# What stands for characters without a font


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[
            ("狗在左边", "[Chinese]"),
            ("狗在 左边 ok", "[Chinese] ok"),
            ("右の猫は", "[Japanese]"),
            ("왼쪽의 개", "[Korean]"),
        ],
        *[("หมา", "[Thai]"), ("🐕 runs", "[dog] runs"), ("🇩🇪", "[DE]"), ("狗，猫", "[Chinese],[Chinese]")],
        *[("ṻ", "u"), ("kočka", "kocka"), ("ＡＢ", "AB"), ("１2", "12"), ("\udc80", "?"), ("\U000fffff", "?")],
    ],
)
def test_something_readable_is_drawn_instead(folder, text, shown):
    assert Writer([text]).lines == [shown]


def test_one_warning_names_the_scripts_and_the_packages(folder, caplog):
    with caplog.at_level(logging.WARNING):
        Legend(["狗", "猫は", "หมา", "🐕", "the dog"], colours_for(5), 480, 832)
    assert len(caplog.records) == 1
    assert "Chinese, Japanese, Thai, emoji" in caplog.text
    assert "apt install fonts-noto-cjk fonts-noto-color-emoji fonts-noto-core" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_text_that_can_be_drawn_and_a_legend_that_is_off_are_not_warned_of(folder, caplog):
    Legend(["the dog"], colours_for(1), 480, 832)
    Legend(["狗"], colours_for(1), 480, 832, "off")
    assert not caplog.records


# The order of a line


def order(text):
    return [run for run, _, _ in visual_runs(list(text), [0] * len(text))]


def test_text_from_left_to_right_is_one_run():
    assert visual_runs(list("the dog (3.5)"), [0] * 13) == [("the dog (3.5)", 0, False)]
    assert visual_runs([], []) == []


def test_hebrew_in_english_runs_to_the_left_and_numbers_in_it_to_the_right():
    assert order("a אב 3.5 ג b") == ["a ", " ג", "3.5", "אב ", " b"]


def test_english_in_hebrew_stands_where_a_reader_from_the_right_expects_it():
    assert order("אב the dog ג") == [" ג", "the dog", "אב "]
    assert order("אב (3.5)") == [")", "3.5", "אב ("]


def test_runs_end_where_the_font_changes_and_keep_every_character():
    for seed in range(50):
        rng = random.Random(seed)
        text = "".join(rng.choices("ab אבج12. (", k=12))
        keys = [rng.randrange(2) for _ in text]
        runs = visual_runs(list(text), keys)
        assert sorted("".join(run for run, _, _ in runs)) == sorted(text)
        assert all(run in text for run, _, _ in runs)


def test_a_line_from_the_right_is_the_mirror_of_its_parts(folder, monkeypatch):
    monkeypatch.setattr(fonts, "font_folders", font_folders)
    if fonts_for("אב").keys() != set("אב"):
        pytest.skip("this machine has no font with Hebrew letters")
    first = drawn_as("א")
    width = np.flatnonzero(first.any(axis=(0, 2)))[-1]
    both = drawn_as("בא")
    assert (both[:, :width] == first[:, :width]).mean() > 0.98  # the last letter stands at the left


@pytest.mark.parametrize("text", ["שלום dog", "كلب 3", "👩🏽‍🚀 ok", "❤\ufe0f"])
def test_a_pillow_that_shapes_no_letters_still_draws(monkeypatch, text):
    fonts.load_font.cache_clear()
    monkeypatch.setattr(fonts.features, "check", lambda name: False)
    try:
        assert drawn_as(text).any()
    finally:
        fonts.load_font.cache_clear()


# Shortened lines


def test_a_shortened_line_fits_and_one_more_character_would_not():
    writer = Writer(["the man on the left of the car"])
    for room in range(30, 250, 7):
        line = writer.shortened(writer.lines[0], 20, room)
        assert writer.width(line, 20) <= room
        kept = len(line) - 1
        longer = writer.lines[0][: kept + 2]
        assert line == writer.lines[0] or writer.width(longer + "…", 20) > room


def test_at_the_least_the_ellipsis_is_left():
    assert Writer(["dog"]).shortened("dog", 20, -5) == "…"
