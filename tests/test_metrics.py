"""J and F against a rendering of their definition, pixel by pixel."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from util.metrics import boundary, contour_accuracy, region_similarity, score

masks = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def boundary_by_definition(mask):
    height, width = mask.shape
    at = lambda y, x: bool(mask[y, x]) if y < height and x < width else False  # noqa: E731
    contour = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            here, east, south, corner = at(y, x), at(y, x + 1), at(y + 1, x), at(y + 1, x + 1)
            if y == height - 1 and x == width - 1:
                contour[y, x] = False
            elif y == height - 1:
                contour[y, x] = here != east
            elif x == width - 1:
                contour[y, x] = here != south
            else:
                contour[y, x] = here != east or here != south or here != corner
    return contour


def f_by_definition(prediction, truth):
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    predicted = np.argwhere(boundary_by_definition(prediction))
    true = np.argwhere(boundary_by_definition(truth))
    if len(predicted) == 0 and len(true) == 0:
        return 1.0
    near = lambda points, others: sum(  # noqa: E731
        any(((point - other) ** 2).sum() <= radius**2 for other in others) for point in points
    )
    precision = near(predicted, true) / len(predicted) if len(predicted) else 1.0
    recall = near(true, predicted) / len(true) if len(true) else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(masks)
def test_boundary_map_is_the_definition(pair):
    assert (boundary(pair[0]) == boundary_by_definition(pair[0])).all()


@given(masks)
@settings(deadline=None)
def test_f_is_the_definition(pair):
    assert contour_accuracy(*pair) == pytest.approx(f_by_definition(*pair), abs=1e-12)


@given(masks)
def test_j_is_intersection_over_union(pair):
    prediction, truth = pair
    union = (prediction | truth).sum()
    assert region_similarity(prediction, truth) == (1.0 if union == 0 else (prediction & truth).sum() / union)


@pytest.mark.parametrize(("shift", "f"), [(8, 1.0), (9, 0.0)])
def test_contours_match_within_the_tolerance_and_not_beyond(shift, f):
    """480 x 854: ceil(0.008 * 979.6) = 8 pixels. A half plane has one column of contour."""
    columns = np.arange(854)
    prediction, truth = (np.broadcast_to(columns < edge, (480, 854)).copy() for edge in (300, 300 + shift))
    assert contour_accuracy(prediction, truth) == f


def test_empty_masks_score_one_together_and_zero_against_something():
    empty, some = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    some[3:6, 3:6] = True
    assert (region_similarity(empty, empty), contour_accuracy(empty, empty)) == (1, 1)
    for pair in ((empty, some), (some, empty)):
        assert (region_similarity(*pair), contour_accuracy(*pair)) == (0, 0)


def test_an_expression_scores_the_mean_over_its_frames():
    truth = np.zeros((2, 9, 9), bool)
    truth[:, 3:6, 3:6] = True
    prediction = truth.copy()
    prediction[1] = False
    result = score(prediction, truth)
    assert (result.region_similarity, result.contour_accuracy, result.mean) == (0.5, 0.5, 0.5)


def test_masks_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="alike"):
        score(np.zeros((2, 9, 9), bool), np.zeros((2, 9, 8), bool))
