"""Video files out of frames, and their sound."""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import CLIPS, HEIGHT, WIDTH, Encoding, grey, index_of, set_edits, write

from util.video import open_frames
from util.video_clock import Clock, make_clock
from util.video_sound import Sound
from util.video_writer import CUTOUT_PRORES, CUTOUT_VP9, H264, MASK_FFV1, MASK_H264, VideoWriter


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
    assert [index_of(frame) for frame in source] == list(range(5))


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


KINDS = [H264, MASK_H264, MASK_FFV1, CUTOUT_PRORES, CUTOUT_VP9]
SHAPES = {"rgb24": (3,), "rgba": (4,), "gray": ()}
UNEVEN = [0, 14, 54, 94, 134, 500, 540, 580, 2000, 2040]


def uneven_clock():
    return make_clock([Fraction(time, 1000) for time in UNEVEN], Fraction(4, 100), Fraction(25), Fraction(3600))


def write_grey(path, kind, clock, num_frames, **how):
    with VideoWriter(path, clock, kind, **how) as writer:
        for index in range(num_frames):
            writer.write(np.full((HEIGHT, WIDTH, *SHAPES[kind.frames]), grey(index), np.uint8))
    return writer


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.codec)
def test_a_variable_rate_stays_as_it_is(tmp_path, kind):
    path = tmp_path / f"out{kind.suffix}"
    write_grey(path, kind, uneven_clock(), len(UNEVEN))
    source = open_frames(path)
    assert len(list(source)) == len(UNEVEN)
    assert [round(1000 * start) for start in source.clock.starts] == UNEVEN
    assert float(source.clock.end) == pytest.approx(2.08, abs=0.002)


@pytest.mark.parametrize("kind", [H264, MASK_H264, CUTOUT_PRORES], ids=lambda kind: kind.codec)
def test_the_shape_of_pixels_is_kept_where_the_container_can(tmp_path, kind):
    path = tmp_path / f"out{kind.suffix}"
    write_grey(path, kind, Fraction(10), 3, pixel_aspect=Fraction(64, 45))
    assert open_frames(path).pixel_aspect == Fraction(64, 45)


def masks(size, num_frames=6):
    """Hard masks: noise of single pixels, stripes of one pixel, a disc that moves."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]]
    for index in range(num_frames):
        yield rng.random(size) < 0.5
        yield (rows + index) % 2 == 0
        yield (rows - size[0] / 2) ** 2 + (columns - 3 * index) ** 2 < (min(size) / 3) ** 2


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1), (91, 160)])
def test_a_mask_video_thresholded_at_128_equals_the_masks(tmp_path, size):
    expected = list(masks(size))
    with VideoWriter(tmp_path / "mask.mp4", Fraction(10), MASK_H264) as writer:
        for mask in expected:
            writer.write(mask.astype(np.uint8) * np.uint8(255))
    with av.open(str(tmp_path / "mask.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
    for frame, mask in zip(open_frames(tmp_path / "mask.mp4"), expected, strict=True):
        assert ((frame[: size[0], : size[1], 0] >= 128) == mask).all()


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (1, 1)])
def test_an_exact_mask_video_holds_the_bytes_of_the_masks(tmp_path, size):
    expected = list(masks(size))
    with VideoWriter(tmp_path / "mask.mkv", Fraction(10), MASK_FFV1) as writer:
        for mask in expected:
            writer.write(mask.astype(np.uint8) * np.uint8(255))
    with av.open(str(tmp_path / "mask.mkv")) as container:
        for frame, mask in zip(container.decode(video=0), expected, strict=True):
            assert frame.format.name == "gray"
            assert (frame.to_ndarray() == mask * 255).all()


def decode_rgba(path):
    with av.open(str(path)) as container:
        name = container.streams.video[0].codec_context.name
        decoder = av.CodecContext.create("libvpx-vp9", "r") if name.endswith("vp9") else None  # FFmpeg's own: no alpha
        for packet in container.demux(video=0):
            frames = packet.decode() if decoder is None else decoder.decode(packet if packet.size else None)
            yield from (frame.to_ndarray(format="rgba") for frame in frames)


@pytest.mark.parametrize("kind", [CUTOUT_PRORES, CUTOUT_VP9], ids=lambda kind: kind.codec)
def test_a_cutout_keeps_transparency_and_colour(tmp_path, kind):
    path = tmp_path / f"out{kind.suffix}"
    frame = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    frame[..., :3] = (200, 120, 40)
    frame[:, WIDTH // 2 :, 3] = 255
    with VideoWriter(path, Fraction(10), kind) as writer:
        for _ in range(3):
            writer.write(frame)
    shown = list(decode_rgba(path))
    assert len(shown) == 3
    for one in shown:
        assert ((one[..., 3] > 128) == (frame[..., 3] > 128)).all()
        assert np.abs(one[:, WIDTH // 2 + 4 :, :3].astype(int) - (200, 120, 40)).max() <= 8


# Sound


def sound_of(path):
    """(codec, first sample, last sample in seconds, loudness) of the sound of a file."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        frames = list(container.decode(stream))
        loudness = max(float(np.abs(frame.to_ndarray().astype(np.float64)).max()) for frame in frames)
        return stream.codec_context.name, frames[0].time, frames[-1].time + frames[-1].samples / stream.rate, loudness


