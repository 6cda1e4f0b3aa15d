"""Chooses the frames of a clip, and the order in which clips are visited."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator

import numpy as np
from numpy.random import Generator

MAX_STRIDE = 3  # of dense clips
NEIGHBOUR_DISTANCE = 3  # in frames, at most, of a sparse clip's neighbours from its anchor


def dense_indices(start: int, num_frames: int, video_length: int, stride: int = 1) -> list[int]:
    """Returns ``num_frames`` indices from ``start`` on, ``stride`` apart, moved back if the video ends before.

    A shorter video repeats its last frame.
    """
    start = max(0, min(start, video_length - 1 - (num_frames - 1) * stride))
    return [min(start + step * stride, video_length - 1) for step in range(num_frames)]


def sparse_indices(rng: Generator, anchor: int, num_frames: int, video_length: int) -> list[int]:
    """Returns the anchor, one neighbour on each side, and the rest from the whole video; sorted and distinct.

    A video shorter than ``num_frames`` returns all its frames and repeats the last.

    Source: the original's training sampler.
    """
    if video_length <= num_frames:
        return dense_indices(0, num_frames, video_length)
    chosen = {anchor}
    for side in (-1, 1):
        distance = int(rng.integers(1, NEIGHBOUR_DISTANCE + 1))
        neighbour = min(max(0, anchor + side * distance), video_length - 1)
        if len(chosen) < num_frames:
            chosen.add(neighbour)
    others = np.setdiff1d(np.arange(video_length), list(chosen))
    chosen.update(rng.choice(others, num_frames - len(chosen), replace=False).tolist())
    return sorted(chosen)


def sample_indices(rng: Generator, sampling: str, anchor: int, num_frames: int, video_length: int) -> list[int]:
    """Positions of a clip's frames, rising.

    Args:
        sampling: ``sparse``; ``dense``, consecutive frames a random stride apart, as at inference; ``mixed``, either.
        anchor: a position within the clip.
    """
    if sampling == "mixed":
        sampling = "sparse" if rng.random() < 0.5 else "dense"
    if sampling == "sparse":
        return sparse_indices(rng, anchor, num_frames, video_length)
    longest = (video_length - 1) // max(1, num_frames - 1)
    stride = int(rng.integers(1, max(1, min(MAX_STRIDE, longest)) + 1))
    return dense_indices(anchor, num_frames, video_length, stride)


Key = tuple[int, int]  # (epoch, item)


class Batches:
    """Batches of (epoch, item), endless: epoch after epoch, each in an order of (seed, epoch) alone.

    Only items of one bucket, say of one size, meet in a batch. What does not fill a batch waits for the next epoch:
    nothing is left out. Ranks take the batches of one stream in turn.

    Args:
        items_of: the items of an epoch, in any fixed order; at least one.
        bucket_of: what a batch must share; None where all items fit each other.
        rank, num_ranks: which process this is, of how many.
        start_step: batches of each rank to leave out from the front, so that a resumed run goes on where it stopped.
    """

    def __init__(
        self,
        items_of: Callable[[int], list[int]],
        bucket_of: Callable[[Key], Hashable] | None,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        start_step: int = 0,
    ) -> None:
        self.items_of = items_of
        self.bucket_of = bucket_of if batch_size > 1 else None
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        self.start_step = start_step

    @property
    def steps_per_epoch(self) -> int:
        """Batches of each rank in the first epoch, rounded up."""
        return -(-len(self.items_of(0)) // (self.batch_size * self.num_ranks))

    def __iter__(self) -> Iterator[list[Key]]:
        for number, batch in enumerate(self._stream()):
            step, rank = divmod(number, self.num_ranks)
            if rank == self.rank and step >= self.start_step:
                yield batch

    def _stream(self) -> Iterator[list[Key]]:
        """The batches of all ranks."""
        waiting: dict[Hashable, list[Key]] = defaultdict(list)
        epoch = 0
        while True:
            for key in self._order(epoch):
                bucket = waiting[self.bucket_of(key) if self.bucket_of else None]
                bucket.append(key)
                if len(bucket) == self.batch_size:
                    yield bucket.copy()
                    bucket.clear()
            epoch += 1

    def _order(self, epoch: int) -> list[Key]:
        items = self.items_of(epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(items))
        return [(epoch, items[position]) for position in order.tolist()]
