"""Writes frames as a video file: H.264 to play, lossless masks, cutouts with transparency; sound beside them."""

import logging
import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

from util.video_clock import Clock
from util.video_sound import Sound, SoundMuxer

logger = logging.getLogger(__name__)

BT709 = 1  # in FFmpeg's numbering of colour spaces, primaries and transfer curves
FINEST_TICK = 10**6  # ticks per second, most
COMMON_TICK = 90000  # ticks per second, for times that need finer ones
MP4_SOUND = ("aac", "mp3", "mp3float", "ac3", "eac3", "alac")
PCM = ("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le")


@dataclass(frozen=True)
class VideoFormat:
    """A kind of video file.

    Attributes:
        suffix: of the file's name; it chooses the container.
        codec, options: FFmpeg's encoder and its options.
        pixels: FFmpeg's pixel format of the file.
        frames: how frames are given: ``rgb24`` [H, W, 3], ``rgba`` [H, W, 4] or ``gray`` [H, W], all uint8.
        copied_sound: codecs of sound that the container takes; others are encoded again by ``sound_codec``.
    """

    suffix: str
    codec: str
    pixels: str
    frames: str
    options: dict[str, str] = field(default_factory=dict)
    copied_sound: tuple[str, ...] = MP4_SOUND
    sound_codec: str = "aac"


