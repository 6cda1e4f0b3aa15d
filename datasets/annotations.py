"""Reads annotation files: checked JSON entries, and the ``meta_expressions.json`` of four datasets."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from datasets.split import Expression
from util.errors import MissingFileError, UserError
from util.files import read_text
from util.recipes import how_to_make

# Returns the ids of an expression's targets, from its fields and their place in the file (for errors).
Targets = Callable[[Any, str], tuple[str, ...] | None]

Row = TypeVar("Row")

LONGEST_NAME = 240  # bytes; file systems allow 255, with a suffix
JSON_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def read_annotations(file: Path, flag: str) -> Any:
    """Reads a JSON file.

    Args:
        flag: the flag that named the dataset, with its value, for errors: ``--mevis_path DIR``.

    Raises:
        UserError: if it is missing, not JSON, or an object in it has a key twice.
    """
    if not file.is_file():
        advice = how_to_make(flag.partition(" ")[2]) or "give the folder of the dataset"
        raise MissingFileError(f"{flag}: {file} is missing; {advice}")
    try:
        return json.loads(read_text(file), object_pairs_hook=_without_duplicates)
    except DuplicateKeyError as error:
        raise DuplicateKeyError(f"{file}: not valid JSON ({error}); download the file again") from None
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, or of a number of 5000 digits
        raise UserError(f"{file}: not valid JSON ({error}); download the file again") from None


def entry(record: Any, key: str, kind: type | tuple[type, ...], source: Path | str) -> Any:
    """Returns ``record[key]``, checked.

    Raises:
        UserError: if ``record`` is not an object, lacks the key, or the value is not a ``kind``.
    """
    if not isinstance(record, dict) or key not in record:
        raise UserError(f"{source}: an entry lacks the key '{key}'; download the file again")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):  # in Python a bool is an int
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise UserError(
            f"{source}: '{key}' must be {' or '.join(JSON_NAMES[one] for one in kinds)}, got {str(value)[:60]!r}; "
            "download the file again"
        )
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(
            f"{source}: '{key}' must be text, got half a surrogate pair in {value[:60]!r}; download it again"
        )
    return value


def texts(record: Any, key: str, source: Path | str) -> list[str]:
    """Returns ``record[key]``, a list of strings.

    Raises:
        UserError: if it is anything else.
    """
    values = entry(record, key, list, source)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{source}: '{key}' must list texts, got {str(values)[:60]!r}; download the file again")
    return values


def frame_names(record: Any, source: Path | str) -> list[str]:
    """Returns ``record["frames"]``: at least one name, no name twice, in the order of the file.

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
    """Checks that files or folders can have this name; returns it.

    Raises:
        UserError: if it is not a valid file name, or would lead out of its folder.
    """
    is_plain = name.isprintable() and not set(name) & {"/", "\\"} and name not in ("", ".", "..")
    if not is_plain or len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{source}: is not a valid file name, got {name[:60]!r}; download the file again")
    return name


def each_row(read: Callable[[Any, int], Row | None], rows: list[Any], faults: list[UserError] | None) -> list[Row]:
    """Calls ``read(row, index)`` for each row; returns the results that are not None.

    Args:
        faults: collects the errors of rows, which are then left out; if None, the first error is raised.
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


@functools.cache  # many expressions share the result
def numbered_frames(count: int) -> tuple[str, ...]:
    """Returns the names of ``count`` frames numbered from 00001, as in A2D and JHMDB."""
    return tuple(f"{number:05d}" for number in range(1, count + 1))


class DuplicateKeyError(UserError):
    """A JSON object has a key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        doubled = sorted({key for key in record if keys.count(key) > 1})
        raise DuplicateKeyError(f"an object names {', '.join(map(repr, doubled))[:200]} twice")
    return record


def read_videos(file: Path, flag: str) -> dict[str, Any]:
    """Reads the records of the videos, by video id.

    Args:
        flag: the flag that named the dataset, with its value, for errors.

    Raises:
        UserError: if the file is missing or damaged, or a video id is not a valid folder name.
    """
    videos: dict[str, Any] = entry(read_annotations(file, flag), "videos", dict, file)
    for video in videos:
        plain_name(video, f"{file}: a video")
    return videos


def video_expressions(
    video: str, record: Any, source: Path, targets: Targets, kind_key: str = "kind"
) -> list[Expression]:
    """Returns the expressions of one video, in the order of the file, with sorted frames.

    Args:
        targets: reads the ids of an expression's targets; returns None if the split hides them.
        kind_key: key of the kind of expression, if the dataset has kinds.

    Raises:
        UserError: if the record has another form.
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
    """Returns the videos whose frames are not listed in the order of their names; records must be checked."""
    return tuple(video for video, record in videos.items() if record["frames"] != sorted(record["frames"]))


def one_object(fields: Any, place: str) -> tuple[str, ...] | None:
    """Returns the number under ``obj_id``, as text without leading zeros; None if the split hides it.

    Raises:
        UserError: if it is not a whole number.
    """
    if "obj_id" not in fields:
        return None
    number = entry(fields, "obj_id", (int, str), place)
    if not is_number(number):
        raise UserError(f"{place}: 'obj_id' must be a whole number, got {str(number)[:60]!r}; download the file again")
    return (str(int(number)),)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a whole number from 0, or its decimal text, of at most nine digits."""
    is_text = isinstance(value, int | str) and not isinstance(value, bool)
    return is_text and str(value).isascii() and str(value).isdecimal() and len(str(value)) <= 9


# -- reading annotation files ------------------------------------------------------------------------------------
