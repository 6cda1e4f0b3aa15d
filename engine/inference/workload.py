"""What there is to do in an evaluation: videos, the longest first, each in parts that do not change with the rest."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from datasets.readers.davis import NUM_ANNOTATORS
from datasets.split import Expression, Split
from models.text import clean_caption
from util.errors import UserError

MAX_LABEL = 255


@dataclass(frozen=True)
class Part:
    """Expressions of one video that are segmented, written and recorded together.

    Attributes:
        captions: cleaned and distinct, in batches that run through the model together.
        expressions: each with the place of its caption among those of all batches.
        annotator: whose sentences these are, if they shall be merged; None otherwise.
    """

    captions: tuple[tuple[str, ...], ...]
    expressions: tuple[tuple[Expression, int], ...]
    annotator: int | None = None


@dataclass(frozen=True)
class VideoWork:
    """The parts of one video that are not done yet."""

    expression: Expression  # any one of them: it knows the frames
    parts: tuple[Part, ...]

    @property
    def video(self) -> str:
        return self.expression.video

    @property
    def num_masks(self) -> int:
        """Frames that the model makes, counted over captions."""
        return len(self.expression.frames) * sum(len(batch) for part in self.parts for batch in part.captions)


def work_to_do(
    split: Split, prompt_batch: int, is_done: Callable[[Expression], bool], merge: bool = False
) -> list[VideoWork]:
    """What is not done yet, the longest first: so that no process is left alone with it at the end.

    A part is done whole or not at all, and does not depend on what else is: its batches, and so the rounding of its
    logits, are those of an evaluation that was never interrupted.

    Args:
        prompt_batch: captions per batch.
        merge: Ref-DAVIS17: a part is one annotator's sentences; otherwise it is one batch.

    Raises:
        UserError: if a sentence is empty, or ``merge`` meets an expression id that is no number.
    """
    split_video = _by_annotator if merge else _by_batch
    work = []
    for _, group in groupby(split.expressions, key=lambda expression: expression.video):
        expressions = list(group)
        _check_captions(split, expressions)
        parts = tuple(
            part
            for part in split_video(expressions, prompt_batch)
            if not all(is_done(expression) for expression, _ in part.expressions)
        )
        if parts:
            work.append(VideoWork(expressions[0], parts))
    return sorted(work, key=lambda video: -video.num_masks)


def object_number(expression: Expression) -> int:
    """Of Ref-DAVIS17, counted from 1."""
    return int(expression.exp_id) // NUM_ANNOTATORS + 1


def _by_batch(expressions: list[Expression], prompt_batch: int) -> Iterator[Part]:
    captions = list(dict.fromkeys(clean_caption(expression.caption) for expression in expressions))
    for batch in _batches(captions, prompt_batch):
        members = [expression for expression in expressions if clean_caption(expression.caption) in batch]
        yield Part((batch,), tuple((one, batch.index(clean_caption(one.caption))) for one in members))


def _by_annotator(expressions: list[Expression], prompt_batch: int) -> Iterator[Part]:
    for expression in expressions:
        if not (expression.exp_id.isascii() and expression.exp_id.isdecimal()):
            raise UserError(
                f"expression ids of Ref-DAVIS17 must be numbers, 4 x object + annotator, got {expression.exp_id!r} in "
                f"{expression.video}; convert the dataset again: python -m datasets.convert davis"
            )
        if object_number(expression) > MAX_LABEL:
            raise UserError(f"{expression.video}: more than {MAX_LABEL} objects, at expression {expression.exp_id}")
    for annotator in range(NUM_ANNOTATORS):
        own = sorted((one for one in expressions if int(one.exp_id) % NUM_ANNOTATORS == annotator), key=object_number)
        if own:
            captions = [clean_caption(expression.caption) for expression in own]
            yield Part(
                tuple(_batches(captions, prompt_batch)), tuple((one, row) for row, one in enumerate(own)), annotator
            )


def _batches(captions: list[str], size: int) -> Iterable[tuple[str, ...]]:
    return (tuple(captions[first : first + size]) for first in range(0, len(captions), size))


def _check_captions(split: Split, expressions: list[Expression]) -> None:
    for expression in expressions:
        if not clean_caption(expression.caption).strip():
            raise UserError(f"{split.source}: the sentence of {'/'.join(expression.key)} is empty; correct the file")
