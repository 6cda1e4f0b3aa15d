"""What J and F leave out: when the object was found, how steadily, and pixels that count for nobody."""

import numpy as np
from numpy.typing import NDArray

from util.metrics import Areas

Masks = NDArray[np.bool_]

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


def temporal_iou(areas: Areas) -> float:
    """tIoU: frames where prediction and truth both show something, of those where either does; 1 if there are none.

    Source: Long-RVOS (arXiv 2505.12702).
    """
    either = np.count_nonzero(areas.union)
    both = np.count_nonzero((areas.predicted > 0) & (areas.true > 0))
    return both / either if either else 1.0


def video_iou(areas: Areas) -> float:
    """vIoU: the sum of J over frames where both show something, by the number where either does; 1 if there are none.

    Source: Long-RVOS (arXiv 2505.12702).
    """
    either = np.count_nonzero(areas.union)
    both = (areas.predicted > 0) & (areas.true > 0)
    return float(areas.region_similarity[both].sum()) / either if either else 1.0


def iou_change(ious: NDArray[np.float64]) -> float:
    """Temporal consistency: the mean of ``|J[t + 1] - J[t]|``; 0 is steady, and so is a single frame."""
    return float(np.mean(np.abs(np.diff(ious)))) if len(ious) > 1 else 0.0


def iou_drift(ious: NDArray[np.float64]) -> float:
    """REM's signed form, the mean of ``J[t + 1] - J[t]``: ups and downs cancel, so it says whether a mask gets lost."""
    return float(np.mean(np.diff(ious))) if len(ious) > 1 else 0.0


def without_void(masks: Masks, void: Masks | None) -> Masks:
    """Masks with the pixels taken out that nobody could assign; all of them where ``void`` is None."""
    return masks if void is None else masks & ~void


def overall_iou(shared: NDArray[np.int64], union: NDArray[np.int64]) -> float:
    """oIoU: all shared pixels by all pixels of either, [N] each, so that large objects weigh more; 1 if all are 0."""
    return float(shared.sum() / union.sum()) if union.sum() else 1.0


def precision_at(ious: NDArray[np.float64], threshold: float, is_strict: bool) -> float:
    """P@K: the share of [N] IoUs that reach ``threshold``.

    Args:
        is_strict: whether they must exceed it: so the scripts of A2D and JHMDB, those of RefCOCO let equal pass.
    """
    return float(np.mean(ious > threshold if is_strict else ious >= threshold))
