"""Protocol A of Ref-DAVIS17: merges objects per annotator, matches them to ground truth, averages four annotators.

Merging takes the most probable object of each pixel. That needs probabilities, so it is done where the model runs
(``engine.inference.segment_split.merge_objects``) and stored as ``anno_<0-3>/<video>/<frame>.png``, pixels being
object
numbers. From binary masks, ``<video>/<exp_id>/<frame>.png``, the merge is known except at pixels that several objects
claim; these go to the first of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.readers.davis import ANNOTATOR_FOLDERS, NUM_ANNOTATORS, RefDAVIS17
from datasets.readers.png_masks import VOID
from datasets.split import Expression
from engine.scoring.prediction_folder import PredictionFolder, listed, visible_names
from engine.scoring.summary import Values, entries, means_of
from util.errors import MissingFileError, UserError
from util.extras import extra_module
from util.mask_files import PALETTE, check_mask_file, read_numbers
from util.metrics import Prepared, score

MEANS = ("J", "F", "J&F")
MOST_PROPOSALS = 20  # most that the DAVIS toolkit accepts

Numbers = NDArray[np.uint8]


def merge_masks(masks: NDArray[np.bool_]) -> Numbers:
    """Merges masks: each pixel gets the number of the first object that claims it, 0 if none does.

    Args:
        masks: [N, T, H, W], objects in the order of their expressions.

    Returns:
        [T, H, W] with values 0 to N.
    """
    return np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0).astype(np.uint8)


def match_objects(proposals: Numbers, truth: Numbers) -> list[Values]:
    """Returns J, F and J&F of each ground truth object, for the assignment of proposals with the highest sum of J&F.

    Objects are those up to the highest number in the first frame. Void pixels are ignored. Objects without a proposal
    are
    scored against an empty mask; proposals without an object are not scored.

    Args:
        proposals: [T, H, W] with 0 and the numbers of proposals.
        truth: [T, H, W] with 0, the numbers of objects, and 255 for void.

    Source: the DAVIS-2017 toolkit, unsupervised task.
    """
    valid = truth != VOID
    num_objects = int(truth[0][valid[0]].max(initial=0))
    num_proposals = max(int(proposals.max()), num_objects)
    objects = [Prepared(truth == number) for number in range(1, num_objects + 1)]
    proposed = [Prepared((proposals == number) & valid) for number in range(1, num_proposals + 1)]
    results = [[score(proposal, mask) for mask in objects] for proposal in proposed]
    means = np.array([[result.mean for result in row] for row in results]).reshape(num_proposals, num_objects)
    optimize = extra_module("scipy.optimize", "the protocol A of Ref-DAVIS17")
    rows, columns = optimize.linear_sum_assignment(means, maximize=True)
    matched = [results[row][column] for column, row in sorted(zip(columns, rows, strict=True))]
    return [entries(result) for result in matched]


@dataclass(frozen=True)
class Sequence:
    """The expressions of one annotator about one video."""

    annotator: int
    expressions: tuple[Expression, ...]

    @property
    def video(self) -> str:
        return self.expressions[0].video


class DavisProtocol:
    """Protocol A for one folder of predictions.

    Args:
        split: a split with masks.
        predictions: binary masks, used if ``merged`` is None.
        merged: folder with ``anno_0`` to ``anno_3``.
    """

    def __init__(self, split: RefDAVIS17, predictions: PredictionFolder, merged: Path | None) -> None:
        self.split, self.predictions, self.merged = split, predictions, merged
        extra_module("scipy.optimize", "the protocol A of Ref-DAVIS17")  # checked before any work

    def sequences(self, expressions: list[Expression]) -> list[Sequence]:
        """Returns the sequences to score: each video four times, without those of which an expression is left out.

        Raises:
            UserError: if the expression ids of a video are not those of four annotators.
        """
        wanted = {expression.key for expression in expressions}
        videos: dict[str, dict[str, Expression]] = {}
        for expression in self.split.expressions:
            videos.setdefault(expression.video, {})[expression.exp_id] = expression
        sequences = []
        for video, by_id in videos.items():
            if set(by_id) != {str(number) for number in range(len(by_id))} or len(by_id) % NUM_ANNOTATORS:
                raise UserError(
                    f"{self.split.source}: {video} must have expression ids 0 to 4N-1, {NUM_ANNOTATORS} annotators "
                    f"for each of N objects, got {listed(by_id)}; convert the dataset again"
                )
            if all(expression.key in wanted for expression in by_id.values()):
                sequences += [
                    Sequence(number, tuple(by_id[str(i)] for i in range(number, len(by_id), NUM_ANNOTATORS)))
                    for number in range(NUM_ANNOTATORS)
                ]
        return sequences

    def check_merged(self, expressions: list[Expression], allow_partial: bool) -> list[Expression]:
        """Returns the expressions whose merged masks of all four annotators exist; reads headers, not pixels.

        Raises:
            UserError: if masks belong to no frame, are missing, have colours, or another size.
        """
        self._refuse_extras()
        complete, missing = [], []
        for expression in {expression.video: expression for expression in expressions}.values():
            files = [file for number in range(NUM_ANNOTATORS) for file in self._merged_files(number, expression)]
            absent = [str(file) for file in files if not file.is_file()]
            missing += absent
            if not absent:
                complete.append(expression.video)
                for file in files:
                    check_mask_file(file, self.predictions.size(expression), ("L", PALETTE))
        if missing and not (allow_partial and complete):
            raise MissingFileError(
                f"{self.predictions.origin}: {len(missing)} merged masks are missing: {listed(missing)}; predict them, "
                "or score the complete ones with --partial"
            )
        return [expression for expression in expressions if expression.video in complete]

    def _refuse_extras(self) -> None:
        """Refuses merged masks that belong to no frame of the split."""
        assert self.merged is not None, "asked of merged masks alone"
        frames = {
            expression.video: {f"{frame}.png" for frame in expression.frames} for expression in self.split.expressions
        }
        extra = []
        for annotator in ANNOTATOR_FOLDERS:
            for video in sorted(visible_names(self.merged / annotator)):
                names = visible_names(self.merged / annotator / video) - frames[video] if video in frames else [""]
                extra += [f"{annotator}/{video}/{name}" for name in sorted(names)]
        if extra:
            raise UserError(
                f"{self.predictions.origin}: holds masks of no frame of {self.split.source}: {listed(extra)}; remove "
                "them, or check --split"
            )

    def measure(self, sequence: Sequence) -> tuple[Sequence, list[Values]]:
        """Scores each ground truth object of a sequence.

        Raises:
            UserError: if there are too many proposals, or the first frame shows no object.
        """
        first = sequence.expressions[0]
        size = self.predictions.size(first)
        proposals = self._proposals(sequence, size)
        if proposals.max() > MOST_PROPOSALS:
            raise UserError(
                f"{self.predictions.origin}: anno_{sequence.annotator}/{sequence.video} must number its objects 1 to "
                f"{MOST_PROPOSALS}, got {proposals.max()}; write 0 for background, then one number per expression"
            )
        results = match_objects(proposals, self.split.object_numbers(first, size))
        if not results:
            raise UserError(f"{self.split.annotations / first.video}: the first frame must show an object, got none")
        return sequence, results

    def _proposals(self, sequence: Sequence, size: tuple[int, int]) -> Numbers:
        if self.merged is not None:
            files = self._merged_files(sequence.annotator, sequence.expressions[0])
            return np.stack([read_numbers(file, size) for file in files])
        return merge_masks(np.stack([self.predictions.read(expression) for expression in sequence.expressions]))

    def _merged_files(self, annotator: int, expression: Expression) -> list[Path]:
        assert self.merged is not None, "asked of merged masks alone"
        folder = self.merged / ANNOTATOR_FOLDERS[annotator] / expression.video
        return [folder / f"{frame}.png" for frame in expression.frames]


def summarise_annotators(results: list[tuple[Sequence, list[Values]]]) -> dict[str, Any]:
    """Averages J, F and J&F over the objects of all videos per annotator, then over annotators."""
    ordered = sorted(results, key=lambda result: (result[0].annotator, result[0].video))
    annotators = {
        str(number): means_of(
            [entry for sequence, entries in ordered if sequence.annotator == number for entry in entries], MEANS
        )
        for number in range(NUM_ANNOTATORS)
    }
    objects = {
        f"anno_{sequence.annotator}/{sequence.video}/{number}": entry
        for sequence, entries in ordered
        for number, entry in enumerate(entries, start=1)
    }
    return {**means_of(list(annotators.values()), MEANS), "annotators": annotators, "objects": objects}
