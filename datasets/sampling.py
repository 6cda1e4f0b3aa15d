"""Which frames make a clip, and in which order clips are visited."""

from collections.abc import Iterator

import torch


def dense_indices(start: int, num_frames: int, video_length: int) -> list[int]:
    """``num_frames`` consecutive positions from ``start``, moved back where the video ends.

    A video shorter than that repeats its last frame.
    """
    start = max(0, min(start, video_length - num_frames))
    return [min(index, video_length - 1) for index in range(start, start + num_frames)]


class EpochBatches:
    """Batches of item numbers, endless: epoch after epoch, each in an order of (seed, epoch) alone.

    Items beyond the last whole batch of an epoch are left out of it.

    Args:
        num_items: at least ``batch_size``.
        start_step: batches to leave out from the front, so that a resumed run goes on where it stopped.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, start_step: int = 0) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_items // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            epoch, position = divmod(step, self.steps_per_epoch)
            order = self._order(epoch)
            for first in range(position * self.batch_size, self.steps_per_epoch * self.batch_size, self.batch_size):
                yield order[first : first + self.batch_size]
                step += 1

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_items, generator=generator).tolist()
