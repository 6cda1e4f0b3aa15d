"""Frames from video files; clips.py has more kinds of them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import refusal
from PIL import Image

from util.errors import UserError
from util.video import open_frames
from util.video_writer import VideoWriter

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
    assert source.num_frames == len(list(source))


def test_max_frames_counts_after_sampling(tmp_path):
    source = open_frames(str(write_clip(tmp_path / "clip.mp4")), fps=5, max_frames=3)
    assert source.num_frames in (3, None)
    sampled = indices_of(source)
    assert len(sampled) == 3
    assert sampled[2] in (3, 4)


def test_names_come_from_the_file_and_the_place_in_it(tmp_path):
    source = open_frames(str(write_clip(tmp_path / "my.clip.mp4", num_frames=1)))
    assert (source.frame_name(0), source.frame_name(123456)) == ("00000", "123456")


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


def test_a_file_of_variable_rate_is_put_on_a_grid(tmp_path):
    stamps = [0, 100, 200, 600, 700, 800]
    path = write_clip(tmp_path / "clip.mkv", num_frames=6, stamps=stamps)
    assert indices_of(open_frames(str(path), fps=10)) == [0, 1, 2, 2, 2, 2, 3, 4, 5]


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


@pytest.mark.parametrize("fps", [None, 5, 10, 24])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_advice_for_a_truncated_file_works(tmp_path, suffix, fps):
    path = cut(write_clip(tmp_path / f"clip.{suffix}", num_frames=60, faststart=True), 0.7)
    advised = int(refusal(path, fps=fps).rpartition("--max_frames ")[2])
    assert advised > 0
    assert len(list(open_frames(str(path), fps=fps, max_frames=advised))) == advised


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
