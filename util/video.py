"""Opens a video file, an image or a folder of images as frames.

In a notebook::

    video = read_video("video.mp4")
    result = pipeline(video, ["the dog on the left"])
    write_overlay("overlay.mp4", video, result.masks, ["the dog on the left"])
"""

from fractions import Fraction
from pathlib import Path

from PIL import Image

from util.errors import MissingFileError, UserError
from util.frames import FrameSource, Images, is_image
from util.video_file import VideoFile


def open_frames(path: str | Path, fps: float | None = None, max_frames: int | None = None) -> FrameSource:
    """Opens a video file (anything PyAV reads), an image, or a folder of images.

    Args:
        fps: sample a video by time at this rate in frames per second; by default each of its frames comes once. Images
            all come once, so for them it is only the rate of the result video, 24 by default.
        max_frames: only the first frames, after sampling.

    Raises:
        UserError: if there is no such file, or it holds no video or images.
    """
    location = Path(path)
    rate = None if fps is None else Fraction(fps).limit_denominator(1001)
    if location.is_dir():
        return Images(location, rate, max_frames)
    if not location.exists():
        raise MissingFileError(f"--input_path {path}: no such file or folder; give a video file or a folder of images")
    if is_image(location) and not _is_animated(location):
        return Images(location, rate, max_frames)
    return VideoFile(location, rate, max_frames)


def _is_animated(file: Path) -> bool:
    """Whether an image file holds several images to be shown one after the other."""
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # MPO: views of one scene
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"--input_path {file}: damaged or not an image ({error}); replace it, or give a video file"
        ) from None