WITH_SOUND = [name for name in CLIPS if " with " in name and "reordered" not in name]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.codec)
@pytest.mark.parametrize("name", WITH_SOUND)
def test_sound_is_kept_in_every_kind_of_video(tmp_path, name, kind):
    source = open_frames(CLIPS[name](tmp_path).path)
    assert len(list(source)) == 20
    out = tmp_path / f"out{kind.suffix}"
    writer = write_grey(out, kind, source.clock, 20, sound=source.sound)
    codec, start, end, loudness = sound_of(out)
    assert "copied" in writer.sound_note or "encoded again" in writer.sound_note
    if "copied" in writer.sound_note:
        assert codec == writer.sound_note.split(",")[0]
    assert abs(start) < 0.1
    assert end == pytest.approx(2.0, abs=0.1)
    assert loudness > 0
    assert len(list(open_frames(out))) == 20


def test_sound_ends_with_the_frames_that_were_asked_for(tmp_path):
    path = write(tmp_path / "clip.mp4", 20, Encoding(sound="aac"))
    source = open_frames(path, max_frames=5)
    assert len(list(source)) == 5
    write_grey(tmp_path / "out.mp4", H264, source.clock, 5, sound=source.sound)
    assert sound_of(tmp_path / "out.mp4")[2] == pytest.approx(0.5, abs=0.05)


def test_sound_starts_with_the_first_frame_where_a_recording_does_not_begin_at_0(tmp_path):
    def later(packet):
        packet.pts += 40
        packet.dts += 40

    path = write(tmp_path / "clip.mkv", 20, Encoding(sound="aac"), change=later)  # the sound is 4 s ahead
    source = open_frames(path)
    assert len(list(source)) == 20
    sound = Sound(path, Fraction(1), None)
    write_grey(tmp_path / "out.mp4", H264, source.clock, 20, sound=sound)
    assert sound_of(tmp_path / "out.mp4")[2] == pytest.approx(1.0, abs=0.1)


def test_sound_that_cannot_be_read_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "broken.mp4").write_bytes(b"no sound")
    writer = write_grey(tmp_path / "out.mp4", H264, Fraction(10), 3, sound=Sound(tmp_path / "broken.mp4"))
    assert "left out" in writer.sound_note
    assert "sound" in caplog.text
    assert len(list(open_frames(tmp_path / "out.mp4"))) == 3


