"""A video file as a source of frames: every decoded frame once, or frames sampled by time."""

import contextlib
import itertools
import logging
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition, Stream
from numpy.typing import NDArray
from tqdm import tqdm

from util.errors import UserError
from util.frames import DEFAULT_FPS, FrameSource
from util.images import Frame
from util.video_clock import Clock, make_clock, resample, step_between
from util.video_sound import Sound

logger = logging.getLogger(__name__)

TEXT_FORMATS = ("tty", "bin", "xbin", "idf", "adf")  # FFmpeg reads any text file as a video
MAX_FPS = 240  # faster clocks are time bases, not rates
# A container may announce a little more than its last frame shows; a file cut short lacks far more.
MISSING_SECONDS, MISSING_SHARE = 0.5, 0.01
# Formats whose header states a duration; of the others FFmpeg estimates it, which is no sign of a cut.
STATE_DURATION = ("mov", "matroska", "avi", "flv", "asf")
TRANSPORT_PACKETS = (188, 192, 204)  # bytes; a transport stream is a whole number of them
MAY_JUMP = 0x0200  # FFmpeg's AVFMT_TS_DISCONT: the clock may jump within the file, as where recordings are joined
LONGEST_GAP, LONGEST_GAP_MAY_JUMP = Fraction(3600), Fraction(10)  # seconds; the second is FFmpeg's own


class _DamageError(Exception):
    """A file becomes unreadable; holds the reason."""


