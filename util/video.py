"""Reads frames from a video file or a folder of images, one at a time; writes H.264 files."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from util.errors import MissingFileError, UserError
from util.images import IMAGE_SUFFIXES, Frame, read_image

BT709 = 1  # in FFmpeg's numbering of colour spaces, primaries and transfer curves
TEXT_FORMATS = ("tty", "bin", "xbin", "idf", "adf")  # FFmpeg reads any text file as a video
MAX_FPS = 240  # faster clocks are time bases, not rates
DEFAULT_FPS = Fraction(24)  # of a folder, which has no rate
# A container may announce a little more than its last frame shows; a file cut short lacks far more.
MISSING_SECONDS, MISSING_SHARE = 0.5, 0.05


class FrameSource:
    """Frames of one size that can be iterated more than once.

    Attributes:
        path: the file or folder.
        fps: frames per second at which the frames are sampled.
        num_frames: number of frames of an iteration; None if only reading can tell.
        files: the files that the frames are read from.
    """

    path: Path
    files: tuple[Path, ...]
    fps: Fraction
    num_frames: int | None

    def __iter__(self) -> Iterator[Frame]:
        """Yields [H, W, 3] uint8 RGB."""
        raise AssertionError("subclasses read the frames")

    @property
    def name(self) -> str:
        """The name of results: the stem of the file, or the name of the folder."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    @property
    def place(self) -> str:
        """The absolute path as text for a record; bytes that are not UTF-8 are replaced."""
        return os.fsencode(self.path.resolve()).decode(errors="replace")

    def frame_name(self, index: int) -> str:
        """Returns the file name of a frame's results, without suffix."""
        return f"{index:05d}"


def open_frames(path: str, fps: float | None = None, max_frames: int | None = None) -> FrameSource:
    """Opens a video file (anything PyAV reads) or a folder of images.

    Args:
        fps: sampling rate in frames per second; by default the file's own, or 24 for a folder. A folder keeps every
            image,
            so there it is only the rate of the result video.
        max_frames: only the first frames, after sampling.

    Raises:
        UserError: if there is no such file, or it holds no video or images.
    """
    location = Path(path)
    rate = None if fps is None else Fraction(fps).limit_denominator(1001)
    if location.is_dir():
        return ImageFolder(location, rate or DEFAULT_FPS, max_frames)
    if not location.exists():
        raise MissingFileError(f"--input_path {path}: no such file or folder; give a video file or a folder of images")
    return VideoFile(location, rate, max_frames)


class _DamageError(Exception):
    """A file becomes unreadable; holds the reason."""