# ultrafast: at equal quality a tenth more bytes than superfast, in half the time.
H264 = VideoFormat(".mp4", "libx264", "yuv420p", "rgb24", {"crf": "18", "preset": "ultrafast"})
# A fixed quantiser bounds the error of every pixel, far below the distance from black or white to the middle.
MASK_H264 = VideoFormat(
    ".mp4", "libx264", "yuv420p", "gray", {"qp": "10", "preset": "veryfast", "profile": "high"}
)  # fmt: skip
MASK_FFV1 = VideoFormat(
    ".mkv", "ffv1", "gray", "gray", {"level": "3", "slicecrc": "1"}, (*MP4_SOUND, *PCM, "opus", "vorbis", "flac")
)
CUTOUT_PRORES = VideoFormat(
    ".mov", "prores_ks", "yuva444p10le", "rgba", {"profile": "4444", "vendor": "apl0"}, (*MP4_SOUND, *PCM)
)
CUTOUT_VP9 = VideoFormat(
    ".webm", "libvpx-vp9", "yuva420p", "rgba",
    {"crf": "20", "b": "0", "auto-alt-ref": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"},
    ("opus", "vorbis"), "libopus",
)  # fmt: skip


class VideoWriter:
    """Writes frames as they come. Where chroma is halved, an odd side grows by a repeated pixel.

    Args:
        path: the file; its suffix is that of ``kind``.
        clock: when the frames are shown, or a constant number of frames per second.
        kind: see ``VideoFormat``; by default H.264 that browsers play.
        pixel_aspect: width of a pixel over its height; players stretch the frames by it.
        sound: written beside the frames; sound that cannot be read is left out with a warning.

    Attributes:
        sound_note: what became of the sound, in words; None without sound. Known at the end.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock | Fraction,
        kind: VideoFormat = H264,
        *,
        pixel_aspect: Fraction = Fraction(1),
        sound: Sound | None = None,
    ) -> None:
        options = {"movflags": "faststart"} if kind.suffix in (".mp4", ".mov") else {}
        self.container = av.open(str(path.absolute()), "w", options=options)
        self.kind = kind
        self.pixel_aspect = pixel_aspect
        self.sound = sound
        self.sound_note: str | None = None
        self.stream: av.VideoStream | None = None
        self._muxer: SoundMuxer | None = None
        self._count = 0
        self._rate = clock if isinstance(clock, Fraction) else clock.rate
        self._clock = None if isinstance(clock, Fraction) or clock.is_constant else clock  # None: a constant rate
        self._tick = 1 / self._rate if self._clock is None else _tick_for(self._clock)
        self._lengths: dict[int, int] = {}  # ticks of the frames that the encoder still holds, by their start
        self._durations = self._clock.durations() if self._clock is not None else []

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Appends a frame, see ``VideoFormat.frames``; every frame has the size of the first."""
        height, width = frame.shape[:2]
        if "420" in self.kind.pixels and (height % 2 or width % 2):
            padding = ((0, height % 2), (0, width % 2), (0, 0))[: frame.ndim]
            frame = np.pad(frame, padding, mode="edge")
        if self.stream is None:
            self._begin(frame.shape[0], frame.shape[1])
        assert self.stream is not None, "the first frame begins the file"
        picture = self._picture(frame)
        picture.time_base = self._tick
        picture.pts, picture.duration = self._ticks_of(self._count)
        self._lengths[picture.pts] = picture.duration
        self._mux(picture)
        if self._muxer is not None:
            self._muxer.advance(picture.pts * self._tick)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.stream is not None and error is None:
                self._mux(None)
                if self._muxer is not None:
                    self._muxer.advance(None)
                    self.sound_note = self._muxer.note
        finally:
            if self._muxer is not None:
                self._muxer.close()
            self.container.close()

    def _mux(self, picture: av.VideoFrame | None) -> None:
        assert self.stream is not None, "the first frame begins the file"
        for packet in self.stream.encode(picture):
            if packet.pts is not None:  # encoders answer with the duration of the average frame
                packet.duration = self._lengths.pop(packet.pts, packet.duration)
            self.container.mux(packet)

    def _ticks_of(self, index: int) -> tuple[int, int]:
        """Returns start and duration of a frame in ticks."""
        if self._clock is None:
            return index, 1
        start = round(self._clock.starts[index] / self._tick)
        return start, max(1, round((self._clock.starts[index] + self._durations[index]) / self._tick) - start)

    def _begin(self, height: int, width: int) -> None:
        # rate is what players show; of a variable rate it is the average.
        rate = self._rate.limit_denominator(1001000)
        stream = cast(av.VideoStream, self.container.add_stream(self.kind.codec, rate=rate, options=self.kind.options))
        stream.height, stream.width, stream.pix_fmt = height, width, self.kind.pixels
        context = stream.codec_context
        context.time_base = self._tick
        if self.pixel_aspect != 1:
            context.sample_aspect_ratio = self.pixel_aspect.limit_denominator(255)
        if self.kind.pixels != "gray":
            context.colorspace = BT709  # players guess BT.601 or BT.709 by size where nothing is said
            context.color_primaries = context.color_trc = BT709
        self.stream = stream
        if self.sound is not None:
            try:
                self._muxer = SoundMuxer(self.sound, self.container, self.kind.copied_sound, self.kind.sound_codec)
            except (av.FFmpegError, ValueError) as error:
                self.sound_note = f"left out, it cannot be read ({error})"
                logger.warning("%s: its sound is left out: it cannot be read (%s)", self.sound.path, error)

    def _picture(self, frame: NDArray[np.uint8]) -> av.VideoFrame:
        if self.kind.frames == "gray" and self.kind.pixels == "yuv420p":
            luma = np.rint(frame * np.float32(219 / 255) + 16).astype(np.uint8)  # limited range
            chroma = np.full((frame.shape[0] // 2, frame.shape[1]), 128, np.uint8)
            return av.VideoFrame.from_ndarray(np.concatenate([luma, chroma]), format="yuv420p")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=self.kind.frames)
        if self.kind.frames == self.kind.pixels:
            return picture
        return picture.reformat(format=self.kind.pixels, dst_colorspace="ITU709")


def _tick_for(clock: Clock) -> Fraction:
    """Returns the longest tick of which all times are multiples; one of the usual ones if that is too short."""
    ticks = 1
    for start in (*clock.starts, clock.end):
        ticks = math.lcm(ticks, start.denominator)
        if ticks > FINEST_TICK:
            return Fraction(1, COMMON_TICK)
    return Fraction(1, max(ticks, 1000))