class VideoFile(FrameSource):
    """A video file. Without ``fps`` every decoded frame comes exactly once, in order of display, whatever its time.

    Args:
        fps: sample frames by time at this rate; a frame may then come several times, or not at all.
        max_frames: only the first frames, after sampling.

    Raises:
        UserError: if the file holds no video, or its first frame cannot be decoded.
    """

    def __init__(self, path: Path, fps: Fraction | None, max_frames: int | None) -> None:
        self.path = path
        self.files = (path,)
        self._sampling_rate = fps
        self._max_frames = max_frames
        self._file_clock: Clock | None = None
        self._sampled: list[int] | None = None
        with self._open() as (container, stream):
            self.nominal_rate = _nominal_rate(stream)
            # Such formats are made for transmission: a receiver goes on after a lost packet.
            self._may_jump = bool(container.format.flags & MAY_JUMP)
            self._has_sound = bool(container.streams.audio)
            aspect = stream.sample_aspect_ratio or Fraction(1)
            announced = _announced_frames(container, stream, stream.average_rate or self.nominal_rate)
        first = self._first_frame()
        self._origin = None if first.pts is None else first.pts * _tick(first)
        self.pixel_aspect = 1 / aspect if _is_transposed(first) else aspect
        self._announced = min(announced, max_frames) if announced and max_frames else announced

    def __iter__(self) -> Iterator[Frame]:
        size: tuple[int, ...] | None = None
        for count, picture in enumerate(self._pictures()):
            size = size or picture.shape
            if picture.shape != size:
                raise UserError(
                    f"--input_path {self.path}: frames must share one size, got {picture.shape[1]} x "
                    f"{picture.shape[0]} after {size[1]} x {size[0]}; use its start with --max_frames {count}"
                )
            yield picture

    @property
    def num_frames(self) -> int | None:  # type: ignore[override]
        return self._announced if self._sampling_rate is None else len(self.source_frames)

    @property
    def clock(self) -> Clock:
        if self._sampling_rate is None:
            return self._read_clock()
        count = len(self.source_frames)
        rate = self._sampling_rate
        return Clock([index / rate for index in range(count)], count / rate, rate)

    @property
    def sound(self) -> Sound | None:
        if not self._has_sound:
            return None
        end = None if self._max_frames is None else self.clock.end
        return Sound(self.path, self._origin, end, self._longest_gap, is_copied=not self._may_jump)

    @property
    def source_frames(self) -> list[int]:
        clock = self._read_clock()
        if self._sampling_rate is None:
            return list(range(len(clock.starts)))
        if self._sampled is None:
            timed = zip(clock.starts, clock.durations(), itertools.count(), strict=False)
            self._sampled = list(itertools.islice(resample(timed, self._sampling_rate), self._max_frames))
        return self._sampled

    @property
    def source_times(self) -> list[Fraction]:
        starts = self._read_clock().starts
        return [starts[index] for index in self.source_frames]

    @property
    def _longest_gap(self) -> Fraction:
        return LONGEST_GAP_MAY_JUMP if self._may_jump else LONGEST_GAP

    # -- times -------------------------------------------------------------------------------------------------------

    def _read_clock(self) -> Clock:
        if self._file_clock is None:
            for _ in tqdm(self._frames(), desc="read frame times", unit="frame", delay=2):
                pass
        assert self._file_clock is not None, "reading the frames to their end sets it"
        return self._file_clock

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Decodes the file as far as it is needed, and keeps the times when it has come so far."""
        times: list[Fraction | None] = []
        duration = None
        longest_gap = self._longest_gap
        elapsed = Fraction(0)
        frames = self._decoded()
        try:
            for frame in frames:
                times.append(None if frame.pts is None else frame.pts * _tick(frame))
                duration = frame.duration * _tick(frame) if frame.duration else None
                if len(times) > 1:
                    elapsed += step_between(times[-2], times[-1], longest_gap) or 1 / self.nominal_rate
                yield frame
                if self._has_enough(len(times), elapsed):
                    break
        except _DamageError as error:
            whole = len(times)
            if self._sampling_rate is not None:  # the most for which ``_has_enough`` stops before the damage
                whole = max(0, math.ceil(elapsed * self._sampling_rate) - 2)
            raise self._damage(whole, str(error)) from None
        finally:
            frames.close()
        if self._file_clock is None:
            self._file_clock = make_clock(times, duration, self.nominal_rate, longest_gap)
            if self._file_clock.fault:
                logger.warning("--input_path %s: %s", self.path, self._file_clock.fault)

    def _has_enough(self, count: int, elapsed: Fraction) -> bool:
        """Whether ``max_frames`` can be given from the first ``count`` frames of the file."""
        if self._max_frames is None:
            return False
        if self._sampling_rate is None:
            return count >= self._max_frames
        return elapsed * self._sampling_rate > self._max_frames + 1

    # -- frames ------------------------------------------------------------------------------------------------------

    def _pictures(self) -> Iterator[Frame]:
        if self._sampling_rate is None:
            yield from map(_upright_rgb, self._frames())
            return
        wanted = itertools.groupby(self.source_frames)
        frames = enumerate(self._frames())
        for index, repeats in wanted:
            frame = next((frame for number, frame in frames if number == index), None)
            if frame is None:
                raise UserError(f"--input_path {self.path}: changed while it was read; run again once it is complete")
            shown = _upright_rgb(frame)
            for _ in repeats:  # a held frame is converted once
                yield shown

    def _first_frame(self) -> av.VideoFrame:
        frames = self._decoded()
        try:
            return next(frames)
        except _DamageError as error:
            raise self._damage(0, str(error)) from None
        finally:
            frames.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        try:
            # absolute: a relative 12:30.mp4 would name a protocol. Titles are in any encoding.
            container = av.open(str(self.path.absolute()), metadata_errors="replace")
        except PermissionError:
            raise UserError(f"--input_path {self.path}: must be readable, permission is denied; allow it") from None
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"--input_path {self.path}: cannot be read as a video, it is truncated or of an unknown format "
                f"({_reason(error)}); copy it again, or convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
            ) from None
        with container:
            stream = _film(container)
            if stream is None or container.format.name in TEXT_FORMATS:
                only = "only cover art" if container.streams.video and stream is None else "no video stream"
                raise UserError(
                    f"--input_path {self.path}: cannot be read as a video, it holds {only}; give a video file"
                )
            yield container, stream

    def _decoded(self) -> Generator[av.VideoFrame]:
        """Yields every frame in order of display, as the decoder returns them."""
        with self._open() as (container, stream):
            stream.thread_type = "AUTO"
            end = Fraction(0)
            count = 0
            ends_whole = True
            try:
                for packet in container.demux():
                    if packet.is_corrupt and not self._may_jump:
                        raise _DamageError("a packet is cut off")
                    if packet.pts is not None and packet.time_base is not None:
                        end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream is not stream:
                        continue
                    if packet.size:
                        ends_whole = not packet.is_corrupt
                    for frame in self._decode(packet):
                        yield frame
                        count += 1
            except av.DecoderNotFoundError:
                raise UserError(
                    f"--input_path {self.path}: FFmpeg has no decoder for its frames: it is truncated, or of an "
                    "unknown codec; copy it again, or convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
                ) from None
            except av.FFmpegError as error:
                raise _DamageError(_reason(error)) from None
            if count == 0:
                raise _DamageError("no frame in it can be decoded")
            if not ends_whole:
                raise _DamageError("its last packet is cut off")
            _check_end(self.path, container, end)

    def _decode(self, packet: "av.Packet[Stream]") -> Iterator[av.VideoFrame]:
        try:
            for frame in packet.decode():
                assert isinstance(frame, av.VideoFrame), "packets of a video stream hold video frames"
                yield frame
        except av.InvalidDataError:
            if not self._may_jump:
                raise

    def _damage(self, count: int, reason: str) -> UserError:
        remedy = "copy it again" + (f", or use its readable start with --max_frames {count}" if count else "")
        return UserError(f"--input_path {self.path}: truncated or damaged after {count} frames ({reason}); {remedy}")


def _film(container: av.container.InputContainer) -> av.VideoStream | None:
    """Returns the video stream that FFmpeg chooses, but never cover art; None if there is no other."""
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & pictures]
    best = container.streams.best("video")
    for stream in films:
        if best is not None and stream.index == best.index:
            return stream
    return max(films, key=lambda stream: stream.width * stream.height, default=None)


def _announced_frames(container: av.container.InputContainer, stream: av.VideoStream, rate: Fraction) -> int | None:
    """Returns the number of frames in the header, or less if an edit list shows a part of them."""
    if not stream.frames:
        return None
    if container.duration is None:
        return stream.frames
    return min(stream.frames, int(container.duration * rate / av.time_base) + 1)


def _check_end(path: Path, container: av.container.InputContainer, end: Fraction) -> None:
    """Detects a truncated file by its announced duration or by its size, the only signs in some containers."""
    kind = container.format.name.split(",")[0]
    if kind == "mpegts" and all(container.size % size for size in TRANSPORT_PACKETS):
        raise _DamageError("its last packet is cut off")
    if container.duration is None or kind not in STATE_DURATION:
        return
    # Some formats count from time 0 and some from the first frame. Where that is later, a cut may be missed.
    announced = container.duration / av.time_base
    if announced - end > max(MISSING_SECONDS, MISSING_SHARE * announced):
        raise _DamageError(f"it ends after {float(end):.1f} of {announced:.1f} seconds")
    if announced - end > MISSING_SECONDS:
        logger.warning("--input_path %s: ends after %.1f of %.1f seconds; it may be truncated", path, end, announced)


def _nominal_rate(stream: av.VideoStream) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= MAX_FPS:
            return rate
    return DEFAULT_FPS


def _tick(frame: av.VideoFrame) -> Fraction:
    assert frame.time_base is not None, "decoded frames carry the time base of their stream"
    return frame.time_base


def _matrix(frame: av.VideoFrame) -> NDArray[np.int32] | None:
    """Returns [2, 2]: where a step right and a step down in the stored frame go in the shown one."""
    data: Any = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]  # it takes the type too
    if data is None:
        return None
    matrix = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2]
    return matrix if matrix.any() else None


def _is_transposed(frame: av.VideoFrame) -> bool:
    matrix = _matrix(frame)
    return matrix is not None and abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def _upright_rgb(frame: av.VideoFrame) -> Frame:
    """Converts to RGB, turned and mirrored as the file says: phones store frames as the sensor saw them."""
    picture: Frame = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix = _matrix(frame)
    if matrix is None:
        return picture
    if _is_transposed(frame):
        picture, (across, down) = picture.swapaxes(0, 1), (matrix[1, 0], matrix[0, 1])
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
