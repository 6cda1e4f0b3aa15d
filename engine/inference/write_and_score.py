"""Worker side: writes the PNGs, scores them, marks the expressions as done.

For Ref-DAVIS17 the expressions of one annotator, one per object, are also merged, as its published protocol asks: each
pixel gets the object of the highest probability, if that reaches the threshold. ``anno_<a>/<video>/<frame>.png`` are
palette images of the result: 0 is background, ``int(exp_id) // 4 + 1`` the object. The DAVIS toolkit reads each
``anno_<a>`` as the results of one run; the published score is the mean over the four.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.split import Expression, Split
from engine.inference.results_folder import ResultsFolder
from util.bitmasks import unpack_masks
from util.errors import UserError
from util.mask_files import write_labels, write_mask
from util.metrics import Score, score


@dataclass(frozen=True)
class Destination:
    """Where masks are written, and where their ground truth is read."""

    folder: ResultsFolder
    split: Split


@dataclass(frozen=True)
class SegmentedGroup:
    """Packed masks of one prompt group.

    Attributes:
        expressions: (expression, row in ``packed``) pairs; expressions with the same caption share a row.
        packed: [B, T, ceil(H * W / 8)] packed masks, see ``unpack_masks``.
        size: source size, (H, W) in pixels.
        annotator: Ref-DAVIS17: index of the annotator; None for other datasets.
        labels: Ref-DAVIS17: [T, H, W] merged object numbers of that annotator; None for other datasets.
    """

    expressions: tuple[tuple[Expression, int], ...]
    packed: NDArray[np.uint8]
    size: tuple[int, int]
    annotator: int | None = None
    labels: NDArray[np.uint8] | None = None


def write_and_score(destination: Destination, segmented: SegmentedGroup) -> None:
    """Writes masks, scores them where the split has ground truth, and records each expression last, as done.

    Raises:
        UserError: if the masks cannot be written, or the ground truth is missing or damaged.
    """
    cv2.setNumThreads(1)  # several workers share the cores
    try:
        if segmented.annotator is not None and segmented.labels is not None:
            _write_merged(destination.folder.merged(segmented.annotator), segmented.expressions[0][0], segmented.labels)
        scores = [
            _write_expression(destination, expression, segmented, row) for expression, row in segmented.expressions
        ]
        for (expression, _), result in zip(segmented.expressions, scores, strict=True):
            destination.folder.write_unit(expression, result)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"--output_dir {destination.folder.path}: cannot be written ({error}); solve that and run the same command "
            "again: finished expressions are kept"
        ) from None


def _write_expression(
    destination: Destination, expression: Expression, segmented: SegmentedGroup, row: int
) -> Score | None:
    masks = unpack_masks(segmented.packed[row], segmented.size)
    folder = destination.folder.annotations / expression.video / expression.exp_id
    folder.mkdir(parents=True, exist_ok=True)
    for frame, mask in zip(expression.frames, masks, strict=True):
        write_mask(folder / f"{frame}.png", mask)
    if not destination.split.has_masks:
        return None
    truth = destination.split.masks(expression, list(range(len(expression.frames))), segmented.size)
    return score(masks, truth)


def _write_merged(folder: Path, expression: Expression, labels: NDArray[np.uint8]) -> None:
    video = folder / expression.video
    video.mkdir(parents=True, exist_ok=True)
    for frame, numbers in zip(expression.frames, labels, strict=True):
        write_labels(video / f"{frame}.png", numbers)
