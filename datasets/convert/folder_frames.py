"""The frames of a user's own videos as numbered JPEG files."""

from dataclasses import dataclass
from pathlib import Path

from util.errors import MissingFileError, UserError
from util.files import link_or_copy
from util.images import is_jpeg, read_image, write_jpeg
from util.video import ImageFolder, open_frames

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".3gp")
MAX_FRAMES = 100_000  # five digits: readers sort names as texts


@dataclass(frozen=True)
class Frames:
    """What was written of a video.

    Attributes:
        video: its name.
        count: number of frames.
        size: (H, W) in pixels.
        names: what the images were called, without suffix; None for a video file.
    """

    video: str
    count: int
    size: tuple[int, int]
    names: list[str] | None

    @property
    def written_names(self) -> list[str]:
        """What the files are called now, without suffix."""
        return [f"{index:05d}" for index in range(self.count)]


def find_videos(folder: Path) -> dict[str, Path]:
    """{name: path} of the folders, and of the video files, whose names go without suffix.

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
    """Fills ``folder``, made here, with 00000.jpg, 00001.jpg, … and says what they are.

    JPEG files are linked as they are, anything else is encoded at quality 95. The numbers keep the order of names
    whatever they were: readers would put frame10 before frame2.

    Raises:
        UserError: if the source is damaged, empty, too long, or its frames differ in size.
    """
    folder.mkdir(parents=True)
    try:
        opened = open_frames(str(source))
        if isinstance(opened, ImageFolder):
            return _write_images(video, opened.files, folder)
        sizes = set()
        for index, frame in enumerate(opened):
            write_jpeg(_target(folder, index), frame)
            sizes.add((frame.shape[0], frame.shape[1]))
        (size,) = sizes  # a video file says itself when its size changes
        return Frames(video, index + 1, size, None)
    except UserError as error:
        raise _reworded(error, source) from None


def _write_images(video: str, files: tuple[Path, ...], folder: Path) -> Frames:
    first: tuple[int, int] | None = None
    for index, file in enumerate(files):
        frame = read_image(file)  # also where it is linked: a damaged file shows here, not in training
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
    assert first is not None, "an ImageFolder holds at least one image"
    return Frames(video, len(files), first, [file.stem for file in files])


def _target(folder: Path, index: int) -> Path:
    if index >= MAX_FRAMES:
        raise UserError(f"--videos: {folder.name} must have at most {MAX_FRAMES} frames; cut it into shorter ones")
    return folder / f"{index:05d}.jpg"


def _reworded(error: UserError, source: Path) -> UserError:
    """The demo's messages begin with an option that is not ours, and for video files end with others."""
    message = str(error).removeprefix(f"--input_path {source}: ")
    if message == str(error):
        return error
    if source.is_file():
        message = message.partition("; ")[0] + "; convert it to H.264, or give a folder of its images"
    return UserError(f"{source}: {message}")
