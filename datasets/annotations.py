"""Read annotation files: checked JSON entries, and the ``meta_expressions.json`` of four datasets. Free of torch."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from datasets.split import Expression
from util.errors import MissingFileError, UserError

# From the fields of an expression and their place in the file to the ids of its targets.
Targets = Callable[[Any, str], tuple[str, ...] | None]

Row = TypeVar("Row")

LONGEST_NAME = 240  # bytes, of the 255 that file systems allow, with a suffix
JSON_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def read_annotations(file: Path, flag: str) -> Any:
    """The content of a JSON file.

    Args:
        flag: the option that led here, with its value, for the message: ``--mevis_path DIR``.

    Raises:
        UserError: if it is missing, no JSON, or an object in it names a key twice.
    """
    if not file.is_file():
        raise MissingFileError(f"{flag}: {file} is missing; give the folder of the dataset")
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except DuplicateKeyError as error:
        raise DuplicateKeyError(f"{file}: not valid JSON ({error}); download the file again") from None
    except (ValueError, RecursionError) as error:  # of the decoder, of UTF-8, of a number of 5000 digits
        raise UserError(f"{file}: not valid JSON ({error}); download the file again") from None


def entry(record: Any, key: str, kind: type | tuple[type, ...], source: Path | str) -> Any:
    """``record[key]``, checked.

    Raises:
        UserError: if ``record`` is no object, lacks the key, or holds something that is no ``kind`` there.
    """
    if not isinstance(record, dict) or key not in record:
        raise UserError(f"{source}: an entry lacks the key '{key}'; download the file again")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):  # to Python true is a whole number
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise UserError(
            f"{source}: '{key}' must be {' or '.join(JSON_NAMES[one] for one in kinds)}, got {str(value)[:60]!r}; "
            "download the file again"
        )
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{source}: '{key}' must be text, got half a character in {value[:60]!r}; download it again")
    return value


def texts(record: Any, key: str, source: Path | str) -> list[str]:
    """``record[key]``, a list of strings.

    Raises:
        UserError: if it is none.
    """
    values = entry(record, key, list, source)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{source}: '{key}' must list texts, got {str(values)[:60]!r}; download the file again")
    return values


def frame_names(record: Any, source: Path | str) -> list[str]:
    """``record["frames"]``: at least one name, none twice, in the file's own order.

    Raises:
        UserError: if it is anything else.
    """
    names = texts(record, "frames", source)
    if not names:
        raise UserError(f"{source}: 'frames' must list at least one frame; download the file again")
    if len(set(names)) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: 'frames' lists {doubled} twice; download the file again")
    return [plain_name(name, source) for name in names]


def plain_name(name: str, source: Path | str) -> str:
    """``name``, which files or folders will be called by.

    Raises:
        UserError: if none can be, or it would lead out of its folder.
    """
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and name not in ("", ".", "..")
    if not is_plain or len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{source}: must be named as files can be, got {name[:60]!r}; download the file again")
    return name


def each_row(read: Callable[[Any, int], Row | None], rows: list[Any], faults: list[UserError] | None) -> list[Row]:
    """What ``read`` makes of each row and its place, without those of which it makes None.

    Args:
        faults: gets what is wrong with rows, which are then left out; None raises the first.
    """
    made = []
    for number, row in enumerate(rows):
        try:
            made.append(read(row, number))
        except UserError as error:
            if faults is None:
                raise
            faults.append(error)
    return [one for one in made if one is not None]


@functools.cache  # many expressions share one
def numbered_frames(count: int) -> tuple[str, ...]:
    """The names of frames numbered from 00001, as A2D and JHMDB have them."""
    return tuple(f"{number:05d}" for number in range(1, count + 1))


class DuplicateKeyError(UserError):
    """A JSON object names a key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        doubled = sorted({key for key in record if keys.count(key) > 1})
        raise DuplicateKeyError(f"an object names {', '.join(map(repr, doubled))[:200]} twice")
    return record


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


# -- reading annotation files ------------------------------------------------------------------------------------
