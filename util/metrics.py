"""Region similarity J and contour accuracy F of masks, exactly as DAVIS defines them."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]

BOUND = 0.008  # tolerance of the contour, as a share of the frame's diagonal


@dataclass(frozen=True)
class Score:
    """Scores of one expression, each the mean over its frames, in [0, 1]."""

    region_similarity: float
    contour_accuracy: float

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.region_similarity + self.contour_accuracy) / 2


def score(prediction: Masks, truth: Masks) -> Score:
    """J and F of one expression.

    Args:
        prediction, truth: [T, H, W] bool, T >= 1.

    Raises:
        ValueError: if the shapes differ or there is no frame.
    """
    if prediction.shape != truth.shape or prediction.ndim != 3 or len(prediction) == 0:
        raise ValueError(f"prediction and truth must be [T, H, W] alike, got {prediction.shape} and {truth.shape}")
    return Score(
        float(np.mean([region_similarity(p, t) for p, t in zip(prediction, truth, strict=True)])),
        float(np.mean([contour_accuracy(p, t) for p, t in zip(prediction, truth, strict=True)])),
    )


def region_similarity(prediction: Masks, truth: Masks) -> float:
    """J: intersection over union of two [H, W] masks; 1 where both are empty."""
    union = np.count_nonzero(prediction | truth)
    return np.count_nonzero(prediction & truth) / union if union else 1.0


def contour_accuracy(prediction: Masks, truth: Masks) -> float:
    """F: harmonic mean of precision and recall of the contour of two [H, W] masks.

    A contour pixel is matched if the other contour has one within ceil(0.008 of the diagonal) pixels.
    Both contours empty: 1. One of them empty: 0.
    """
    predicted, true = boundary(prediction), boundary(truth)
    num_predicted, num_true = np.count_nonzero(predicted), np.count_nonzero(true)
    if num_predicted == 0 or num_true == 0:
        return float(num_predicted == num_true)
    disk = _disk(math.ceil(BOUND * math.hypot(*truth.shape)))
    precision = np.count_nonzero(predicted & _dilate(true, disk)) / num_predicted
    recall = np.count_nonzero(true & _dilate(predicted, disk)) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Masks) -> Masks:
    """The contour of a [H, W] mask: pixels that differ from their neighbour to the east, south or south-east.

    Beyond the edge there is background for the formula, but the last row looks east only, the last
    column south only, and the last corner is never contour.

    Source: the DAVIS-2017 toolkit's segment-to-boundary map, at equal size.
    """
    east, south, south_east = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1] = mask[1:]
    south_east[:-1, :-1] = mask[1:, 1:]
    contour = (mask ^ east) | (mask ^ south) | (mask ^ south_east)
    contour[-1] = mask[-1] ^ east[-1]
    contour[:, -1] = mask[:, -1] ^ south[:, -1]
    contour[-1, -1] = False
    return contour


def _disk(radius: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def _dilate(mask: Masks, disk: NDArray[np.uint8]) -> Masks:
    return cv2.dilate(mask.view(np.uint8), disk).view(bool)