class VideoFile(FrameSource):
    """A video file; its frames are placed on a regular grid in time and rotated as its metadata says."""

    def __init__(self, path: Path, fps: Fraction | None, max_frames: int | None) -> None:
        self.path = path
        self.files = (path,)
        self.max_frames = max_frames
        with self._open() as container:
            stream = container.streams.video[0]
            own_fps = _own_rate(stream)
            if fps is None and own_fps > MAX_FPS:
                raise UserError(
                    f"--input_path {path}: announces {float(own_fps):g} frames per second, as recordings of variable "
                    "rate may do; set a rate with --fps"
                )
            self.fps = fps or own_fps
            announced = stream.frames if stream.frames and self.fps == own_fps else None
        self.num_frames = min(announced, max_frames) if announced and max_frames else announced

    def __iter__(self) -> Iterator[Frame]:
        shown: av.VideoFrame | None = None
        size: tuple[int, ...] | None = None
        count = 0
        try:
            for frame in itertools.islice(resample(self._timed_frames(), self.fps), self.max_frames):
                if frame is not shown:  # a held frame is converted once
                    shown, picture = frame, _upright_rgb(frame)
                size = size or picture.shape
                if picture.shape != size:
                    raise UserError(
                        f"--input_path {self.path}: frames must share one size, got {picture.shape[1]} x "
                        f"{picture.shape[0]} after {size[1]} x {size[0]}; use its start with --max_frames {count}"
                    )
                yield picture
                count += 1
        except _DamageError as error:
            raise self._damage(count, str(error)) from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[av.container.InputContainer]:
        try:
            container = av.open(str(self.path.absolute()))  # absolute: a relative 12:30.mp4 would name a protocol
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"--input_path {self.path}: cannot be read as a video, it is truncated or of an unknown format "
                f"({_reason(error)}); copy it again, or convert it: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
            ) from None
        with container:
            if not container.streams.video or container.format.name in TEXT_FORMATS:
                raise UserError(
                    f"--input_path {self.path}: cannot be read as a video, it holds no video stream; give a video file"
                )
            yield container

    def _timed_frames(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Yields (start, duration, frame) in seconds, in order of display."""
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            frame_seconds = 1 / _own_rate(stream)
            end = Fraction(0)
            count = 0
            try:
                for packet in container.demux():
                    if packet.is_corrupt:
                        raise _DamageError("a packet is cut off")
                    if packet.pts is not None and packet.time_base is not None:
                        end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream is not stream:
                        continue
                    for frame in packet.decode():
                        assert isinstance(frame, av.VideoFrame), "packets of a video stream hold video frames"
                        assert frame.time_base is not None, "decoded frames carry the time base of their stream"
                        if frame.pts is None:  # a raw stream has no times
                            yield count * frame_seconds, frame_seconds, frame
                        else:
                            seconds = frame.duration * frame.time_base if frame.duration else frame_seconds
                            yield frame.pts * frame.time_base, seconds, frame
                        count += 1
            except av.FFmpegError as error:
                raise _DamageError(_reason(error)) from None
            if count == 0:
                raise _DamageError("no frame in it can be decoded")
            self._check_end(container, float(end))

    def _check_end(self, container: av.container.InputContainer, end: float) -> None:
        """Detects a truncated file by its announced duration, the only sign in some containers (mkv, webm)."""
        if container.duration is None:
            return
        announced = (container.duration + max(container.start_time or 0, 0)) / av.time_base
        if announced - end > max(MISSING_SECONDS, MISSING_SHARE * announced):
            raise _DamageError(f"it ends after {end:.1f} of {announced:.1f} seconds")

    def _damage(self, count: int, reason: str) -> UserError:
        remedy = "copy it again" + (f", or use its readable start with --max_frames {count}" if count else "")
        return UserError(f"--input_path {self.path}: truncated or damaged after {count} frames ({reason}); {remedy}")


class ImageFolder(FrameSource):
    """A folder of images sorted by name, numbers by value; other files are ignored."""

    def __init__(self, path: Path, fps: Fraction, max_frames: int | None) -> None:
        self.path = path
        self.fps = fps
        files = [file for file in path.iterdir() if _is_image(file)]
        self.files = tuple(sorted(files, key=natural_order)[:max_frames])
        if not self.files:
            raise UserError(f"--input_path {path}: holds no images; give a folder of {', '.join(IMAGE_SUFFIXES)} files")
        stems: dict[str, Path] = {}
        for file in self.files:
            if file.stem in stems:
                raise UserError(
                    f"--input_path {path}: {stems[file.stem].name} and {file.name} would share one mask name; "
                    "rename one of them"
                )
            stems[file.stem] = file
        self.num_frames = len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        first: Frame | None = None
        for file in self.files:
            frame = read_image(file)
            first = frame if first is None else first
            if frame.shape != first.shape:
                raise UserError(
                    f"{file}: frames must share one size, got {frame.shape[1]} x {frame.shape[0]} after "
                    f"{first.shape[1]} x {first.shape[0]}; resize or remove it"
                )
            yield frame

    def frame_name(self, index: int) -> str:
        return self.files[index].stem


def resample(timed: Iterable[tuple[Fraction, Fraction, av.VideoFrame]], fps: Fraction) -> Iterator[av.VideoFrame]:
    """Places frames on a regular grid in time: each takes the nearest slot and is held until the next frame's.

    If several frames fall into one slot, the last stays. At the file's own constant rate every frame passes once,
    however
    its time stamps are rounded.

    Args:
        timed: (start, duration, frame) in seconds, in order of display.
        fps: slots per second; the first frame has the first slot.
    """
    slot = 0
    is_single = True
    held = None
    origin = end = Fraction(0)
    for start, duration, frame in timed:
        is_single = held is None
        if is_single:
            origin = start
        target = _nearest(start - origin, fps)
        while held is not None and slot < target:
            yield held
            slot += 1
        held, end = frame, start + duration
    if held is not None:
        # A single frame is an image, whatever its duration.
        num_slots = 1 if is_single else max(1, _nearest(end - origin, fps) - slot)
        yield from itertools.repeat(held, num_slots)


class VideoWriter:
    """Writes frames as H.264 in yuv420p, which browsers play; an odd side grows by a repeated pixel.

    Args:
        path: an .mp4 file, written as frames come.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        self.container = av.open(str(path.absolute()), "w", options={"movflags": "faststart"})
        self.fps = fps
        self.stream: av.VideoStream | None = None

    def __enter__(self) -> "VideoWriter":
        return self

    def write(self, frame: Frame) -> None:
        """Appends [H, W, 3] uint8 RGB; every frame has the size of the first."""
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self.stream is None:
            self.stream = self._add_stream(frame.shape[0], frame.shape[1])
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self.container.mux(self.stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.stream is not None and error is None:
            self.container.mux(self.stream.encode(None))
        self.container.close()

    def _add_stream(self, height: int, width: int) -> av.VideoStream:
        # ultrafast: at equal quality a tenth more bytes than superfast, in half the time.
        stream = self.container.add_stream("libx264", rate=self.fps, options={"crf": "18", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.colorspace = BT709  # players guess BT.601 or BT.709 by size where nothing is said
        stream.codec_context.color_primaries = stream.codec_context.color_trc = BT709
        return stream


def _upright_rgb(frame: av.VideoFrame) -> Frame:
    picture = frame.to_ndarray(format="rgb24")
    # Phones store the frame as the sensor saw it, and its angle (counter-clockwise, in degrees) beside it.
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


def _own_rate(stream: av.VideoStream) -> Fraction:
    if stream.frames == 1:  # the guessed rate is a time base
        return stream.average_rate or DEFAULT_FPS
    return stream.average_rate or stream.guessed_rate or DEFAULT_FPS


def _is_image(file: Path) -> bool:
    # macOS leaves a ._name.jpg of its own beside name.jpg on foreign disks.
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _nearest(seconds: Fraction, fps: Fraction) -> int:
    return int((seconds * fps + Fraction(1, 2)) // 1)


def natural_order(file: Path) -> list[tuple[int, int, str]]:
    """Returns a key that sorts frame2 before frame10; names of equal length sort as plain text."""
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
