"""Videos as the model sees them, read ahead by background threads in bounded memory."""

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

VIDEOS_AHEAD = 1  # read while another is segmented; of a taken one no other process can take care
READING_THREADS = 4  # each holds one frame at full size

FittedSize = Callable[[int, int], tuple[int, int]]  # from and to (height, width) in pixels


@dataclass(frozen=True)
class LoadedVideo:
    """A video with what is to be done on it.

    Attributes:
        frames: [T, h, w, 3] uint8 RGB, fitted to the model.
        size: (H, W) in pixels of its files.
    """

    work: VideoWork
    frames: NDArray[np.uint8]
    size: tuple[int, int]


def load_videos(split: Split, videos: Iterable[VideoWork], fitted_size: FittedSize) -> Iterator[LoadedVideo]:
    """Videos in order, the next one being read meanwhile; of each file only the fitted frames stay in memory.

    Args:
        videos: gone through no sooner than one is read.
        fitted_size: at which size the model sees frames.

    Raises:
        UserError: if a frame is missing, damaged or of another size than the first.
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
