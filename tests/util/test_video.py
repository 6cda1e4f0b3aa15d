"""Frames from video files and folders, and H.264 files out of frames."""

import struct
import zlib
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from util.errors import UserError
from util.video import VideoWriter, open_frames, resample

HEIGHT, WIDTH = 32, 48
CONTAINERS = {  # suffix: codec, pixel format, has sound
    "mp4": ("libx264", "yuv420p", True),
    "mov": ("libx264", "yuv420p", True),
    "mkv": ("libx264", "yuv420p", False),
    "webm": ("libvpx", "yuv420p", False),
    "avi": ("mpeg4", "yuv420p", False),
    "gif": ("gif", "rgb8", False),
}
AVAILABLE = [
    pytest.param(suffix, marks=pytest.mark.skipif(codec not in av.codecs_available, reason=f"no {codec}"))
    for suffix, (codec, _, _) in CONTAINERS.items()
]


def grey(index):
    """The grey level that says which frame this is."""
    return 10 + 4 * index


def index_of(frame):
    return round((float(frame.mean()) - 10) / 4)


def indices_of(source):
    return [index_of(frame) for frame in source]


def write_clip(path, num_frames=20, fps=10, faststart=False, size=(HEIGHT, WIDTH), stamps=None):
    """A clip whose frame i is noise about grey(i); with ``stamps``, in milliseconds, of variable rate."""
    codec, pixels, has_sound = CONTAINERS.get(path.suffix[1:], ("libx264", "yuv420p", False))
    flags = {"movflags": "faststart"} if faststart and path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=flags) as container:
        reordered = {"x264-params": "bframes=3:b-adapt=0:scenecut=0"} if codec == "libx264" else {}
        video = container.add_stream(codec, rate=fps, options=reordered)
        video.height, video.width, video.pix_fmt, video.bit_rate = *size, pixels, 10**6
        if stamps:
            video.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=48000) if has_sound else None
        noise = np.random.default_rng(0).integers(-8, 9, (*size, 3))
        for index in range(num_frames):
            picture = (grey(index) + np.roll(noise, 5 * index, axis=1)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if stamps:
                frame.pts, frame.time_base = stamps[index], Fraction(1, 1000)
            container.mux(video.encode(frame))
            if sound is not None:
                length = round(48000 / fps)
                tone = av.AudioFrame.from_ndarray(np.zeros((2, length), np.float32), format="fltp", layout="stereo")
                tone.sample_rate, tone.pts = 48000, length * index
                container.mux(sound.encode(tone))
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def cut(path, share):
    """Keeps the first ``share`` of the bytes of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def refusal(path, **options):
    """The message of the UserError that opening or reading a path ends in; one line that names it."""
    with pytest.raises(UserError) as caught:
        list(open_frames(str(path), **options))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Video files


@pytest.mark.parametrize("suffix", AVAILABLE)
def test_every_frame_comes_once_at_the_rate_of_the_file(tmp_path, suffix):
    source = open_frames(str(write_clip(tmp_path / f"clip.{suffix}")))
    assert source.fps == 10
    assert source.num_frames in (20, None)  # None: the container does not tell
    assert indices_of(source) == list(range(20))
    assert indices_of(source) == list(range(20))  # a second time


def test_the_mp4_of_these_tests_has_reordered_frames_and_sound(tmp_path):
    with av.open(str(write_clip(tmp_path / "clip.mp4"))) as container:
        assert len(container.streams.audio) == 1
        stamps = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stamps != sorted(stamps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25), Fraction(60)])
def test_every_frame_comes_once_at_common_rates(tmp_path, suffix, fps):
    source = open_frames(str(write_clip(tmp_path / f"clip.{suffix}", num_frames=50, fps=fps)))
    assert float(source.fps) == pytest.approx(float(fps), rel=1e-3)  # mkv stores the duration in nanoseconds
    assert indices_of(source) == list(range(50))


def test_every_frame_comes_once_from_a_stream_without_time_stamps(tmp_path):
    assert indices_of(open_frames(str(write_clip(tmp_path / "clip.h264", num_frames=5)))) == list(range(5))


def test_frames_are_rgb_of_the_size_of_the_file(tmp_path):
    frame = next(iter(open_frames(str(write_clip(tmp_path / "clip.mp4", num_frames=2)))))
    assert (frame.shape, frame.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif"])
def test_a_video_of_one_frame_has_one_frame(tmp_path, suffix):
    assert indices_of(open_frames(str(write_clip(tmp_path / f"clip.{suffix}", num_frames=1)))) == [0]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (10, list(range(20))),
        (20, [index for index in range(20) for _ in range(2)]),
        (2, [0, 5, 10, 15]),
    ],
)
def test_fps_samples_the_file_at_another_rate(tmp_path, fps, expected):
    source = open_frames(str(write_clip(tmp_path / "clip.mp4")), fps=fps)
    assert source.fps == fps
    sampled = indices_of(source)
    # Two frames may be as near to a slot as each other; nothing is farther off than half a slot.
    assert max(abs(a - b) for a, b in zip(sampled, expected, strict=False)) <= 10 / fps / 2
    # The last frame may be nearest to the slot behind the end, and is not lost.
    assert len(sampled) - len(expected) in (0, 1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("max_frames", [1, 7, 20, 100])
def test_max_frames_keeps_the_first_frames(tmp_path, suffix, max_frames):
    source = open_frames(str(write_clip(tmp_path / f"clip.{suffix}")), max_frames=max_frames)
    assert indices_of(source) == list(range(20))[:max_frames]
    assert source.num_frames in (min(20, max_frames), None)


@pytest.mark.parametrize("fps", [None, 20, 5, 2])
def test_num_frames_is_how_many_frames_come(tmp_path, fps):
    source = open_frames(str(write_clip(tmp_path / "clip.mp4")), fps=fps)
    assert source.num_frames in (None, len(list(source)))


def test_max_frames_counts_after_sampling(tmp_path):
    source = open_frames(str(write_clip(tmp_path / "clip.mp4")), fps=5, max_frames=3)
    assert source.num_frames in (3, None)
    sampled = indices_of(source)
    assert len(sampled) == 3
    assert sampled[2] in (3, 4)


def test_names_come_from_the_file_and_the_place_in_it(tmp_path):
    source = open_frames(str(write_clip(tmp_path / "my.clip.mp4", num_frames=1)))
    assert (source.name, source.frame_name(0), source.frame_name(123456)) == ("my.clip", "00000", "123456")


# Rotation

ONE, TOP = 1 << 16, 1 << 30  # 1 in 16.16 and in 2.30 fixed point
MATRICES = {  # from stored to shown pixels, with the corner where the top left one ends up
    "as stored": ((ONE, 0, 0, 0, ONE, 0, 0, 0, TOP), "top left"),
    "a quarter clockwise": ((0, ONE, 0, -ONE, 0, 0, 0, 0, TOP), "top right"),
    "upside down": ((-ONE, 0, 0, 0, -ONE, 0, 0, 0, TOP), "bottom right"),
    "a quarter counter-clockwise": ((0, -ONE, 0, ONE, 0, 0, 0, 0, TOP), "bottom left"),
}


def set_matrix(path, matrix):
    """Writes a transformation into the track header of an MP4 file."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", content, start) == MATRICES["as stored"][0]
    struct.pack_into(">9i", content, start, *matrix)
    path.write_bytes(content)


