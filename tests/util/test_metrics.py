"""J and F against renderings of their definition: one pixel by pixel, one in whole arrays for large masks."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from util import metrics
from util.metrics import Prepared, count_pixels, score

# -- the definition, in the order of ``numbers`` -----------------------------------------------------------------


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


def num_matched(points, others, radius):
    """How many points have another within the radius, by all distances."""
    return (((points[:, None] - others[None]) ** 2).sum(axis=2) <= radius**2).any(axis=1).sum()


def numbers_by_definition(prediction, truth):
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    predicted = np.argwhere(boundary_by_definition(prediction))
    true = np.argwhere(boundary_by_definition(truth))
    return (
        *((prediction & truth).sum(), (prediction | truth).sum(), prediction.sum(), truth.sum()),
        *(len(predicted), len(true), num_matched(predicted, true, radius), num_matched(true, predicted, radius)),
    )


def f_by_definition(prediction, truth):
    *_, num_predicted, num_true, predicted_matched, true_matched = numbers_by_definition(prediction, truth)
    if num_predicted == 0 and num_true == 0:
        return 1.0
    precision = predicted_matched / num_predicted if num_predicted else 1.0
    recall = true_matched / num_true if num_true else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_in_arrays(mask):
    padded = np.pad(mask, ((0, 1), (0, 1)))
    east, south, corner = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    contour = (mask ^ east) | (mask ^ south) | (mask ^ corner)
    contour[-1] = mask[-1] ^ east[-1]
    contour[:, -1] = mask[:, -1] ^ south[:, -1]
    contour[-1, -1] = False
    return contour


def disk(radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)


def numbers_in_arrays(prediction, truth):
    element = disk(math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
    predicted, true = boundary_in_arrays(prediction), boundary_in_arrays(truth)
    near_predicted, near_true = (cv2.dilate(side.astype(np.uint8), element) > 0 for side in (predicted, true))
    return (
        *((prediction & truth).sum(), (prediction | truth).sum(), prediction.sum(), truth.sum()),
        *(predicted.sum(), true.sum(), (predicted & near_true).sum(), (true & near_predicted).sum()),
    )


def numbers(counts):
    """Those of each frame, [T, 8]."""
    contours = (counts.predicted_contour, counts.true_contour, counts.predicted_matched, counts.true_matched)
    return np.stack([counts.shared, counts.union, counts.predicted, counts.true, *contours], axis=1)


def assert_equal_counts(counts, rendering, prediction, truth):
    expected = [rendering(p, t) for p, t in zip(prediction, truth, strict=True)]
    assert (numbers(counts) == np.array(expected)).all()


# -- random masks ------------------------------------------------------------------------------------------------

SHAPES = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=12)
SIDES = st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 65, 127, 128, 129]), st.integers(100, 300))


def small_masks(num):
    return SHAPES.flatmap(lambda shape: st.tuples(*[arrays(bool, shape) for _ in range(num)]))


def outlined(rng, size, thickness):
    """Polygons that may leave the frame: filled with thickness -1, else lines."""
    canvas = np.zeros(size, np.uint8)
    for _ in range(rng.integers(1, 4)):
        corners = (rng.uniform(-0.3, 1.3, (rng.integers(2, 6), 2)) * size[::-1]).astype(np.int32)
        if thickness < 0:
            cv2.fillPoly(canvas, [corners], 1)
        else:
            cv2.polylines(canvas, [corners], True, 1, thickness)
    return canvas.astype(bool)


def one_pixel(rng, size):
    mask = np.zeros(size, bool)
    mask[rng.integers(size[0]), rng.integers(size[1])] = True
    return mask


def bordered(rng, size):
    """Things at all four edges, or some of them."""
    mask = np.zeros(size, bool)
    for edge in np.flatnonzero(rng.random(4) < 0.6):
        rotated = np.rot90(mask, edge)  # a view
        rotated[-1, rng.integers(rotated.shape[1]) :] = True
    return mask


KINDS = {
    "empty": lambda rng, size: np.zeros(size, bool),
    "full": lambda rng, size: np.ones(size, bool),
    "one pixel": one_pixel,
    "all but one pixel": lambda rng, size: ~one_pixel(rng, size),
    "blobs": lambda rng, size: outlined(rng, size, -1),
    "thin lines": lambda rng, size: outlined(rng, size, 1),
    "at the edges": bordered,
    "noise": lambda rng, size: rng.random(size) < rng.choice([0.001, 0.02, 0.5, 0.98]),
    "noisy blobs": lambda rng, size: outlined(rng, size, -1) ^ (rng.random(size) < 0.01),
}
ANY_KIND = st.sampled_from(sorted(KINDS))


def made(rng, size, kinds):
    return np.stack([KINDS[kind](rng, size) for kind in kinds])


@given(small_masks(2))
@settings(max_examples=300, deadline=None)
def test_every_count_is_the_definitions_pixel_by_pixel(pair):
    assert_equal_counts(count_pixels(*pair), numbers_by_definition, *pair)


@given(st.tuples(SIDES, SIDES), st.lists(st.tuples(ANY_KIND, ANY_KIND), min_size=1, max_size=8), st.integers(0))
@settings(max_examples=600, deadline=None)
def test_every_count_is_the_definitions_on_masks_of_every_kind(size, kinds, seed):
    rng = np.random.default_rng(seed)
    prediction, truth = (made(rng, size, side) for side in zip(*kinds, strict=True))
    assert_equal_counts(count_pixels(prediction, truth), numbers_in_arrays, prediction, truth)


@pytest.mark.parametrize("size", [(480, 854), (720, 1280), (1080, 1920), (1920, 1080), (1, 1920), (1080, 1)])
def test_every_count_is_the_definitions_at_the_sizes_of_videos(size):
    rng = np.random.default_rng(sum(size))
    truth = made(rng, size, ["blobs", "thin lines", "noise", "at the edges", "full"])
    prediction = made(rng, size, ["noisy blobs", "blobs", "noise", "all but one pixel", "one pixel"])
    assert_equal_counts(count_pixels(prediction, truth), numbers_in_arrays, prediction, truth)


@given(small_masks(1))
@settings(deadline=None)
def test_both_renderings_of_the_contour_are_one(masks):
    for mask in masks[0]:
        assert (boundary_in_arrays(mask) == boundary_by_definition(mask)).all()


@given(small_masks(2))
@settings(deadline=None)
def test_j_and_f_follow_from_the_definition(pair):
    counts = count_pixels(*pair)
    for frame, (prediction, truth) in enumerate(zip(*pair, strict=True)):
        union = (prediction | truth).sum()
        assert counts.region_similarity[frame] == (1.0 if union == 0 else (prediction & truth).sum() / union)
        assert counts.contour_accuracy[frame] == pytest.approx(f_by_definition(prediction, truth), abs=1e-12)


@pytest.mark.parametrize("batch_bytes", [1, 5000, 1 << 30])
def test_frames_are_counted_alike_alone_and_together(monkeypatch, batch_bytes):
    rng = np.random.default_rng(1)
    kinds = ["blobs", "empty", "thin lines", "noise", "blobs", "full", "at the edges"]
    prediction, truth = made(rng, (130, 200), kinds), made(rng, (130, 200), kinds[::-1])
    monkeypatch.setattr(metrics, "BATCH_BYTES", batch_bytes)
    assert_equal_counts(count_pixels(prediction, truth), numbers_in_arrays, prediction, truth)


# -- one side compared with several ------------------------------------------------------------------------------


def test_prepared_masks_compare_as_fresh_ones_do_in_any_order_and_on_either_side():
    rng = np.random.default_rng(2)
    several = [made(rng, (90, 140), rng.choice(sorted(KINDS), 5)) for _ in range(6)]
    prepared = [Prepared(masks) for masks in several]
    for i, j in rng.permutation([(i, j) for i in range(6) for j in range(6)]):
        fresh = numbers(count_pixels(several[i], several[j]))
        for pair in ((prepared[i], prepared[j]), (several[i], prepared[j]), (prepared[i], several[j])):
            assert (numbers(count_pixels(*pair)) == fresh).all()
            assert score(*pair) == score(several[i], several[j])


def test_prepared_masks_do_not_see_the_array_change():
    truth = made(np.random.default_rng(3), (90, 140), ["blobs", "noise"])
    prepared, original = Prepared(truth), truth.copy()
    truth[:] = False
    assert score(original, prepared) == score(original, original)


# -- pixels that count for nobody --------------------------------------------------------------------------------


@given(small_masks(3))
@settings(deadline=None)
def test_ignored_pixels_are_taken_out_of_both_before_anything(masks):
    prediction, truth, ignore = masks
    expected = numbers(count_pixels(prediction & ~ignore, truth & ~ignore))
    assert (numbers(count_pixels(prediction, truth, ignore)) == expected).all()
    prepared = Prepared(truth, ignore)
    for side in (prediction, prediction | ignore, Prepared(prediction, ignore)):
        assert (numbers(count_pixels(side, prepared)) == expected).all()
        assert score(side, prepared) == score(prediction, truth, ignore)


def test_sides_that_ignore_different_pixels_are_refused():
    masks, ignore = np.ones((2, 5, 5), bool), np.zeros((2, 5, 5), bool)
    for pair in (
        (Prepared(masks), Prepared(masks, ignore)),
        (Prepared(masks, ignore), Prepared(masks)),
        (Prepared(masks, ignore), Prepared(masks, ignore.copy())),
        (Prepared(masks), masks, ignore),
        (masks, Prepared(masks, ignore.copy()), ignore),
    ):
        with pytest.raises(ValueError, match="one array for both sides"):
            score(*pair)


# -- scores of known masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "f"), [(8, 1.0), (9, 0.0)])
def test_contours_match_within_the_tolerance_and_not_beyond(shift, f):
    """480 x 854: ceil(0.008 * 979.6) = 8 pixels. A half plane has one column of contour."""
    columns = np.arange(854)
    prediction, truth = (np.broadcast_to(columns < edge, (1, 480, 854)) for edge in (300, 300 + shift))
    assert score(prediction, truth).contour_accuracy == f


def test_empty_masks_score_one_together_and_zero_against_something():
    empty, some = np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool)
    some[:, 3:6, 3:6] = True
    assert score(empty, empty).mean == 1
    for pair in ((empty, some), (some, empty)):
        result = score(*pair)
        assert (result.region_similarity, result.contour_accuracy) == (0, 0)


def test_an_expression_scores_the_mean_over_its_frames():
    truth = np.zeros((2, 9, 9), bool)
    truth[:, 3:6, 3:6] = True
    prediction = truth.copy()
    prediction[1] = False
    result = score(prediction, truth)
    assert (result.region_similarity, result.contour_accuracy, result.mean) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("shape", [(2, 9, 8), (1, 9, 9), (9, 9), (0, 9, 9)])
def test_masks_of_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="alike"):
        score(np.zeros((2, 9, 9), bool), np.zeros(shape, bool))


@pytest.mark.parametrize(
    "masks", [np.zeros((9, 9), bool), np.zeros((0, 9, 9), bool), np.zeros((2, 0, 9), bool), np.zeros((2, 9, 9), "u1")]
)
def test_what_is_no_video_of_masks_is_refused(masks):
    with pytest.raises(ValueError, match="masks must be bool"):
        score(masks, masks)


@pytest.mark.parametrize("ignore", [np.zeros((2, 9, 8), bool), np.zeros((2, 9, 9), np.uint8)])
def test_ignored_pixels_that_are_not_like_the_masks_are_refused(ignore):
    masks = np.zeros((2, 9, 9), bool)
    with pytest.raises(ValueError, match="ignore must be bool"):
        score(masks, masks, ignore)
