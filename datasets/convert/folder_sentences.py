"""Reads the CSV of captions of a user's own videos, and assigns videos to splits."""

import csv
import io
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.errors import MissingFileError, UserError, did_you_mean

COLUMNS = ("video", "objects", "sentence")
SPLITS = ("train", "valid_u")  # the splits of MeViS that have masks


@dataclass(frozen=True)
class Row:
    """A caption and the numbers of the objects it means; ``place`` is file and row, for errors."""

    place: str
    video: str
    objects: tuple[int, ...]
    sentence: str
    split: str | None


def read_rows(file: Path, videos: Collection[str]) -> list[Row]:
    """Reads a CSV with the columns video, objects, sentence and perhaps split.

    Args:
        videos: names that the column video may hold.

    Raises:
        UserError: if the file is missing or not such a CSV, or a cell is wrong.
    """
    try:
        lines = list(csv.reader(io.StringIO(_text(file), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{file}: must be CSV ({error}); close every quote, and double one inside a quote") from None
    if not lines:
        raise UserError(f"{file}: must begin with the columns {', '.join(COLUMNS)}, got an empty file")
    header = [name.strip() for name in lines[0]]
    _check_header(header, file)
    rows = []
    for number, cells in enumerate(lines[1:], start=2):
        if any(cell.strip() for cell in cells):
            rows.append(_row(f"{file}: row {number}", header, cells, videos))
    if not rows:
        raise UserError(f"{file}: must hold sentences below its header, got none; add a row for each")
    return rows


def splits_of(rows: Iterable[Row], val_share: float, seed: int) -> dict[str, str]:
    """Returns {video: split}, videos in the order of their first row.

    Args:
        val_share: share of the videos that go to valid_u if the rows do not assign them; of two videos or more at
            least
            one and never all, unless the share is 0 or 1.
        seed: random seed. The choice depends only on the seed and a video's name: more videos do not reorder others.

    Raises:
        UserError: if rows disagree about a video.
    """
    splits: dict[str, str | None] = {}
    for row in rows:
        if splits.setdefault(row.video, row.split) != row.split:
            raise UserError(
                f"{row.place}: a video belongs to one split, got {row.split} for {row.video} after "
                f"{splits[row.video]}; make them equal"
            )
    luck = {video: np.random.default_rng([seed, *video.encode()]).random() for video in splits}
    num_valid = round(val_share * len(luck))
    if 0 < val_share < 1 and len(luck) > 1:
        num_valid = min(max(num_valid, 1), len(luck) - 1)
    drawn = set(sorted(luck, key=luck.__getitem__)[:num_valid])
    return {video: split or ("valid_u" if video in drawn else "train") for video, split in splits.items()}


def _text(file: Path) -> str:
    if not file.is_file():
        raise MissingFileError(f"--sentences {file}: no such file; give a CSV with the columns {', '.join(COLUMNS)}")
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")  # spreadsheets begin UTF-8 files with a byte-order mark
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}: row {line} must be UTF-8 text, got the byte 0x{data[error.start]:02x}; save the file as CSV UTF-8"
        ) from None


def _check_header(header: list[str], file: Path) -> None:
    known = (*COLUMNS, "split")
    for name in header:
        if name not in known:
            raise UserError(
                f"{file}: row 1 must name the columns {', '.join(COLUMNS)} and perhaps split, separated by commas, "
                f"got {name!r}{did_you_mean(name, known)}; rename or remove it"
            )
        if header.count(name) > 1:
            raise UserError(f"{file}: row 1 must name each column once, got {name} twice; remove one")
    for name in COLUMNS:
        if name not in header:
            raise UserError(f"{file}: row 1 must name the column {name}, got {', '.join(header)}; add it")


def _row(place: str, header: list[str], cells: list[str], videos: Collection[str]) -> Row:
    if len(cells) != len(header):
        raise UserError(
            f"{place} must have {len(header)} cells as the header has, got {len(cells)}; "
            "put a sentence with a comma in double quotes"
        )
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if row["video"] not in videos:
        raise UserError(
            f"{place}: 'video' must name a folder of images or a video file without its suffix in --videos, "
            f"got {row['video']!r}{did_you_mean(row['video'], videos)}; correct it"
        )
    if not row["sentence"]:
        raise UserError(f"{place}: 'sentence' must not be empty; write it or remove the row")
    split = row.get("split")
    if split is not None and split not in SPLITS:
        raise UserError(f"{place}: 'split' must be {' or '.join(SPLITS)}, got {split!r}; correct it")
    return Row(place, row["video"], _objects(row["objects"], place), row["sentence"], split)


def _objects(cell: str, place: str) -> tuple[int, ...]:
    numbers = [part for part in re.split(r"[\s;]+", cell) if part]
    for number in numbers:
        if not number.isdecimal() or int(number) == 0:
            raise UserError(
                f"{place}: 'objects' must hold numbers from 1 separated by spaces or ';', or nothing for no target, "
                f"got {number!r}; correct it"
            )
    return tuple(dict.fromkeys(int(number) for number in numbers))
