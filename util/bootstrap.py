"""How sure a difference between two runs is: a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 10_000
CHUNK = 500  # draws at once: of ten thousand videos 40 MB
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean difference, and between which values it lies in ``LEVEL`` of the resamples."""

    mean: float
    low: float
    high: float


def paired_interval(differences: NDArray[np.float64], groups: Sequence[str], seed: int = 0) -> Interval:
    """The interval of a mean of paired differences, by drawing whole groups with replacement.

    Args:
        differences: [N], of the same item in two runs.
        groups: [N] names; items of one, such as sentences about one video, succeed and fail together, so that drawing
            them one by one would make a difference look surer than it is.
    """
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    sums, counts = np.bincount(numbers, differences), np.bincount(numbers)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(0, NUM_DRAWS, CHUNK):
        drawn = rng.integers(0, len(sums), (CHUNK, len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(float(differences.mean()), low, high)
