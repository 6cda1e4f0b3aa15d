"""Clips of the kinds that people have, written here: each frame shows its own number as a grey level.

``CLIPS`` maps a name to a function that writes the clip into a folder and returns what it is, as a ``Clip``.
"""

import struct
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from util.errors import UserError
from util.video import open_frames

HEIGHT, WIDTH = 32, 48
MILLISECOND = Fraction(1, 1000)


def grey(index):
    """The grey level that says which frame this is; 60 of them can be told apart."""
    return 10 + 4 * index


def index_of(frame):
    """The number of a frame; its corners may be marked, its middle is not."""
    height, width = frame.shape[:2]
    middle = frame[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    return int((float(middle.mean()) - 8) / 4)  # from 10 bits, conversion loses up to two levels


def picture(index, size=(HEIGHT, WIDTH)):
    """[H, W, 3] of one grey level, with a white corner at the top left."""
    frame = np.full((*size, 3), grey(index), np.uint8)
    frame[: size[0] // 4, : size[1] // 4] = 255
    return frame


@dataclass(frozen=True)
class Clip:
    """A written clip, and what reading it must give.

    Attributes:
        path: the file.
        frames: numbers of the frames in order of display.
        times: when they are shown, in milliseconds after the first; None if that is not part of the kind.
        duration: seconds; None if that is not part of the kind.
        has_sound: whether the result must have sound.
        warns: whether its times cannot be used as they are.
    """

    path: Path
    frames: list[int]
    times: list[int] | None = None
    duration: float | None = None
    has_sound: bool = False
    warns: bool = False


@dataclass
class Encoding:
    """How ``write`` encodes; the defaults give H.264 with reordered frames at 10 frames per second."""

    codec: str = "libx264"
    pixels: str = "yuv420p"
    rate: Fraction = Fraction(10)
    options: dict[str, str] = field(default_factory=lambda: {"x264-params": "bframes=3:b-adapt=0:scenecut=0"})
    container: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    size: tuple[int, int] = (HEIGHT, WIDTH)
    sound: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    cover: bool = False
    aspect: Fraction | None = None


def write(
    path: Path,
    num_frames: int = 20,
    how: Encoding | None = None,
    times: Sequence[int] | None = None,
    change: Callable[[av.Packet], None] = lambda packet: None,
    first: int = 0,
) -> Path:
    """Writes frames ``first`` to ``first + num_frames - 1``.

    Args:
        times: of each frame in milliseconds; by default regular.
        change: is applied to each packet of the video before it is written.
    """
    how = how or Encoding()
    with av.open(str(path), "w", format=how.format, options=how.container) as container:
        container.metadata.update(how.metadata)
        cover = _add_cover(container) if how.cover else None
        video = container.add_stream(how.codec, rate=how.rate, options=how.options)
        video.height, video.width, video.pix_fmt = *how.size, how.pixels
        video.bit_rate = 10**6
        if how.aspect is not None:
            video.codec_context.sample_aspect_ratio = how.aspect
        tick = MILLISECOND if times is not None else 1 / how.rate
        video.codec_context.time_base = tick
        if how.pixels.endswith("10le"):
            video.codec_context.color_primaries, video.codec_context.color_trc = 9, 16  # BT.2020, PQ
            video.codec_context.colorspace = 9
        sound = container.add_stream(how.sound, rate=48000) if how.sound else None
        if cover is not None:
            art = av.VideoFrame.from_ndarray(picture(50), format="rgb24").reformat(format="yuvj420p")
            container.mux(cover.encode(art))
            container.mux(cover.encode(None))
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(first + index, how.size), format="rgb24")
            frame = frame.reformat(format=how.pixels)
            frame.time_base = tick
            frame.pts = times[index] if times is not None else index
            _mux(container, video.encode(frame), change)
            if sound is not None:
                _mux_tone(container, sound, index, how.rate)
        _mux(container, video.encode(None), change)
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def _add_cover(container):
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
    cover.disposition = Disposition.attached_pic
    return cover


def _mux(container, packets, change):
    for packet in packets:
        change(packet)
        container.mux(packet)


def _mux_tone(container, sound, index, rate):
    length = round(48000 / rate)
    wave = np.sin(np.arange(length * index, length * (index + 1)) / 20).astype(np.float32) / 4
    tone = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
    tone.sample_rate, tone.pts = 48000, length * index
    container.mux(sound.encode(tone))


# -- a small Matroska muxer: any times, which PyAV's refuses -----------------------------------------------------------


def _element(name: int, content: bytes) -> bytes:
    code = name.to_bytes((name.bit_length() + 7) // 8, "big")
    return code + struct.pack(">Q", 1 << 56 | len(content)) + content


def _number(name: int, value: int) -> bytes:
    return _element(name, struct.pack(">Q", value))


def write_matroska(path: Path, times: Sequence[int], duration: float | None = None) -> Path:
    """Writes a Matroska file of JPEG frames with these times in milliseconds, each in a cluster of its own.

    Args:
        duration: milliseconds, as the header states it; by default it states none.
    """
    header = _element(0x1A45DFA3, _element(0x4282, b"matroska") + _number(0x4287, 4) + _number(0x4285, 2))
    video = _element(0xE0, _number(0xB0, WIDTH) + _number(0xBA, HEIGHT))
    track = _element(
        0xAE, _number(0xD7, 1) + _number(0x73C5, 1) + _number(0x83, 1) + _element(0x86, b"V_MJPEG") + video
        + _number(0x23E383, 100_000_000),  # ten frames per second
    )  # fmt: skip
    stated = b"" if duration is None else _element(0x4489, struct.pack(">d", duration))
    info = _element(0x1549A966, _number(0x2AD7B1, 1_000_000) + stated)
    clusters = b""
    for index, time in enumerate(times):
        jpeg = cv2.imencode(".jpg", picture(index))[1].tobytes()
        clusters += _element(0x1F43B675, _number(0xE7, time) + _element(0xA3, b"\x81\x00\x00\x80" + jpeg))
    path.write_bytes(header + _element(0x18538067, info + _element(0x1654AE6B, track) + clusters))
    return path


# -- the kinds ---------------------------------------------------------------------------------------------------------

CLIPS: dict[str, Callable[[Path], Clip]] = {}
# One clip for each thing that went wrong once; the others are tried in slow tests, where a test goes through all.
QUICK = {
    *("mp4", "odd size", "variable rate mkv", "jitter of a phone", "first frame lasts 14 ms", "mkv from 4 s on"),
    *("presentation time equals decode time in mp4", "avi with reordered frames", "two frames of equal time"),
    *("clock restarts", "two programmes one after the other", "joined transport streams", "one frame in webm"),
    *("edit list that skips five frames", "Latin-1 title", "cover art first in mp4", "transport stream with AAC"),
}
FRAMES = list(range(20))


def kind(name: str):
    def add(function):
        CLIPS[name] = function
        return function

    return add


def all_kinds(but: Container[str] = ()) -> list:
    """Returns the names of all clips as parameters of a test; those that are not in ``QUICK`` are marked slow."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CLIPS if name not in but]


def _regular(name: str, suffix: str, **how) -> None:
    @kind(name)
    def clip(folder):
        path = write(folder / f"clip.{suffix}", how=Encoding(**how))
        return Clip(path, FRAMES, [100 * index for index in FRAMES], 2.0, has_sound="sound" in how)


PLAIN = {"options": {}}
_regular("mp4", "mp4")
_regular("mkv", "mkv")
_regular("webm", "webm", codec="libvpx", **PLAIN)
_regular("gif", "gif", codec="gif", pixels="rgb8", **PLAIN)
_regular("avi", "avi", codec="mpeg4", **PLAIN)
_regular("transport stream", "ts")
_regular("mp4 with AAC", "mp4", sound="aac")
_regular("mkv with Opus", "mkv", sound="libopus")
_regular("mkv with PCM", "mkv", sound="pcm_s16le")
_regular("webm with Opus", "webm", codec="libvpx", sound="libopus", **PLAIN)
_regular("transport stream with AAC", "ts", sound="aac")
_regular("mp4 in fragments", "mp4", container={"movflags": "frag_keyframe+empty_moov"})
_regular("10 bits, HDR", "mp4", pixels="yuv420p10le")
_regular("odd size", "mp4", size=(33, 47), pixels="yuv444p")


@kind("interlaced")
def _interlaced(folder):
    how = Encoding("mpeg2video", rate=Fraction(25), options={"flags": "+ilme+ildct"})
    return Clip(write(folder / "clip.mpg", how=how), FRAMES, [40 * index for index in FRAMES], 0.8)


@kind("avi with MP3")
def _avi_mp3(folder):
    # The muxer of AVI, which has no times, fills up with an empty packet: the first frame is held.
    path = write(folder / "clip.avi", how=Encoding("mpeg4", sound="libmp3lame", options={}))
    return Clip(path, FRAMES, [0, *range(200, 2100, 100)], 2.1, has_sound=True)


def _timed(name: str, suffix: str, times: list[int], duration: float, **how) -> None:
    @kind(name)
    def clip(folder):
        path = write(folder / f"clip.{suffix}", len(times), Encoding(**how), times)
        return Clip(path, list(range(len(times))), [time - times[0] for time in times], duration)


SLOW_AND_FAST = [0, 14, 54, 94, 134, 500, 540, 580, 2000, 2040]
JITTER = [round(1000 * index / 30 + shift) for index, shift in enumerate(np.random.default_rng(0).uniform(-14, 14, 50))]
JITTER = [time - JITTER[0] for time in JITTER]
_timed("variable rate mkv", "mkv", SLOW_AND_FAST, 2.14)
_timed("variable rate mp4", "mp4", SLOW_AND_FAST, 2.14)
_timed("jitter of a phone", "mp4", JITTER, JITTER[-1] / 1000, rate=Fraction(30))
_timed("first frame lasts 14 ms", "mp4", [0, *range(14, 14 + 40 * 19, 40)], 0.774, rate=Fraction(25))
_timed("mkv from 4 s on", "mkv", [4000 + 100 * index for index in FRAMES], 2.0)
_timed("webm from 4 s on", "webm", [4000 + 100 * index for index in FRAMES], 2.0, codec="libvpx", **PLAIN)
_timed("mp4 from 4 s on", "mp4", [4000 + 100 * index for index in FRAMES], 2.0)


def _present_when_decoded(packet):
    packet.dts += 20  # from 0 on: an mp4 would cut off what is before
    packet.pts = packet.dts


for suffix in ("mp4", "mkv", "flv"):

    @kind(f"presentation time equals decode time in {suffix}")
    def _pts_is_dts(folder, suffix=suffix):
        path = write(folder / f"clip.{suffix}", 40, change=_present_when_decoded)
        return Clip(path, list(range(40)), [100 * index for index in range(40)], 4.0, warns=True)


@kind("avi with reordered frames")
def _avi_reordered(folder):
    path = write(folder / "clip.avi", 40)
    return Clip(path, list(range(40)), [100 * index for index in range(40)], 4.0, warns=True)


@kind("no times")
def _raw(folder):
    path = write(folder / "clip.h264", 20, Encoding(rate=Fraction(25)))
    return Clip(path, FRAMES, [40 * index for index in FRAMES], 0.8, warns=True)


def _matroska(name: str, times: list[int], expected: list[int] | None, warns: bool = True, stated=None) -> None:
    @kind(name)
    def clip(folder):
        return Clip(write_matroska(folder / "clip.mkv", times, stated), list(range(len(times))), expected, warns=warns)


REGULAR = [100 * index for index in FRAMES]
_matroska("hand-written mkv", REGULAR, REGULAR, warns=False)
_matroska("two frames of equal time", [*REGULAR[:7], 600, *REGULAR[8:]], [*REGULAR[:6], 550, 600, *REGULAR[8:]])
_matroska("one time steps back", [*REGULAR[:7], 450, *REGULAR[8:]], REGULAR)
_matroska("all times equal", 20 * [300], REGULAR)
_matroska("times run backwards", REGULAR[::-1], REGULAR)
_matroska("clock restarts", [*REGULAR[:10], *REGULAR[:10]], REGULAR)
_matroska("clock jumps a day", [*REGULAR[:10], *(86_400_000 + time for time in REGULAR[10:])], REGULAR)
_matroska("part that starts at 4 s, duration of the whole", [4000 + time for time in REGULAR], REGULAR, False, 6000.0)
_matroska("part that starts at 4 s, duration of the part", [4000 + time for time in REGULAR], REGULAR, False, 2000.0)


@kind("two programmes one after the other")
def _two_programmes(folder):
    how = Encoding("mpeg1video", rate=Fraction(25), options={})
    parts = [write(folder / f"part{number}.mpg", 20, how, first=20 * number) for number in (0, 1)]
    path = folder / "clip.mpg"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return Clip(path, list(range(40)), [40 * index for index in range(40)], 1.6, warns=True)


@kind("joined transport streams")
def _joined(folder):
    parts = [write(folder / f"part{number}.ts", 20, first=20 * number) for number in (0, 1)]
    path = folder / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return Clip(path, list(range(40)), [100 * index for index in range(40)], 4.0, warns=True)


@kind("transport stream whose clock jumps a minute")
def _jump(folder):
    def later(packet):
        packet.pts += 600
        packet.dts += 600

    parts = [write(folder / "part0.ts", 20), write(folder / "part1.ts", 20, change=later, first=20)]
    path = folder / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return Clip(path, list(range(40)), [100 * index for index in range(40)], 4.0, warns=True)


@kind("edit list that skips five frames")
def _edit_list(folder):
    path = write(folder / "clip.mp4", 20, Encoding(options={"x264-params": "bframes=0:keyint=5"}))
    content = bytearray(path.read_bytes())
    start = content.index(b"elst") + 4
    duration, media_time = struct.unpack_from(">Ii", content, start + 8)
    assert (duration, media_time) == (2000, 0)
    tick = struct.unpack_from(">I", content, content.index(b"mdhd") + 4 + 12)[0]
    struct.pack_into(">Ii", content, start + 8, 1500, tick // 2)
    path.write_bytes(content)
    return Clip(path, FRAMES[5:], REGULAR[:15], 1.5)


def _atoms(content: bytes, start: int, end: int):
    """Yields (name, start, end) of the atoms of an MP4 file within a range; start is that of the size."""
    while start < end:
        size = struct.unpack_from(">I", content, start)[0]
        yield content[start + 4 : start + 8], start, start + size
        start += size


def set_edits(path: Path, edits: Sequence[tuple[int, int]]) -> None:
    """Replaces the edit list of each track by parts (first, last) in milliseconds. Media must come before ``moov``."""
    content = path.read_bytes()
    ((_, moov, moov_end),) = [atom for atom in _atoms(content, 0, len(content)) if atom[0] == b"moov"]
    tracks = [atom for atom in _atoms(content, moov + 8, moov_end) if atom[0] == b"trak"]
    for _, trak, trak_end in reversed(tracks):
        inner = {name: (first, last) for name, first, last in _atoms(content, trak + 8, trak_end)}
        tick = struct.unpack_from(">I", content, content.index(b"mdhd", inner[b"mdia"][0]) + 4 + 12)[0]
        entries = b"".join(struct.pack(">IiI", last - first, first * tick // 1000, 1 << 16) for first, last in edits)
        elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
        edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
        first, last = inner[b"edts"]
        more = len(edts) - (last - first)
        content = content[:first] + edts + content[last:]
        for atom in (trak, moov):
            size = struct.unpack_from(">I", content, atom)[0] + more
            content = content[:atom] + struct.pack(">I", size) + content[atom + 4 :]
    path.write_bytes(content)


@kind("two edits and sound")
def _two_edits(folder):
    path = write(folder / "clip.mp4", 20, Encoding(options={"x264-params": "bframes=0:keyint=5"}, sound="aac"))
    set_edits(path, [(0, 1000), (1500, 2000)])
    return Clip(path, [*FRAMES[:10], *FRAMES[15:]], REGULAR[:15], 1.5, has_sound=True)


@kind("mp4 whose duration holds its start delay")
def _late_start(folder):
    path = write(folder / "clip.mp4", 20, times=[4000 + time for time in REGULAR])
    content = bytearray(path.read_bytes())
    start = content.index(b"mvhd") + 4 + 12  # version 0: after flags, times of creation and change
    ticks, _ = struct.unpack_from(">II", content, start)
    struct.pack_into(">I", content, start + 4, 6 * ticks)
    path.write_bytes(content)
    return Clip(path, FRAMES, REGULAR, 2.0)


@kind("Latin-1 title")
def _latin1(folder):
    path = write(folder / "clip.mp4", how=Encoding(metadata={"title": "a caf# in Spain"}))
    path.write_bytes(path.read_bytes().replace(b"caf#", b"caf\xe9"))
    return Clip(path, FRAMES, REGULAR, 2.0)


for suffix in ("webm", "mp4", "mkv", "gif"):

    @kind(f"one frame in {suffix}")
    def _one_frame(folder, suffix=suffix):
        how = {"webm": Encoding("libvpx", options={}), "gif": Encoding("gif", "rgb8", options={})}.get(suffix)
        return Clip(write(folder / f"clip.{suffix}", 1, how), [0], [0])


for suffix in ("mp4", "mkv"):

    @kind(f"cover art first in {suffix}")
    def _cover(folder, suffix=suffix):
        return Clip(write(folder / f"clip.{suffix}", how=Encoding(cover=True)), FRAMES, REGULAR, 2.0)


# -- orientation and shape of pixels -----------------------------------------------------------------------------------

ONE, TOP = 1 << 16, 1 << 30  # 1 in 16.16 and in 2.30 fixed point
ORIENTATIONS = {  # by EXIF number: from stored to shown pixels (a, b, c, d), and the corner of the stored top left one
    1: ((1, 0, 0, 1), "top left"),
    2: ((-1, 0, 0, 1), "top right"),
    3: ((-1, 0, 0, -1), "bottom right"),
    4: ((1, 0, 0, -1), "bottom left"),
    5: ((0, 1, 1, 0), "top left"),
    6: ((0, 1, -1, 0), "top right"),
    7: ((0, -1, -1, 0), "bottom right"),
    8: ((0, -1, 1, 0), "bottom left"),
}


def write_oriented(folder: Path, suffix: str, orientation: int, aspect: Fraction | None = None) -> Path:
    """Writes a clip of 3 frames, or an image, that is to be shown turned or mirrored; ``aspect`` is that of pixels."""
    path = folder / f"clip.{suffix}"
    if suffix in ("jpg", "png"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(picture(0)).save(path, exif=exif)
        return path
    write(path, 3, Encoding(aspect=aspect))
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", content, start) == (ONE, 0, 0, 0, ONE, 0, 0, 0, TOP)
    (a, b, c, d), _ = ORIENTATIONS[orientation]
    struct.pack_into(">9i", content, start, a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, TOP)
    path.write_bytes(content)
    return path


def bright_corner(frame) -> str:
    """The corner where the white mark of ``picture`` is: ``"top left"``."""
    rows, columns = np.nonzero(frame.mean(axis=2) > 200)
    vertical = "top" if rows.mean() < frame.shape[0] / 2 else "bottom"
    return f"{vertical} {'left' if columns.mean() < frame.shape[1] / 2 else 'right'}"


def count_frames(path: Path) -> int:
    """Counts the frames of the film in a file in the plainest way, for comparison; cover art has one frame."""
    with av.open(str(path), metadata_errors="ignore") as container:
        counts = dict.fromkeys(range(len(container.streams)), 0)
        for packet in container.demux(container.streams.video):
            counts[packet.stream.index] += len(packet.decode())
        return max(counts.values())


def refusal(path, **options):
    """The message of the UserError that opening or reading a path ends in; one line that names it."""
    with pytest.raises(UserError) as caught:
        list(open_frames(str(path), **options))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