def bright_corner(frame):
    rows, columns = np.nonzero(frame.mean(axis=2) > 128)
    vertical = "top" if rows.mean() < frame.shape[0] / 2 else "bottom"
    return f"{vertical} {'left' if columns.mean() < frame.shape[1] / 2 else 'right'}"


@pytest.mark.parametrize(("matrix", "corner"), MATRICES.values(), ids=MATRICES)
def test_frames_are_turned_as_the_metadata_says(tmp_path, matrix, corner):
    marked = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    marked[:8, :8] = 255
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as writer:
        for _ in range(3):
            writer.write(marked)
    set_matrix(tmp_path / "clip.mp4", matrix)
    frames = list(open_frames(str(tmp_path / "clip.mp4")))
    assert [bright_corner(frame) for frame in frames] == 3 * [corner]
    is_turned = matrix[0] == 0
    assert {frame.shape for frame in frames} == {(WIDTH, HEIGHT, 3) if is_turned else (HEIGHT, WIDTH, 3)}


# What is no video, or not a whole one


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("faststart", [False, True])
def test_a_truncated_mp4_is_refused(tmp_path, faststart, share):
    path = cut(write_clip(tmp_path / "clip.mp4", num_frames=60, faststart=faststart), share)
    assert "truncated" in refusal(path)


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mov"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_truncated_files_of_other_kinds_are_refused(tmp_path, suffix, share):
    assert "truncated" in refusal(cut(write_clip(tmp_path / f"clip.{suffix}", num_frames=60), share))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_advice_for_a_truncated_file_works(tmp_path, suffix):
    path = cut(write_clip(tmp_path / f"clip.{suffix}", num_frames=60, faststart=True), 0.7)
    advised = int(refusal(path).rpartition("--max_frames ")[2])
    assert advised > 0
    assert len(list(open_frames(str(path), max_frames=advised))) == advised


