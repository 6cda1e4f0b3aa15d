"""``meta_expressions.json``, the form that MeViS, Ref-YouTube-VOS, Ref-DAVIS17 and Long-RVOS share. Free of torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.expression import Expression
from datasets.split import entry, frame_names, plain_name, read_annotations
from util.errors import UserError

# From the fields of an expression and their place in the file to the ids of its targets.
Targets = Callable[[Any, str], tuple[str, ...] | None]


def read_videos(file: Path, flag: str) -> dict[str, Any]:
    """The records of the videos, by video id.

    Args:
        flag: the option that led here, with its value, for messages.

    Raises:
        UserError: if the file is missing, damaged, or names a video as no folder can be.
    """
    videos: dict[str, Any] = entry(read_annotations(file, flag), "videos", dict, file)
    for video in videos:
        plain_name(video, f"{file}: a video")
    return videos


def video_expressions(
    video: str, record: Any, source: Path, targets: Targets, kind_key: str = "kind"
) -> list[Expression]:
    """The expressions of one video, in the order of the file; their frames are sorted.

    Args:
        targets: reads the ids of an expression's targets; None where they are hidden.
        kind_key: where the dataset labels the sort of sentence.

    Raises:
        UserError: if the record is not of this form.
    """
    place = f"{source}: {video}"
    frames = tuple(sorted(frame_names(record, place)))
    expressions = []
    for exp_id, fields in entry(record, "expressions", dict, place).items():
        where = f"{place}/{plain_name(exp_id, f'{place}: an expression')}"
        expressions.append(
            Expression(
                video=video,
                exp_id=exp_id,
                caption=entry(fields, "exp", str, where),
                frames=frames,
                object_ids=targets(fields, where),
                kind=entry(fields, kind_key, str, where) if kind_key in fields else None,
            )
        )
    return expressions


def unsorted_videos(videos: dict[str, Any]) -> tuple[str, ...]:
    """Those of checked records whose frames do not stand in the order of their names."""
    return tuple(video for video, record in videos.items() if record["frames"] != sorted(record["frames"]))


def one_object(fields: Any, place: str) -> tuple[str, ...] | None:
    """The number under ``obj_id``, as text without leading zeros; None where the split hides it.

    Raises:
        UserError: if it is no whole number.
    """
    if "obj_id" not in fields:
        return None
    number = entry(fields, "obj_id", (int, str), place)
    if not is_number(number):
        raise UserError(f"{place}: 'obj_id' must be a whole number, got {str(number)[:60]!r}; download the file again")
    return (str(int(number)),)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0 on, or the decimal text of one, of at most nine digits."""
    is_text = isinstance(value, int | str) and not isinstance(value, bool)
    return is_text and str(value).isascii() and str(value).isdecimal() and len(str(value)) <= 9
