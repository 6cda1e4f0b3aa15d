"""The picture of one expression in a report: a frame under its prediction and its truth. Free of torch."""

import numpy as np

from datasets.expression import Expression
from engine.prediction_folder import PredictionFolder, annotated
from util.errors import MissingFileError
from util.frames import Frame, resize_frame
from util.visualize import FIRST_COLOURS, draw_masks

WIDTH = 480  # pixels, at most
GREY = 96  # of the ground where a dataset has no pictures


def draw_frame(predictions: PredictionFolder, expression: Expression) -> tuple[Frame, str]:
    """The frame with the largest truth, or of nothing else the largest prediction; and its name."""
    split, size, indices = predictions.split, predictions.size(expression), annotated(expression)
    truth, prediction = split.masks(expression, indices, size), predictions.read(expression)
    areas = (truth if truth.any() else prediction).sum(axis=(1, 2))
    row = int(areas.argmax())
    try:
        frame = split.read_frames(expression, [indices[row]])[0]
    except MissingFileError:  # to score, pictures are not needed
        frame = np.full((*size, 3), GREY, np.uint8)
    tinted = draw_masks(frame, prediction[row][None], [FIRST_COLOURS[0]])
    outlined = draw_masks(tinted, truth[row][None], [FIRST_COLOURS[1]], opacity=0)
    height = max(1, round(size[0] * min(1, WIDTH / size[1])))
    return resize_frame(outlined, height, min(WIDTH, size[1])), expression.frames[indices[row]]
