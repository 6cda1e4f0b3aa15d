"""A part of a split: its first videos, or those that are named. Free of torch."""

from datasets.expression import Expression
from datasets.split import Split
from util.errors import UserError, did_you_mean


def chosen_expressions(split: Split, limit: int | None = None, names: list[str] | None = None) -> list[Expression]:
    """The expressions of some videos, in the order of the split.

    Args:
        limit: how many videos, from the first on; None is all.
        names: only these; None is all. ``limit`` counts what they leave.

    Raises:
        UserError: if one of the names is no video of the split.
    """
    videos = list(dict.fromkeys(expression.video for expression in split.expressions))
    for name in names or ():
        if name not in videos:
            raise UserError(f"--videos: {name[:60]!r} is no video of {split.source}{did_you_mean(name, videos)}")
    chosen = set([video for video in videos if names is None or video in names][:limit])
    return [expression for expression in split.expressions if expression.video in chosen]


def choose_videos(split: Split, limit: int | None = None, names: list[str] | None = None) -> None:
    """Leaves some videos in a split; arguments and errors are those of ``chosen_expressions``."""
    split.expressions = chosen_expressions(split, limit, names)
