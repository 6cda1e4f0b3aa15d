"""Lists the videos that are still to segment: longest first, in fixed prompt batches.

The batches do not depend on what is done already, so a resumed run computes the same ones, with the same rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from datasets.readers.davis import NUM_ANNOTATORS
from datasets.split import Expression, Split
from models.text import clean_caption
from util.errors import UserError

MAX_LABEL = 255


@dataclass(frozen=True)
class PromptGroup:
    """Expressions of one video that are segmented, written and recorded together.

    Attributes:
        captions: cleaned, distinct captions, in batches that run through the model together.
        expressions: (expression, row) pairs; the row counts the captions over all batches.
        annotator: Ref-DAVIS17: index of the annotator whose masks are merged; None for other datasets.
    """

    captions: tuple[tuple[str, ...], ...]
    expressions: tuple[tuple[Expression, int], ...]
    annotator: int | None = None


@dataclass(frozen=True)
class VideoWork:
    """The prompt groups of one video that are not done yet.

    Attributes:
        expression: any expression of the video; it names the frames.
    """

    expression: Expression
    groups: tuple[PromptGroup, ...]

    @property
    def video(self) -> str:
        return self.expression.video

    @property
    def num_masks(self) -> int:
        """Number of masks that the model predicts: frames x captions."""
        return len(self.expression.frames) * sum(len(batch) for group in self.groups for batch in group.captions)


def list_workload(
    split: Split, prompt_batch: int, is_done: Callable[[Expression], bool], merge: bool = False
) -> list[VideoWork]:
    """Lists the videos that are not done yet, longest first, so that no process is left with a long one at the end.

    A prompt group is done as a whole or not at all.

    Args:
        prompt_batch: captions per batch.
        is_done: whether an expression is recorded as done.
        merge: Ref-DAVIS17: a prompt group holds the expressions of one annotator; otherwise one batch.

    Raises:
        UserError: if a caption is empty, or with ``merge`` an expression id is not a number.
    """
    group_video = _group_by_annotator if merge else _group_by_batch
    work = []
    for _, expressions_of_video in groupby(split.expressions, key=lambda expression: expression.video):
        expressions = list(expressions_of_video)
        _check_captions(split, expressions)
        groups = tuple(
            group
            for group in group_video(expressions, prompt_batch)
            if not all(is_done(expression) for expression, _ in group.expressions)
        )
        if groups:
            work.append(VideoWork(expressions[0], groups))
    return sorted(work, key=lambda video: -video.num_masks)


def object_number(expression: Expression) -> int:
    """Returns the object number of a Ref-DAVIS17 expression, counted from 1."""
    return int(expression.exp_id) // NUM_ANNOTATORS + 1


def _group_by_batch(expressions: list[Expression], prompt_batch: int) -> Iterator[PromptGroup]:
    captions = list(dict.fromkeys(clean_caption(expression.caption) for expression in expressions))
    for batch in _batches(captions, prompt_batch):
        members = [expression for expression in expressions if clean_caption(expression.caption) in batch]
        yield PromptGroup((batch,), tuple((one, batch.index(clean_caption(one.caption))) for one in members))


def _group_by_annotator(expressions: list[Expression], prompt_batch: int) -> Iterator[PromptGroup]:
    for expression in expressions:
        if not (expression.exp_id.isascii() and expression.exp_id.isdecimal()):
            raise UserError(
                f"expression ids of Ref-DAVIS17 must be numbers, 4 x object + annotator, got {expression.exp_id!r} in "
                f"{expression.video}; convert the dataset again: python -m datasets.convert davis"
            )
        if object_number(expression) > MAX_LABEL:
            raise UserError(
                f"{expression.video}: expression {expression.exp_id} names object {object_number(expression)}, but a "
                f"palette PNG holds at most {MAX_LABEL}; correct the ids"
            )
    for annotator in range(NUM_ANNOTATORS):
        own = sorted((one for one in expressions if int(one.exp_id) % NUM_ANNOTATORS == annotator), key=object_number)
        if own:
            captions = [clean_caption(expression.caption) for expression in own]
            yield PromptGroup(
                tuple(_batches(captions, prompt_batch)), tuple((one, row) for row, one in enumerate(own)), annotator
            )


def _batches(captions: list[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(captions[first : first + size]) for first in range(0, len(captions), size))


def _check_captions(split: Split, expressions: list[Expression]) -> None:
    for expression in expressions:
        if not clean_caption(expression.caption).strip():
            raise UserError(f"{split.source}: the caption of {'/'.join(expression.key)} is empty; correct the file")