def test_joined_sound_follows_without_a_gap(tmp_path):
    parts = [write(tmp_path / f"part{number}.ts", 20, Encoding(sound="aac")) for number in (0, 1)]
    (tmp_path / "clip.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    source = open_frames(tmp_path / "clip.ts")
    assert len(list(source)) == 40
    write_grey(tmp_path / "out.mp4", H264, source.clock, 40, sound=source.sound)
    assert sound_of(tmp_path / "out.mp4")[2] == pytest.approx(4.0, abs=0.2)


def test_a_regular_clock_gives_a_regular_file(tmp_path):
    rate = Fraction(30000, 1001)
    clock = Clock([Fraction(round(1000 * index / rate), 1000) for index in range(10)], 10 / rate, rate)
    write_grey(tmp_path / "out.mp4", H264, clock, 10)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == rate


def test_sound_that_changes_its_rate_and_channels_is_kept(tmp_path):
    parts = []
    for number, (rate, layout) in enumerate(((48000, "stereo"), (44100, "mono"))):
        path = tmp_path / f"part{number}.ts"
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=10)
            video.width, video.height = WIDTH, HEIGHT
            sound = container.add_stream("mp2", rate=rate)
            sound.codec_context.layout = layout
            for index in range(10):
                frame = av.VideoFrame.from_ndarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8), format="rgb24")
                frame.pts = index
                container.mux(video.encode(frame))
                wave = np.full((1, rate // 10 * (2 if layout == "stereo" else 1)), 1000, np.int16)
                tone = av.AudioFrame.from_ndarray(wave, format="s16", layout=layout)
                tone.sample_rate, tone.pts = rate, rate // 10 * index
                container.mux(sound.encode(tone))
            container.mux(video.encode(None))
            container.mux(sound.encode(None))
        parts.append(path)
    (tmp_path / "clip.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    source = open_frames(tmp_path / "clip.ts")
    assert len(list(source)) == 20
    writer = write_grey(tmp_path / "out.mp4", H264, source.clock, 20, sound=source.sound)
    assert writer.sound_note.startswith("mp2")
    assert sound_of(tmp_path / "out.mp4")[2] == pytest.approx(2.0, abs=0.15)


def test_a_sound_codec_that_is_unknown_is_left_out(tmp_path, caplog):
    path = write(tmp_path / "clip.mkv", 5, Encoding(sound="libopus"))
    path.write_bytes(path.read_bytes().replace(b"A_OPUS", b"A_XXXX"))
    source = open_frames(path)
    assert len(list(source)) == 5
    writer = write_grey(tmp_path / "out.mp4", H264, source.clock, 5, sound=source.sound)
    assert "left out" in writer.sound_note
    assert "sound" in caplog.text


def test_a_pause_of_the_sound_stays_a_pause(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libopus", rate=48000)
        for second in (0, 1, 20, 21):
            tone = av.AudioFrame.from_ndarray(np.zeros((2, 48000), np.float32), format="fltp", layout="stereo")
            tone.sample_rate, tone.pts = 48000, 48000 * second
            container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
    with av.open(str(path)) as container:
        times = [packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.size]
    assert max(times) > 18
    write_grey(tmp_path / "out.mkv", MASK_FFV1, Fraction(1), 22, sound=Sound(path, Fraction(0)))
    assert sound_of(tmp_path / "out.mkv")[2] == pytest.approx(float(max(times)), abs=0.1)


def test_damaged_sound_is_left_out_packet_by_packet_and_told(tmp_path):
    path = write(tmp_path / "clip.mkv", 20, Encoding(sound="flac"))
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    place = data.index(packets[5])
    data[place : place + 40] = 40 * b"\xff"
    path.write_bytes(data)
    writer = write_grey(tmp_path / "out.mp4", H264, Fraction(10), 20, sound=Sound(path, Fraction(0)))
    assert "damaged" in writer.sound_note
    assert sound_of(tmp_path / "out.mp4")[2] == pytest.approx(2.0, abs=0.15)


def test_no_sound_beside_the_frames_is_told(tmp_path):
    path = write(tmp_path / "clip.mp4", 20, Encoding(sound="aac"))
    writer = write_grey(tmp_path / "out.mp4", H264, Fraction(10), 3, sound=Sound(path, Fraction(50)))
    assert "left out" in writer.sound_note


@pytest.mark.parametrize("kind", [H264, CUTOUT_VP9], ids=lambda kind: kind.codec)
def test_sound_that_edits_cut_out_stays_out(tmp_path, kind):
    source = open_frames(CLIPS["two edits and sound"](tmp_path).path)
    assert len(list(source)) == 15
    out = tmp_path / f"out{kind.suffix}"
    write_grey(out, kind, source.clock, 15, sound=source.sound)
    assert sound_of(out)[2] == pytest.approx(1.5, abs=0.06)


def test_damage_in_what_an_edit_skips_is_counted_and_ends_nothing(tmp_path):
    """The muxer reads the first packets while it is built, among them those before the edit."""
    path = write(tmp_path / "clip.mp4", 20, Encoding(options={"x264-params": "bframes=0:keyint=5"}, sound="aac"))
    with av.open(str(path)) as container:
        second = [bytes(packet) for packet in container.demux(audio=0) if packet.size][1]
    data = path.read_bytes()
    path.write_bytes(data.replace(second, b"\xff" * len(second), 1))
    set_edits(path, [(500, 2000)])
    source = open_frames(path)
    assert len(list(source)) == 15
    writer = write_grey(tmp_path / "out.webm", CUTOUT_VP9, source.clock, 15, sound=source.sound)
    assert writer.sound_note.startswith("aac, encoded again")
    assert sound_of(tmp_path / "out.webm")[2] == pytest.approx(1.5, abs=0.06)
