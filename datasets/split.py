"""What the reader of a dataset answers: which expressions there are, and their frames and masks. Free of torch."""

import functools
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datasets.expression import Expression
from util.errors import MissingFileError, UserError
from util.images import Frame, image_size, read_image, read_palette

Row = TypeVar("Row")


class Split(ABC):
    """One split of a dataset.

    Attributes:
        expressions: in the order of the annotation file; keys (video id, expression id) are unique.
        has_masks: whether this split's targets are public.
        root: the folder of the dataset.
        source: the annotation file.
        origin: the option that the dataset came by, with its value, for messages: ``--mevis_path DIR``.
        unsorted_videos: videos whose frames the annotation file lists in another order than by name; ours are sorted.
    """

    expressions: list[Expression]
    has_masks: bool
    root: Path
    source: Path
    origin: str = "the dataset"
    unsorted_videos: tuple[str, ...] = ()

    @abstractmethod
    def frame_file(self, expression: Expression, index: int) -> Path:
        """Where the picture at position ``index`` of ``expression.frames`` lies."""

    @abstractmethod
    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """The union of the targets at some frames, [len(indices), H, W].

        Args:
            indices: positions in ``expression.frames``.
            size: (H, W) in pixels of the frames.

        Raises:
            MissingFileError, MaskCountError, MaskSizeError: if there are none, too few or too many, of another size.
            UserError: if they are damaged.
            ValueError: for a position without annotation, see ``Expression.annotated``.
        """

    def void(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_] | None:  # noqa: ARG002
        """Pixels at some frames that count neither for nor against a prediction, [len(indices), H, W]; None is none.

        Args:
            indices, size: as of ``masks``.
        """
        return None

    def source_size(self, expression: Expression) -> tuple[int, int]:
        """(H, W) in pixels of the frames.

        Raises:
            UserError: if the first frame is missing or no image.
        """
        return image_size(self.present(self.frame_file(expression, 0)))

    def iter_frames(
        self, expression: Expression, indices: list[int], at_least: tuple[int, int] | None = None
    ) -> Iterator[Frame]:
        """The frames at some positions, each [H, W, 3] uint8 RGB, of one size; read one by one.

        Args:
            at_least: (height, width) in pixels: files may be decoded at a reduced scale that is not below it.

        Raises:
            UserError: if one is missing, damaged or of another size than the first.
        """
        first: tuple[int, ...] | None = None
        for index, repeats in itertools.groupby(indices):  # the last frame of a short video comes several times
            file = self.present(self.frame_file(expression, index))
            frame = read_image(file, at_least)
            first = first or frame.shape
            if frame.shape != first:
                raise UserError(
                    f"{file}: frames of a video must share one size, got {frame.shape[1]} x {frame.shape[0]} after "
                    f"{first[1]} x {first[0]}; replace the file"
                )
            yield from (frame for _ in repeats)

    def read_frames(
        self, expression: Expression, indices: list[int], at_least: tuple[int, int] | None = None
    ) -> list[Frame]:
        """All frames of ``iter_frames``."""
        return list(self.iter_frames(expression, indices, at_least))

    def read_numbers(self, file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        """[H, W] of a PNG whose values are numbers of objects or classes.

        Raises:
            MissingFileError, MaskSizeError: if it is not there, or of another size than the frames, (H, W).
        """
        values = read_palette(self.present(file))
        if values.shape != size:
            raise MaskSizeError(
                f"{file}: must have the size of the frames, {size[1]} x {size[0]}, got {values.shape[1]} x "
                f"{values.shape[0]}; unpack the dataset again"
            )
        return values

    def present(self, file: Path) -> Path:
        """``file`` itself.

        Raises:
            MissingFileError: if it is not there.
        """
        if not file.is_file():
            raise MissingFileError(f"{self.origin}: {file} is missing; download or unpack the dataset again")
        return file


class MaskCountError(UserError):
    """There are more or fewer masks than frames."""


class MaskSizeError(UserError):
    """A mask has another size than its frame."""


# -- reading annotation files ------------------------------------------------------------------------------------


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


LONGEST_NAME = 240  # bytes, of the 255 that file systems allow, with a suffix
JSON_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


class DuplicateKeyError(UserError):
    """A JSON object names a key twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        doubled = sorted({key for key in record if keys.count(key) > 1})
        raise DuplicateKeyError(f"an object names {', '.join(map(repr, doubled))[:200]} twice")
    return record
