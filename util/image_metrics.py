"""Scores of one mask per sentence, as referring image segmentation reports them."""

import numpy as np
from numpy.typing import NDArray

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)


def overall_iou(shared: NDArray[np.int64], union: NDArray[np.int64]) -> float:
    """oIoU: all shared pixels by all pixels of either, [N] each, so that large objects weigh more; 1 if all are 0."""
    return float(shared.sum() / union.sum()) if union.sum() else 1.0


def precision_at(ious: NDArray[np.float64], threshold: float, is_strict: bool) -> float:
    """P@K: the share of [N] IoUs that reach ``threshold``.

    Args:
        is_strict: whether they must exceed it: so the scripts of A2D and JHMDB, those of RefCOCO let equal pass.
    """
    return float(np.mean(ious > threshold if is_strict else ious >= threshold))
