"""tIoU, vIoU, temporal consistency, void, oIoU and P@K in closed form."""

import numpy as np
import pytest

from engine.scoring.measures import (
    iou_change,
    iou_drift,
    overall_iou,
    precision_at,
    temporal_iou,
    video_iou,
    without_void,
)
from util.metrics import count_areas


def frames(*pixels):
    """[T, 1, 8]: each frame shows the given pixels."""
    masks = np.zeros((len(pixels), 1, 8), bool)
    for mask, shown in zip(masks, pixels, strict=True):
        mask[0, list(shown)] = True
    return masks


# J: half, all, one third, 0 (missed), 0 (made up), 1 (nothing there).
PREDICTION = frames([0], [1, 2], [3, 4], [], [5], [])
TRUTH = frames([0, 1], [1, 2], [4, 5], [6], [], [])
IOUS = [1 / 2, 1, 1 / 3, 0, 0, 1]


def test_iou_of_each_frame_counts_pixels_and_is_one_where_nothing_is():
    areas = count_areas(PREDICTION, TRUTH)
    assert areas.region_similarity == pytest.approx(IOUS)
    assert areas.union.tolist() == [2, 2, 3, 1, 1, 0]


def test_tiou_is_frames_where_both_show_something_by_frames_where_either_does():
    assert temporal_iou(count_areas(PREDICTION, TRUTH)) == 3 / 5


def test_viou_sums_j_where_both_show_something_by_frames_where_either_does():
    assert video_iou(count_areas(PREDICTION, TRUTH)) == pytest.approx((1 / 2 + 1 + 1 / 3) / 5)


def test_nothing_predicted_where_nothing_is_is_perfect():
    nothing = count_areas(frames([], []), frames([], []))
    assert (temporal_iou(nothing), video_iou(nothing)) == (1, 1)


def test_a_constant_shift_in_quality_changes_neither_and_flicker_changes_the_absolute_form_alone():
    assert (iou_change(np.array([0.3, 0.3, 0.3])), iou_drift(np.array([0.3, 0.3, 0.3]))) == (0, 0)
    flicker = np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert (iou_change(flicker), iou_drift(flicker)) == (1, 0)
    assert iou_drift(np.array([0.9, 0.6, 0.3])) == pytest.approx(-0.3)  # the object gets lost
    assert (iou_change(np.array([0.5])), iou_drift(np.array([0.5]))) == (0, 0)


def test_void_pixels_count_for_nobody():
    void = frames([1], [], [3, 5], [6], [5], [])
    areas = count_areas(without_void(PREDICTION, void), without_void(TRUTH, void))
    assert areas.region_similarity.tolist() == [1, 1, 1, 1, 1, 1]
    assert without_void(PREDICTION, None) is PREDICTION


def test_overall_iou_weighs_by_pixels():
    assert overall_iou(np.array([1, 90]), np.array([10, 90])) == 91 / 100
    assert overall_iou(np.array([0]), np.array([0])) == 1


def test_precision_counts_equal_only_where_it_is_not_strict():
    ious = np.array([0.5, 0.7, 0.2, 0.9])
    assert precision_at(ious, 0.5, is_strict=False) == 3 / 4
    assert precision_at(ious, 0.5, is_strict=True) == 2 / 4