def test_a_file_damaged_in_the_middle_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", num_frames=60, faststart=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 400
    content[start : start + 300] = 300 * b"\xff"
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_a_file_whose_size_changes_on_the_way_gives_no_mixed_frames(tmp_path):

    small = write_clip(tmp_path / "small.h264", num_frames=3)
    large = write_clip(tmp_path / "large.h264", num_frames=3, size=(2 * HEIGHT, 3 * WIDTH))
    path = tmp_path / "clip.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    try:
        sizes = {frame.shape for frame in open_frames(str(path))}
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(sizes) == 1


def test_a_sound_file_has_no_video_stream(tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        tone.sample_rate = 8000
        container.mux(stream.encode(tone))
    assert "no video stream" in refusal(tmp_path / "sound.wav")


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4"])
@pytest.mark.parametrize("content", [b"", b"not a video\n" * 100])
def test_a_text_file_is_no_video(tmp_path, name, content):

    (tmp_path / name).write_bytes(content)
    assert "cannot be read as a video" in refusal(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    assert "--input_path" in refusal(tmp_path / "absent.mp4")


# Sampling on a grid in time


class Still:
    """Stands for a decoded frame."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"Still({self.name})"


def sampled_names(times, fps, end=None):
    """Names (places) of the frames that ``resample`` gives for start times in seconds."""
    ends = [*times[1:], end if end is not None else times[-1] + 1 / Fraction(fps)]
    timed = [(Fraction(a), Fraction(b - a), Still(place)) for place, (a, b) in enumerate(zip(times, ends, strict=True))]
    return [still.name for still in resample(timed, Fraction(fps))]


RATES = st.sampled_from([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])


@given(RATES, st.integers(1, 200), st.integers(0, 10**7))
def test_at_its_own_rate_each_frame_passes_once_whatever_the_rounding_to_milliseconds(fps, num_frames, first):
    stamps = [Fraction(round(1000 * (place / fps) + first), 1000) for place in range(num_frames + 1)]
    assert sampled_names(stamps[:-1], fps, end=stamps[-1]) == list(range(num_frames))


@given(RATES, st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=60))
def test_at_its_own_rate_each_frame_passes_once_under_jitter_of_a_fifth(fps, jitter):
    times = [(place + Fraction(shift)) / fps for place, shift in enumerate(jitter)]
    end = len(jitter) / fps
    assert sampled_names(times, fps, end=end) == list(range(len(jitter)))


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8])
def test_half_the_rate_keeps_every_second_frame(num_frames):
    times = [Fraction(place, 10) for place in range(num_frames)]
    sampled = sampled_names(times, 5, end=Fraction(num_frames, 10))
    # The last frame may be nearest to the slot behind the end, and is not lost.
    assert len(sampled) - (num_frames + 1) // 2 in (0, 1)
    assert sampled[-1] == num_frames - 1
    assert all(later - earlier == 2 for earlier, later in pairwise(sampled[:-1]))
    assert sampled == sorted(set(sampled))


@pytest.mark.parametrize("num_frames", [2, 7])
def test_double_the_rate_gives_every_frame_twice(num_frames):
    times = [Fraction(place, 10) for place in range(num_frames)]
    expected = [place for place in range(num_frames) for _ in range(2)]
    assert sampled_names(times, 20, end=Fraction(num_frames, 10)) == expected


@pytest.mark.parametrize("fps", [1, 20, 1000])
def test_a_single_frame_is_a_picture_however_long_it_lasts(fps):
    assert sampled_names([Fraction(0)], fps, end=Fraction(10)) == [0]


def test_a_gif_of_one_frame_gives_one_frame(tmp_path):
    Image.new("RGB", (32, 24), "red").save(tmp_path / "one.gif")
    assert len(list(open_frames(str(tmp_path / "one.gif")))) == 1


def test_a_colon_in_a_name_is_no_protocol(tmp_path, monkeypatch):
    write_clip(tmp_path / "12:30.mp4", num_frames=3)
    monkeypatch.chdir(tmp_path)
    assert len(list(open_frames("12:30.mp4"))) == 3
    with VideoWriter(Path("o2:1.mp4"), Fraction(10)) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
    assert len(list(open_frames("o2:1.mp4"))) == 1


def test_dot_files_that_macos_leaves_are_passed_over(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"no image")
    assert len(list(open_frames(str(tmp_path)))) == 1


def test_a_frame_is_held_until_the_next_one_starts():
    times = [Fraction(0), Fraction(1, 10), Fraction(5, 10), Fraction(6, 10)]
    assert sampled_names(times, 10) == [0, 1, 1, 1, 1, 2, 3]


def test_the_last_frame_is_held_for_its_duration():
    assert sampled_names([Fraction(0), Fraction(1, 10)], 10, end=Fraction(5, 10)) == [0, 1, 1, 1, 1]


def test_of_several_frames_in_one_slot_the_last_stays():
    times = [Fraction(place, 100) for place in (0, 1, 2, 11, 12, 20)]
    assert sampled_names(times, 10) == [2, 4, 5]


def test_the_grid_begins_at_the_first_frame():
    times = [Fraction(place, 10) + 7 for place in range(5)]
    assert sampled_names(times, 10) == list(range(5))


@given(st.lists(st.integers(1, 200), min_size=2, max_size=40), RATES)
def test_sampling_never_goes_back_and_lasts_as_long_as_the_frames(gaps, fps):
    times = [Fraction(sum(gaps[:place]), 1000) for place in range(len(gaps))]
    end = Fraction(sum(gaps), 1000)
    sampled = sampled_names(times, fps, end=end)
    assert sampled == sorted(sampled)
    assert sampled[-1] == len(times) - 1
    # One slot of rounding, and one more where the last frame starts late in the last slot.
    assert abs(len(sampled) - end * fps) <= Fraction(3, 2)


def test_nothing_gives_nothing():
    assert list(resample([], Fraction(10))) == []


def test_a_file_of_variable_rate_is_put_on_a_grid(tmp_path):
    stamps = [0, 100, 200, 600, 700, 800]
    path = write_clip(tmp_path / "clip.mkv", num_frames=6, stamps=stamps)
    assert indices_of(open_frames(str(path), fps=10)) == [0, 1, 2, 2, 2, 2, 3, 4, 5]


# Folders of images


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
    assert (source.num_frames, source.fps, source.name) == (5, 24, "frames")


@pytest.mark.parametrize("end", ["/", "//", "/.", "/../frames/"])
def test_a_trailing_slash_does_not_change_the_name(folder, end):
    picture(50).save(folder / "a.png")
    source = open_frames(f"{folder}{end}")
    assert source.name == "frames"
    assert levels_of(source) == [5]


def test_a_folder_with_a_dot_in_its_name_keeps_it(tmp_path):
    (tmp_path / "take.1").mkdir()
    picture(50).save(tmp_path / "take.1" / "a.png")
    assert open_frames(str(tmp_path / "take.1")).name == "take.1"


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


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "top left"), (2, "top right"), (3, "bottom right"), (6, "top right"), (8, "bottom left")],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_turned_as_their_exif_says(folder, suffix, orientation, corner):
    marked = np.zeros((32, 48, 3), np.uint8)
    marked[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(marked).save(folder / f"a.{suffix}", exif=exif)
    (frame,) = open_frames(str(folder))
    assert bright_corner(frame) == corner
    assert frame.shape == ((48, 32, 3) if orientation in (6, 8) else (32, 48, 3))


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


# Writing


@pytest.mark.parametrize("fps", [Fraction(10), Fraction(30000, 1001), Fraction(25, 2), Fraction(1, 10), Fraction(240)])
def test_a_written_video_is_h264_in_yuv420p_and_keeps_its_rate(tmp_path, fps):
    with VideoWriter(tmp_path / "out.mp4", fps) as writer:
        for index in range(5):
            writer.write(np.full((HEIGHT, WIDTH, 3), grey(index), np.uint8))
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == fps
    source = open_frames(str(tmp_path / "out.mp4"))
    assert source.fps == fps
    assert indices_of(source) == list(range(5))


@pytest.mark.parametrize("size", [(33, 47), (32, 47), (33, 48), (1, 1), (32, 48)])
def test_an_odd_side_grows_by_one_repeated_pixel(tmp_path, size):
    height, width = size
    frame = np.full((height, width, 3), 40, np.uint8)
    frame[:, -1] = 200
    with VideoWriter(tmp_path / "out.mp4", Fraction(10)) as writer:
        writer.write(frame)
    (shown,) = open_frames(str(tmp_path / "out.mp4"))
    assert shown.shape == (height + height % 2, width + width % 2, 3)
    assert abs(int(shown[0, -1, 1]) - 200) < 12  # the border was repeated, not filled with black


def test_colours_survive_writing_within_a_few_levels(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [230, 159, 0]], np.uint8)
    frame = np.repeat(np.repeat(colours[None], 16, axis=1), 32, axis=0)  # six stripes of 16 pixels
    with VideoWriter(tmp_path / "out.mp4", Fraction(10)) as writer:
        writer.write(frame)
    (shown,) = open_frames(str(tmp_path / "out.mp4"))
    middles = shown[16, 8::16].astype(int)
    # Limited-range YUV on 8 bits: a level of Y is 1.16 of RGB, one of chroma up to 2; and some quantisation.
    assert np.abs(middles - colours).max() <= 8


def test_a_clip_with_an_error_on_the_way_can_still_be_closed(tmp_path):
    with pytest.raises(RuntimeError, match="of the caller"):
        with VideoWriter(tmp_path / "out.mp4", Fraction(10)) as writer:
            writer.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            raise RuntimeError("of the caller")
