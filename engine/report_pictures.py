"""The picture of one expression in a report: a frame under its prediction and its truth. Free of torch."""

import cv2
import numpy as np

from datasets.split import Expression
from engine.prediction_folder import PredictionFolder, annotated
from util.errors import MissingFileError
from util.images import Frame, resize_frame
from util.visualize import FIRST_COLOURS, draw_masks

SIDE = 480  # pixels of the longer side
TRUTH_COLOUR, PREDICTION_COLOUR = FIRST_COLOURS[1], FIRST_COLOURS[2]  # blue, pink
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
    # Resized first: an outline is some pixels wide, and would cover what little there is of a small frame.
    height, width = (max(1, round(side * SIDE / max(size))) for side in size)
    shown = [
        cv2.resize(masks[row].view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).view(bool)[None]
        for masks in (prediction, truth)
    ]
    tinted = draw_masks(resize_frame(frame, height, width), shown[0], [PREDICTION_COLOUR])
    return draw_masks(tinted, shown[1], [TRUTH_COLOUR], opacity=0), expression.frames[indices[row]]
