"""What becomes of masks once the model is done with them: files, scores, records. Free of torch, for worker processes.

For Ref-DAVIS17 the sentences of one annotator are also merged, one per object, as its published protocol has it: at
each pixel the object of the highest probability, where that is not below the threshold.
``anno_<a>/<video>/<frame>.png`` are palette images of it: 0 is none, ``int(exp_id) // 4 + 1`` the object. The DAVIS
toolkit reads each ``anno_<a>`` as the results of one run; the mean over the four is the number. Probabilities need not
be kept for that.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.split import Expression, Split
from engine.inference.results_folder import EvaluationFolder
from util.bitmasks import unpack_masks
from util.errors import UserError
from util.mask_files import write_labels, write_mask
from util.metrics import Score, score


@dataclass(frozen=True)
class Place:
    """Where masks go, and where their truth comes from."""

    folder: EvaluationFolder
    split: Split


@dataclass(frozen=True)
class Segmented:
    """Masks of some expressions of one video, packed to bits.

    Attributes:
        expressions: whose masks they are, and of each its row in ``bits``: several may share a sentence.
        bits: [B, T, ceil(H * W / 8)], see ``unpack_masks``.
        size: (H, W) in pixels.
        annotator: of Ref-DAVIS17, whose sentences these are; None elsewhere.
        labels: [T, H, W] merged object numbers of that annotator; None elsewhere.
    """

    expressions: tuple[tuple[Expression, int], ...]
    bits: NDArray[np.uint8]
    size: tuple[int, int]
    annotator: int | None = None
    labels: NDArray[np.uint8] | None = None


def finish(place: Place, segmented: Segmented) -> None:
    """Writes masks, scores them where there is a truth, and records each expression last: only then is it done.

    Raises:
        UserError: if the masks cannot be written, or the truth is missing or damaged.
    """
    cv2.setNumThreads(1)  # there are several such processes
    try:
        if segmented.annotator is not None and segmented.labels is not None:
            _write_merged(place.folder.merged(segmented.annotator), segmented.expressions[0][0], segmented.labels)
        scores = [_finish_unit(place, expression, segmented, row) for expression, row in segmented.expressions]
        for (expression, _), result in zip(segmented.expressions, scores, strict=True):
            place.folder.write_unit(expression, result)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"--output_dir {place.folder.path}: cannot be written ({error}); mend that and start again: what is done "
            "stays"
        ) from None


def _finish_unit(place: Place, expression: Expression, segmented: Segmented, row: int) -> Score | None:
    masks = unpack_masks(segmented.bits[row], segmented.size)
    folder = place.folder.annotations / expression.video / expression.exp_id
    folder.mkdir(parents=True, exist_ok=True)
    for frame, mask in zip(expression.frames, masks, strict=True):
        write_mask(folder / f"{frame}.png", mask)
    if not place.split.has_masks:
        return None
    truth = place.split.masks(expression, list(range(len(expression.frames))), segmented.size)
    return score(masks, truth)


def _write_merged(folder: Path, expression: Expression, labels: NDArray[np.uint8]) -> None:
    place = folder / expression.video
    place.mkdir(parents=True, exist_ok=True)
    for frame, numbers in zip(expression.frames, labels, strict=True):
        write_labels(place / f"{frame}.png", numbers)
