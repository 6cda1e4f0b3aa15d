"""Every kind of clip in ``clips.py``: each decoded frame once, in order, at its time, upright."""

import logging
from fractions import Fraction

import numpy as np
import pytest
from clips import (
    CLIPS,
    ORIENTATIONS,
    Encoding,
    all_kinds,
    bright_corner,
    count_frames,
    index_of,
    write,
    write_matroska,
    write_oriented,
)
from PIL import Image

from util.errors import UserError
from util.video import open_frames


@pytest.mark.parametrize("name", all_kinds())
def test_every_decoded_frame_comes_once_in_order_at_its_time(tmp_path, caplog, name):
    clip = CLIPS[name](tmp_path)
    source = open_frames(clip.path)
    with caplog.at_level(logging.WARNING):
        frames = [index_of(frame) for frame in source]
    assert len(frames) == count_frames(clip.path)
    assert frames == clip.frames
    assert len(source.clock.starts) == len(frames)
    times = [round(1000 * start) for start in source.clock.starts]
    if clip.times is not None:
        assert times == pytest.approx(clip.times, abs=1)
    if clip.duration is not None:
        assert float(source.clock.end) == pytest.approx(clip.duration, abs=0.05)
    assert bool(caplog.records) == clip.warns
    assert (source.sound is not None) == clip.has_sound
    assert source.source_frames == list(range(len(frames)))
    assert [index_of(frame) for frame in source] == clip.frames  # a second time


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["mp4", "mov", "jpg", "png"])
def test_frames_are_turned_and_mirrored_as_the_file_says(tmp_path, suffix, orientation):
    frames = list(open_frames(write_oriented(tmp_path, suffix, orientation)))
    assert {bright_corner(frame) for frame in frames} == {ORIENTATIONS[orientation][1]}
    height, width = frames[0].shape[:2]
    assert (height > width) == (orientation >= 5)


@pytest.mark.parametrize("share", [0.4, 0.7])
@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "transport stream", "mp4 with AAC", "mkv from 4 s on"])
def test_a_clip_that_is_cut_is_refused(tmp_path, name, share):
    path = CLIPS[name](tmp_path).path
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="truncated"):
        list(open_frames(path))


@pytest.mark.parametrize("max_frames", [1, 7, 25])
@pytest.mark.parametrize("name", ["mp4", "jitter of a phone", "avi with reordered frames", "clock restarts"])
def test_max_frames_gives_the_first_frames_and_their_times(tmp_path, name, max_frames):
    clip = CLIPS[name](tmp_path)
    source = open_frames(clip.path, max_frames=max_frames)
    assert [index_of(frame) for frame in source] == clip.frames[:max_frames]
    times = [round(1000 * start) for start in source.clock.starts]
    assert times == pytest.approx(clip.times[:max_frames], abs=1)


def expected_samples(times, fps, count):
    """The frame whose time is nearest, the later one of two; each is held until the next one's turn."""
    slots = np.arange(count) / fps
    turns = np.floor(np.array(times) / 1000 * fps + 0.5) / fps
    return [int(np.flatnonzero(turns <= slot + 1e-9)[-1]) for slot in slots]


@pytest.mark.parametrize("fps", [2, 10, 24])
@pytest.mark.parametrize(
    "name", ["mp4", "variable rate mkv", "jitter of a phone", "clock restarts", "clock jumps a day"]
)
def test_fps_samples_by_time_and_says_which_frame_each_is(tmp_path, name, fps):
    clip = CLIPS[name](tmp_path)
    source = open_frames(clip.path, fps=fps)
    frames = [index_of(frame) for frame in source]
    assert frames == expected_samples(clip.times, fps, len(frames))
    assert source.source_frames == frames
    assert [round(1000 * time) for time in source.source_times] == pytest.approx([clip.times[k] for k in frames], abs=1)
    assert source.clock.rate == fps
    assert len(frames) / fps == pytest.approx(float(source.clock.end))
    assert len(frames) / fps == pytest.approx(
        (clip.times[-1] + clip.times[-1] / len(clip.times)) / 1000, abs=1 / fps + 0.2
    )


@pytest.mark.parametrize("max_frames", [1, 5, 12])
def test_fps_with_max_frames_gives_the_first_samples(tmp_path, max_frames):
    path = CLIPS["variable rate mkv"](tmp_path).path
    whole = open_frames(path, fps=10).source_frames
    part = open_frames(path, fps=10, max_frames=max_frames)
    assert part.source_frames == whole[:max_frames]
    assert len(list(part)) == max_frames


@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(9, 16)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_shape_of_pixels_is_that_of_the_upright_frame(tmp_path, aspect, orientation):
    path = write_oriented(tmp_path, "mp4", orientation, aspect)
    assert open_frames(path).pixel_aspect == (1 / aspect if orientation == 6 else aspect)


@pytest.mark.parametrize("fps", [24, 10, 3])
@pytest.mark.parametrize("max_frames", [1, 2, 9, 30])
def test_fps_above_the_rate_of_the_file_gives_as_many_frames_as_asked_for(tmp_path, fps, max_frames):
    path = write(tmp_path / "clip.mkv", 12, Encoding(rate=Fraction(1), options={"x264-params": "bframes=0"}))
    assert len(list(open_frames(path, fps=fps, max_frames=max_frames))) == max_frames


def test_a_hundredth_that_is_missing_is_a_warning(tmp_path, caplog):
    times = [10_000 * index for index in range(20)]  # the last of them ends at 190.1 s
    path = write_matroska(tmp_path / "clip.mkv", times, 191_000.0)
    assert len(list(open_frames(path))) == 20
    assert "may be truncated" in caplog.text
    path = write_matroska(tmp_path / "clip.mkv", times, 194_000.0)
    with pytest.raises(UserError, match="truncated"):
        list(open_frames(path))


def test_what_cannot_be_decoded_names_the_codec_as_a_cause(tmp_path):
    path = write(tmp_path / "clip.mkv", 3)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX"))
    with pytest.raises(UserError, match="codec"):
        list(open_frames(path))
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(UserError, match="animated WebP"):
        open_frames(tmp_path / "a.webp")
