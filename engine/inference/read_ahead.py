"""Reads the next videos on background threads, at the size that the model sees, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.split import Split
from engine.inference.workload import VideoWork
from util.errors import UserError
from util.images import resize_frame
from util.workers import ordered_map

VIDEOS_AHEAD = 1  # read while another is segmented; a video read here is lost to other processes, so only one
READING_THREADS = 4  # each holds one frame at source size

FittedSize = Callable[[int, int], tuple[int, int]]  # source (height, width) to model (height, width), in pixels


@dataclass(frozen=True)
class LoadedVideo:
    """A video in memory, and what is to be done with it.

    Attributes:
        work: the prompt groups to segment.
        frames: [T, h, w, 3] uint8 RGB at model size.
        size: source size, (H, W) in pixels.
    """

    work: VideoWork
    frames: NDArray[np.uint8]
    size: tuple[int, int]


def load_videos(split: Split, videos: Iterable[VideoWork], fitted_size: FittedSize) -> Iterator[LoadedVideo]:
    """Yields videos in order and reads the next one meanwhile; only frames at model size stay in memory.

    Args:
        videos: advanced only when the next video is about to be read.
        fitted_size: returns the model size for a source size.

    Raises:
        UserError: if a frame is missing, damaged, or differs in size from the first.
    """
    with ThreadPoolExecutor(READING_THREADS) as readers:

        def load(work: VideoWork) -> LoadedVideo:
            size = split.source_size(work.expression)
            fitted = fitted_size(*size)
            frames = np.empty((len(work.expression.frames), *fitted, 3), np.uint8)

            def read(index: int) -> None:
                (frame,) = split.read_frames(work.expression, [index])
                if frame.shape[:2] != size:
                    raise UserError(
                        f"{split.frame_file(work.expression, index)}: frames of a video must share one size, got "
                        f"{frame.shape[1]} x {frame.shape[0]} after {size[1]} x {size[0]}; replace the file"
                    )
                frames[index] = resize_frame(frame, *fitted)

            for _ in readers.map(read, range(len(frames))):
                pass
            return LoadedVideo(work, frames, size)

        try:
            yield from ordered_map(load, videos, 1 + VIDEOS_AHEAD)
        finally:
            readers.shutdown(cancel_futures=True)
