"""Measures beside J and F: presence over time, temporal consistency, IoU of images, and void pixels."""

import numpy as np
from numpy.typing import NDArray

from util.metrics import Areas

Masks = NDArray[np.bool_]

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


def temporal_iou(areas: Areas) -> float:
    """Returns tIoU: frames where prediction and ground truth both show something, of those where either does.

    1 if there are no such frames.

    Source: Long-RVOS (arXiv 2505.12702).
    """
    either = np.count_nonzero(areas.union)
    both = np.count_nonzero((areas.predicted > 0) & (areas.true > 0))
    return both / either if either else 1.0


def video_iou(areas: Areas) -> float:
    """Returns vIoU: the sum of J over frames where both show something, divided by the frames where either does.

    1 if there are no such frames.

    Source: Long-RVOS (arXiv 2505.12702).
    """
    either = np.count_nonzero(areas.union)
    both = (areas.predicted > 0) & (areas.true > 0)
    return float(areas.region_similarity[both].sum()) / either if either else 1.0


def iou_change(ious: NDArray[np.float64]) -> float:
    """Returns temporal consistency, the mean of ``|J[t + 1] - J[t]|``: 0 is steady; 0 for a single frame."""
    return float(np.mean(np.abs(np.diff(ious)))) if len(ious) > 1 else 0.0


def iou_drift(ious: NDArray[np.float64]) -> float:
    """Returns REM's signed form, the mean of ``J[t + 1] - J[t]``: ups and downs cancel, a lost object shows."""
    return float(np.mean(np.diff(ious))) if len(ious) > 1 else 0.0


def without_void(masks: Masks, void: Masks | None) -> Masks:
    """Removes void pixels, which the annotators could not assign, from masks; ``void`` None means there are none."""
    return masks if void is None else masks & ~void


def overall_iou(shared: NDArray[np.int64], union: NDArray[np.int64]) -> float:
    """Returns oIoU: all shared pixels divided by all pixels of either, [N] each; 1 if all are 0. Large objects weigh
    more.
    """
    return float(shared.sum() / union.sum()) if union.sum() else 1.0


def precision_at(ious: NDArray[np.float64], threshold: float, is_strict: bool) -> float:
    """Returns P@K: the share of [N] IoUs that reach ``threshold``.

    Args:
        is_strict: IoUs must exceed the threshold, as in the scripts of A2D and JHMDB; in those of RefCOCO equal
            counts.
    """
    return float(np.mean(ious > threshold if is_strict else ious >= threshold))
