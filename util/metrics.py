"""Region similarity J and contour accuracy F of masks, exactly as DAVIS defines them."""

import math
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from util.bitmasks import Masks, Patch, Words, contours, count, count_shared, crop, num_words, surroundings, to_words

BOUND = 0.008  # tolerance of the contour, as a share of the frame's diagonal

# Frames are processed together while their bits fit the processor's caches: 4 of 480p, 1 of 1080p. One by one, small
# frames take a third longer; without a limit, large ones take half as long again.
BATCH_BYTES = 1 << 18


@dataclass(frozen=True)
class Score:
    """Scores of one expression, each the mean over its frames, in [0, 1]."""

    region_similarity: float
    contour_accuracy: float

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.region_similarity + self.contour_accuracy) / 2


@dataclass(frozen=True)
class Areas:
    """Pixel counts of each frame of an expression, [T] int64: all that J needs.

    Attributes:
        predicted, true: pixels of each mask.
        shared: pixels of both masks.
    """

    predicted: NDArray[np.int64]
    true: NDArray[np.int64]
    shared: NDArray[np.int64]

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels of either mask."""
        return self.predicted + self.true - self.shared

    @property
    def region_similarity(self) -> NDArray[np.float64]:
        """J of each frame, [T]: intersection over union; 1 where both masks are empty."""
        return np.where(self.union == 0, 1.0, self.shared / np.maximum(self.union, 1))


@dataclass(frozen=True)
class Counts(Areas):
    """Pixel counts with contours, [T] int64: all that J and F need.

    Attributes:
        predicted_contour, true_contour: pixels of each contour.
        predicted_matched, true_matched: contour pixels with a pixel of the other contour within ceil(0.008 of the
            diagonal)
            pixels.
    """

    predicted_contour: NDArray[np.int64]
    true_contour: NDArray[np.int64]
    predicted_matched: NDArray[np.int64]
    true_matched: NDArray[np.int64]

    @property
    def contour_accuracy(self) -> NDArray[np.float64]:
        """F of each frame, [T]: harmonic mean of precision and recall; 1 without contours, 0 if one has none."""
        precision = self.predicted_matched / np.maximum(self.predicted_contour, 1)
        recall = self.true_matched / np.maximum(self.true_contour, 1)
        total = precision + recall
        f = 2 * precision * recall / np.where(total == 0, 1.0, total)
        return np.where((self.predicted_contour == 0) & (self.true_contour == 0), 1.0, f)

    @property
    def score(self) -> Score:
        """Returns the means over the frames."""
        return Score(float(np.mean(self.region_similarity)), float(np.mean(self.contour_accuracy)))


class Prepared:
    """Masks of an expression, prepared for comparisons: as word masks, with their contours.

    Prepare masks that are compared more than once: the ground truth of two runs, objects that are matched to each
    other.

    Args:
        masks: [T, H, W] bool with at least one pixel. Not kept.
        ignore: [T, H, W] bool, pixels that count for neither J nor F (DAVIS: void). They are removed from the masks
            first,
            so their border becomes contour. Kept, to prepare the masks that these are compared with.

    Raises:
        ValueError: if ``masks`` or ``ignore`` is not such an array, or their shapes differ.
    """

    def __init__(self, masks: Masks, ignore: Masks | None = None) -> None:
        if masks.ndim != 3 or masks.size == 0 or masks.dtype != bool:
            raise ValueError(f"masks must be bool [T, H, W] with at least one pixel, got {masks.dtype} {masks.shape}")
        if ignore is not None and (ignore.shape != masks.shape or ignore.dtype != bool):
            raise ValueError(f"ignore must be bool {masks.shape} as the masks are, got {ignore.dtype} {ignore.shape}")
        self.shape, self.ignore = masks.shape, ignore
        num_frames, height, width = masks.shape
        size = max(1, BATCH_BYTES // (8 * height * num_words(width)))
        self.batches: list[_Batch] = []
        for first in range(0, num_frames, size):
            batch = masks[first : first + size]
            if ignore is not None:
                batch = batch > ignore[first : first + size]  # set and not void
            self.batches.append(_Batch(to_words(batch), height, width))


class _Batch:
    """Some frames of one expression."""

    def __init__(self, masks: Words, height: int, width: int) -> None:
        self.masks, self.area = masks, count(masks)
        self.contour = crop(contours(masks, width))
        self.length = count(self.contour.words)
        self.radius = math.ceil(BOUND * math.hypot(height, width))

    @cached_property
    def surroundings(self) -> Patch:
        """The region where pixels of another contour match this one."""
        return surroundings(self.contour, self.radius)


def score(prediction: Masks | Prepared, truth: Masks | Prepared, ignore: Masks | None = None) -> Score:
    """Scores one expression, J and F; arguments and errors are those of ``count_pixels``."""
    return count_pixels(prediction, truth, ignore).score


def count_areas(prediction: Masks, truth: Masks) -> Areas:
    """Counts the pixels of two masks [T, H, W] bool, without their contours."""
    # Frame by frame: NumPy counts a whole array of bools ten times faster than along axes.
    pairs = list(zip(prediction, truth, strict=True))
    return Areas(
        np.array([np.count_nonzero(p) for p, _ in pairs]),
        np.array([np.count_nonzero(t) for _, t in pairs]),
        np.array([np.count_nonzero(p & t) for p, t in pairs]),
    )


def count_pixels(prediction: Masks | Prepared, truth: Masks | Prepared, ignore: Masks | None = None) -> Counts:
    """Compares the masks of one expression.

    Args:
        prediction, truth: [T, H, W] bool with at least one pixel, or prepared.
        ignore: [T, H, W] bool, pixels that count for nobody. A prepared side brings its own instead, which is then
            that of the other side.

    Returns:
        Equal to the definition in every number, not only in what follows from them.

    Raises:
        ValueError: if the arrays are not of one size, or sides prepared with different ``ignore`` meet.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth must be [T, H, W] alike, got {prediction.shape} and {truth.shape}")
    own = [side.ignore for side in (prediction, truth) if isinstance(side, Prepared)]
    if own and ignore is None:
        ignore = own[0]
    if any(other is not ignore for other in own):
        raise ValueError("ignore must be one array for both sides; prepare the masks with the same one")
    prediction = prediction if isinstance(prediction, Prepared) else Prepared(prediction, ignore)
    truth = truth if isinstance(truth, Prepared) else Prepared(truth, ignore)
    batches = [_count(p, t) for p, t in zip(prediction.batches, truth.batches, strict=True)]
    return Counts(*(np.concatenate([getattr(counts, field.name) for counts in batches]) for field in fields(Counts)))


def _count(prediction: _Batch, truth: _Batch) -> Counts:
    return Counts(
        predicted=prediction.area,
        true=truth.area,
        shared=count(prediction.masks & truth.masks),
        predicted_contour=prediction.length,
        true_contour=truth.length,
        predicted_matched=count_shared(prediction.contour, truth.surroundings),
        true_matched=count_shared(truth.contour, prediction.surroundings),
    )
