"""Opens a video file, an image or a folder of images as frames, and writes overlays.

In a notebook::

    video = read_video("video.mp4")
    result = pipeline(video, ["the dog on the left"])
    write_overlay("overlay.mp4", video, result.masks, ["the dog on the left"])
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.colours import Colour, colours_for
from util.errors import MissingFileError, UserError
from util.frames import FrameSource, Images, is_image
from util.images import Frame
from util.legend import Legend
from util.video_clock import Clock
from util.video_file import VideoFile
from util.video_sound import Sound
from util.video_writer import VideoWriter
from util.visualize import draw_masks


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
    if is_image(location):
        if not _is_animated(location):
            return Images(location, rate, max_frames)
        if location.suffix.lower() == ".webp":
            raise UserError(f"--input_path {path}: FFmpeg cannot read animated WebP; convert it to mp4 or gif")
    return VideoFile(location, rate, max_frames)


class VideoInMemory(FrameSource):
    """A video in memory.

    Attributes:
        frames: [T, H, W, 3] uint8 RGB.
    """

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self.frames: NDArray[np.uint8] = np.stack(list(source))
        self.path, self.files, self.pixel_aspect = source.path, source.files, source.pixel_aspect
        self.num_frames = len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        yield from self.frames

    @property
    def clock(self) -> Clock:
        return self._source.clock

    @property
    def sound(self) -> Sound | None:
        return self._source.sound

    @property
    def source_frames(self) -> list[int]:
        return self._source.source_frames

    @property
    def source_times(self) -> list[Fraction]:
        return self._source.source_times


def read_video(path: str | Path, fps: float | None = None, max_frames: int | None = None) -> VideoInMemory:
    """Reads a video, an image or a folder of images into memory: 3 bytes per pixel and frame, 6 while it reads.

    Args:
        path, fps, max_frames: as of ``open_frames``.

    Raises:
        UserError: as ``open_frames``, or if the file is damaged.
    """
    return VideoInMemory(open_frames(path, fps, max_frames))


def write_overlay(
    path: str | Path,
    video: FrameSource,
    masks: NDArray[np.bool_] | Iterable[NDArray[np.bool_]],
    prompts: Sequence[str],
    *,
    colours: Sequence[Colour] = (),
    opacity: float = 0.5,
    style: str = "fill",
    legend: str = "top",
) -> None:
    """Draws masks on a video and writes it as H.264, with its times and its sound.

    Args:
        path: an .mp4 file; replaced once the new one is whole.
        video: from ``read_video`` or ``open_frames``.
        masks: [P, T, H, W] bool, or [P, H, W] for one frame after the other, as ``FlowRVSOutput.iter_masks`` yields.
        prompts: P texts for the legend.
        colours: RGB of the first prompts.
        opacity, style: see ``util.visualize.draw_masks``.
        legend: ``top``, ``bottom`` or ``off``.

    Raises:
        ValueError: if frames and masks differ in number or size.
    """
    target = Path(path)
    chosen = colours_for(len(prompts), colours)
    per_frame = masks.swapaxes(0, 1) if isinstance(masks, np.ndarray) else masks
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    drawn: Legend | None = None
    try:
        with VideoWriter(partial, video.clock, pixel_aspect=video.pixel_aspect, sound=video.sound) as writer:
            for frame, frame_masks in zip(video, per_frame, strict=True):
                if frame_masks.shape != (len(prompts), *frame.shape[:2]):
                    raise ValueError(
                        f"masks of a frame must be [{len(prompts)}, {frame.shape[0]}, {frame.shape[1]}], prompts and "
                        f"size of the frame, got {list(frame_masks.shape)}"
                    )
                overlay = draw_masks(frame, frame_masks, chosen, opacity, style)
                if drawn is None:
                    (height, width), aspect = frame.shape[:2], float(video.pixel_aspect)
                    drawn = Legend(prompts, chosen, height, width, place=legend, pixel_aspect=aspect)
                drawn.draw(overlay)
                writer.write(overlay)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _is_animated(file: Path) -> bool:
    """Whether an image file holds several images to be shown one after the other."""
    try:
        with Image.open(file) as image:
            return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"  # MPO: views of one scene
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"--input_path {file}: damaged or not an image ({error}); replace it, or give a video file"
        ) from None
