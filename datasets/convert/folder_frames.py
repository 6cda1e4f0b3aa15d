"""Writes the frames of a user's own videos as numbered JPEG files."""

from dataclasses import dataclass
from pathlib import Path

from util.errors import MissingFileError, UserError
from util.files import link_or_copy
from util.frames import VIDEO_SUFFIXES, Images
from util.images import is_jpeg, read_image, write_jpeg
from util.video import open_frames

MAX_FRAMES = 100_000  # five digits, because readers sort names as text


@dataclass(frozen=True)
class Frames:
    """The frames that were written of a video.

    Attributes:
        video: its name.
        count: number of frames.
        size: (H, W) in pixels.
        names: names of the images without suffix; None for a video file.
    """

    video: str
    count: int
    size: tuple[int, int]
    names: list[str] | None

    @property
    def written_names(self) -> list[str]:
        """Returns the new names of the frames, without suffix."""
        return [f"{index:05d}" for index in range(self.count)]


def find_videos(folder: Path) -> dict[str, Path]:
    """Returns {name: path} of the folders and video files; names have no suffix.

    Raises:
        UserError: if there are none, or two share a name.
    """
    if not folder.is_dir():
        raise MissingFileError(f"--videos {folder}: no such folder; give one of video files or of folders of images")
    videos: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES):
            continue
        name = path.name if path.is_dir() else path.stem
        if "\\" in name or not name.isprintable():
            raise UserError(f"{str(path)!r}: readers take no name with a backslash or a control character; rename it")
        if name in videos:
            raise UserError(f"{path}: shares its name with {videos[name].name}; rename one of them")
        videos[name] = path
    if not videos:
        raise UserError(
            f"--videos {folder}: must hold folders of images or video files ({', '.join(VIDEO_SUFFIXES)}), got neither"
        )
    return videos


def write_frames(video: str, source: Path, folder: Path) -> Frames:
    """Creates ``folder`` with 00000.jpg, 00001.jpg, … and returns what was written.

    JPEG files are linked; everything else is encoded at quality 95. The numbers follow the natural order of names,
    because
    readers would sort frame10 before frame2.

    Raises:
        UserError: if the source is damaged, empty or too long, or its frames differ in size.
    """
    folder.mkdir(parents=True)
    try:
        opened = open_frames(str(source))
        if isinstance(opened, Images):
            return _write_images(video, opened.files, folder)
        sizes = set()
        for index, frame in enumerate(opened):
            write_jpeg(_target(folder, index), frame)
            sizes.add((frame.shape[0], frame.shape[1]))
        (size,) = sizes  # a video file reports a change of size itself
        return Frames(video, index + 1, size, None)
    except UserError as error:
        raise _reworded(error, source) from None


def _write_images(video: str, files: tuple[Path, ...], folder: Path) -> Frames:
    first: tuple[int, int] | None = None
    for index, file in enumerate(files):
        frame = read_image(file)  # also if it is linked: a damaged file shows here, not in training
        size = (frame.shape[0], frame.shape[1])
        first = first or size
        if size != first:
            raise UserError(
                f"{file}: frames must share one size, got {size[1]} x {size[0]} after {first[1]} x {first[0]}; "
                "resize or remove it"
            )
        target = _target(folder, index)
        if is_jpeg(file):
            link_or_copy(file, target)
        else:
            write_jpeg(target, frame)
    assert first is not None, "a folder of images holds at least one image"
    return Frames(video, len(files), first, [file.stem for file in files])


def _target(folder: Path, index: int) -> Path:
    if index >= MAX_FRAMES:
        raise UserError(f"--videos: {folder.name} must have at most {MAX_FRAMES} frames; cut it into shorter ones")
    return folder / f"{index:05d}.jpg"


def _reworded(error: UserError, source: Path) -> UserError:
    """Rewords an error of the demo's reader, which begins with a flag that this program does not have."""
    message = str(error).removeprefix(f"--input_path {source}: ")
    if message == str(error):
        return error
    if source.is_file():
        message = message.partition("; ")[0] + "; convert it to H.264, or give a folder of its images"
    return UserError(f"{source}: {message}")
