"""Predicted masks for the tests: true ones spoiled by a seed, written by another library than the one that reads."""

import functools
import math

import cv2
import numpy as np
from scipy.spatial.distance import cdist
from test_metrics import boundary_by_definition


def spoiled(truth, rng):
    """Masks moved by a few pixels, with holes; some frames empty, some frames where nothing is get something."""
    masks = np.roll(truth, rng.integers(-3, 4, 2), axis=(-2, -1)) & (rng.random(truth.shape) > 0.05)
    masks[rng.random(len(masks)) < 0.2] = False
    masks[rng.random(len(masks)) < 0.2, 5:9, 5:9] = True
    return masks


def write(folder, names, masks):
    """Writes ``folder/<name>.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in zip(names, masks, strict=True):
        assert cv2.imwrite(str(folder / f"{name}.png"), mask.astype(np.uint8) * 255)


def j_by_definition(prediction, truth):
    union = (prediction | truth).sum()
    return (prediction & truth).sum() / union if union else 1.0


@functools.cache
def _contour(pixels, shape):
    return np.argwhere(boundary_by_definition(np.frombuffer(pixels, bool).reshape(shape)))


def f_by_definition(prediction, truth):
    """As in test_metrics, fast enough for whole videos."""
    contours = [_contour(mask.tobytes(), mask.shape) for mask in (prediction, truth)]
    if not len(contours[0]) or not len(contours[1]):
        return float(len(contours[0]) == len(contours[1]))
    near = cdist(*contours) <= math.ceil(0.008 * math.hypot(*truth.shape))
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
