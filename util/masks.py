"""Masks as files."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

# The decoder's logits are clamped to [-1, 1]: a threshold outside their sigmoids would decide nothing.
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 0.27, 0.73

# Two grey levels in runs, alike from row to row: this is the smallest of all settings at 1080p (14 KB; zlib's level 6
# gives 18), and takes 10 ms where the defaults take 39.
PNG_OPTIONS = (
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Writes [H, W] bool as a one-channel PNG of 0 and 255.

    Raises:
        OSError: if the file cannot be written.
    """
    png = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255), PNG_OPTIONS)[1]
    path.write_bytes(png.tobytes())


def decode_rle(rle: dict[str, Any] | None, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A compressed COCO RLE, or None for nothing, to [H, W] bool."""
    if rle is None:
        return np.zeros(size, bool)
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


class MaskWriter:
    """Writes ``<folder>/<k>/<frame>.png`` on threads beside its caller.

    Args:
        folder: made here, with one folder per prompt in it.
        num_prompts: P, how many masks each frame has.
    """

    MAX_PENDING = 16  # frames; bounds the memory when the disk is slower than the model

    def __init__(self, folder: Path, num_prompts: int) -> None:
        self.folders = [folder / str(index) for index in range(num_prompts)]
        for prompt_folder in self.folders:
            prompt_folder.mkdir(parents=True)
        self.pool = ThreadPoolExecutor()
        self.pending: deque[Future[None]] = deque()

    def __enter__(self) -> "MaskWriter":
        return self

    def write(self, frame_name: str, masks: NDArray[np.bool_]) -> None:
        """Queues [P, H, W] masks, which must not change afterwards; raises what an earlier write ran into."""
        for folder, mask in zip(self.folders, masks, strict=True):
            self.pending.append(self.pool.submit(write_mask, folder / f"{frame_name}.png", mask))
        while len(self.pending) > self.MAX_PENDING * len(self.folders):
            self.pending.popleft().result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for write in self.pending:
                write.result()
