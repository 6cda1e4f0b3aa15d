"""Folders of images, and single images, as frames."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from clips import refusal
from PIL import Image

from util.errors import UserError
from util.frames import result_name
from util.video import open_frames


def picture(level, size=(12, 16)):
    return Image.fromarray(np.full((*size, 3), level, np.uint8))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "frames"
    path.mkdir()
    return path


def levels_of(source):
    return [round(float(frame.mean()) / 10) for frame in source]


def test_images_of_all_kinds_come_in_natural_order(folder):
    names = ["frame1.jpg", "frame2.PNG", "frame10.jpeg", "frame11.bmp", "frame20.webp"]
    for place, name in reversed(list(enumerate(names))):
        picture(10 * place).save(folder / name)
    (folder / "notes.txt").write_text("passed over")
    (folder / "frame3.jpg").mkdir()
    source = open_frames(str(folder))
    assert levels_of(source) == [0, 1, 2, 3, 4]
    assert levels_of(source) == [0, 1, 2, 3, 4]  # a second time
    assert [source.frame_name(index) for index in range(5)] == ["frame1", "frame2", "frame10", "frame11", "frame20"]
    assert (source.num_frames, source.fps, result_name(source.path)) == (5, 24, "frames")


@pytest.mark.parametrize("end", ["/", "//", "/.", "/../frames/"])
def test_a_trailing_slash_does_not_change_the_name(folder, end):
    picture(50).save(folder / "a.png")
    source = open_frames(f"{folder}{end}")
    assert result_name(source.path) == "frames"
    assert levels_of(source) == [5]


def test_a_folder_with_a_dot_in_its_name_keeps_it(tmp_path):
    (tmp_path / "take.1").mkdir()
    picture(50).save(tmp_path / "take.1" / "a.png")
    assert result_name(tmp_path / "take.1") == "take.1"


def test_fps_of_a_folder_keeps_every_image(folder):
    for place in range(4):
        picture(10 * place).save(folder / f"{place}.png")
    source = open_frames(str(folder), fps=7)
    assert source.fps == 7
    assert levels_of(source) == [0, 1, 2, 3]


def test_max_frames_of_a_folder_keeps_the_first_images(folder):
    for place in range(12):
        picture(10 * place).save(folder / f"{place}.png")
    source = open_frames(str(folder), max_frames=3)
    assert source.num_frames == 3
    assert levels_of(source) == [0, 1, 2]


SIXTEEN_BITS = (np.arange(12 * 16).reshape(12, 16) * 340).astype(np.uint16)


def with_alpha():
    pixels = np.full((12, 16, 4), 200, np.uint8)
    pixels[..., 3] = 0  # fully transparent: its colour counts all the same
    return Image.fromarray(pixels, "RGBA")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (picture(77).convert("L"), np.full((12, 16), 77)),
        (picture(77).convert("LA"), np.full((12, 16), 77)),
        (picture(255).convert("1"), np.full((12, 16), 255)),
        (picture(77).convert("P"), np.full((12, 16), 77)),
        (with_alpha(), np.full((12, 16), 200)),
        (Image.fromarray(SIXTEEN_BITS), SIXTEEN_BITS >> 8),
    ],
    ids=["grey", "grey and alpha", "one bit", "palette", "alpha", "16 bits of grey"],
)
def test_every_mode_becomes_8_bit_rgb(folder, image, expected):
    image.save(folder / "a.png")
    (frame,) = open_frames(str(folder))
    assert (frame.shape, frame.dtype) == ((12, 16, 3), np.uint8)
    # The web palette has steps of 51, of which Pillow takes the nearest.
    tolerance = 26 if image.mode == "P" else 0
    assert np.abs(frame.astype(int) - expected[..., None]).max() <= tolerance


def test_a_palette_keeps_its_colours(folder):
    image = Image.new("P", (16, 12), 1)
    image.putpalette([0, 0, 0, 10, 120, 230])
    image.save(folder / "a.png")
    (frame,) = open_frames(str(folder))
    assert (frame == (10, 120, 230)).all()


def test_two_images_of_one_stem_are_refused(folder):
    picture(1).save(folder / "a.png")
    picture(1).save(folder / "a.jpg")
    message = refusal(folder)
    assert "a.png" in message
    assert "a.jpg" in message


def test_images_of_different_sizes_are_refused(folder):
    picture(1).save(folder / "a.png")
    picture(1).save(folder / "b.png")
    picture(1, size=(12, 18)).save(folder / "c.png")
    message = refusal(folder)
    assert "c.png" in message
    assert "18 x 12" in message
    assert "16 x 12" in message


def refusal_of_image(folder):
    with pytest.raises(UserError) as caught:
        list(open_frames(str(folder)))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_a_damaged_image_in_the_middle_is_named(folder, suffix, damage):
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for place in range(3):
        Image.fromarray(noise).save(folder / f"{place}.{suffix}")
    path = folder / f"1.{suffix}"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"no image", "empty": b""}[damage])
    assert str(path) in refusal_of_image(folder)


def test_an_image_that_announces_too_many_pixels_is_named(folder):

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(content)
    assert str(folder / "a.png") in refusal_of_image(folder)


def test_an_empty_folder_is_refused(folder):
    assert "no images" in refusal(folder)
    (folder / "notes.txt").write_text("no image either")
    assert "no images" in refusal(folder)


def test_dot_files_that_macos_leaves_are_passed_over(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"no image")
    assert len(list(open_frames(str(tmp_path)))) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("clip.mp4", "clip"), ("my.clip.mp4", "my.clip"), (".mp4", ".mp4"), ("a..mp4", "a."), ("...a.mp4", "...a")],
)
def test_results_are_called_by_the_stem(name, expected):
    assert result_name(Path(name)) == expected


@pytest.mark.parametrize("name", ["...mp4", "..mp4"])
def test_a_name_that_would_lead_out_of_the_folder_of_results_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="rename"):
        result_name(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_a_single_image_is_one_frame(tmp_path, suffix):
    picture(50).save(tmp_path / f"a.{suffix}")
    source = open_frames(tmp_path / f"a.{suffix}")
    assert levels_of(source) == [5]
    assert (source.num_frames, source.frame_name(0), len(source.clock.starts)) == (1, "00000", 1)


def test_an_animated_image_is_a_video(tmp_path):
    pictures = [picture(level) for level in (0, 50, 100)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100)
    assert levels_of(open_frames(tmp_path / "a.png")) == [0, 5, 10]
