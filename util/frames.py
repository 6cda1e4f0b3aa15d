"""Frames that are read one at a time: what every source of them offers, and images as a source."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from util.errors import UserError
from util.images import IMAGE_SUFFIXES, Frame, read_image
from util.video_clock import Clock
from util.video_sound import Sound

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".3gp", ".3g2"),
    *(".ts", ".mts", ".m2ts", ".mxf", ".vob", ".gif"),
)
DEFAULT_FPS = Fraction(24)  # of images, and of files that announce no usable rate


class FrameSource:
    """Frames of one size that can be iterated more than once.

    Attributes:
        path: the file or folder.
        files: the files that the frames are read from.
        num_frames: number of frames of an iteration, perhaps a little more than really come; None if only reading can
            tell.
        pixel_aspect: width of a pixel over its height, as frames are meant to be shown.
    """

    path: Path
    files: tuple[Path, ...]
    num_frames: int | None
    pixel_aspect: Fraction = Fraction(1)

    def __iter__(self) -> Iterator[Frame]:
        """Yields [H, W, 3] uint8 RGB, upright."""
        raise AssertionError("subclasses read the frames")

    @property
    def clock(self) -> Clock:
        """When each frame of an iteration is shown. Reads the file first if it was not read to its end yet."""
        raise AssertionError("subclasses know the times")

    @property
    def sound(self) -> Sound | None:
        """The sound beside the frames, as far as the frames last; None if there is none."""
        return None

    @property
    def fps(self) -> Fraction:
        """Frames per second; the average, if the rate varies."""
        return self.clock.rate

    @property
    def source_frames(self) -> list[int]:
        """For each frame of an iteration its number in the file, from 0."""
        return list(range(len(self.clock.starts)))

    @property
    def source_times(self) -> list[Fraction]:
        """For each frame of an iteration its time in the file, in seconds after the file's first frame."""
        return list(self.clock.starts)

    def frame_name(self, index: int) -> str:
        """Returns the file name of a frame's results, without suffix."""
        return f"{index:05d}"


class Images(FrameSource):
    """A folder of images sorted by name, numbers by value, or a single image; other files are ignored."""

    def __init__(self, path: Path, fps: Fraction | None, max_frames: int | None) -> None:
        self.path = path
        self._fps = fps or DEFAULT_FPS
        files = [file for file in path.iterdir() if is_image(file)] if path.is_dir() else [path]
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

    @property
    def clock(self) -> Clock:
        count = len(self.files)
        return Clock([index / self._fps for index in range(count)], count / self._fps, self._fps)

    def frame_name(self, index: int) -> str:
        return self.files[index].stem if self.path.is_dir() else super().frame_name(index)


def result_name(path: Path) -> str:
    """Returns the name of an input's results: the stem of the file, or the name of the folder.

    Raises:
        UserError: if it would name another place than one in the folder of results.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100, a link gives its own name, not that of its target
    name = path.name if path.is_dir() else path.stem
    if name in ("", ".", ".."):  # "...mp4" has the stem ".."
        raise UserError(f"--input_path {path}: results cannot be called {name!r}; rename the input")
    return name


def place_of(path: Path) -> str:
    """Returns the absolute path as text for a record; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path.resolve()).decode(errors="replace")


def is_video(file: Path) -> bool:
    """Whether a file is a video by its name."""
    return file.suffix.lower() in VIDEO_SUFFIXES and not file.name.startswith(".") and file.is_file()


def is_image(file: Path) -> bool:
    """Whether a file is an image by its name."""
    # macOS leaves a ._name.jpg of its own beside name.jpg on foreign disks.
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def natural_order(file: Path) -> list[tuple[int, int, str]]:
    """Returns a key that sorts frame2 before frame10; names of equal length sort as plain text."""
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]
