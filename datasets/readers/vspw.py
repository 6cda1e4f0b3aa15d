"""Stuff of VSPW, for scoring by class."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import entry, plain_name, read_annotations
from datasets.split import Expression, Split
from util.errors import MissingFileError, UserError
from util.files import read_text

CLASSES_FILE = "val_vid2classes.json"  # REM's list of the classes per video
NAMES_FILE = "label_num_dic_final.json"  # VSPW's {class name: pixel value}; may be missing
VOID_VALUES = (0, 255)  # pixels of no class; the value of class n is n + 1
NUM_CLASSES = 124


class VSPWStuff(Split):
    """The videos of VSPW's validation list, asked for stuff as REM does: "the {class}" means all of it.

    ``exp_id`` is the class number, counted from 0, ``kind`` its name.

    Args:
        root: the folder ``VSPW_480p``, with ``data``, ``val.txt``, and REM's ``val_vid2classes.json``. Without VSPW's
            file
            of names, a class has its number as its name.
        flag: the flag that named ``root``, for errors.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, flag: str = "--vspw_path") -> None:
        self.has_masks, self.root = True, root
        self.origin = f"{flag} {root}"
        self.source = root / CLASSES_FILE
        classes = read_annotations(self.source, self.origin)
        names = _names(root / NAMES_FILE, self.origin)
        self.expressions = [
            expression
            for video in read_text(self.present(root / "val.txt")).split()
            for expression in self._expressions(video, classes, names)
        ]

    def frame_file(self, expression: Expression, index: int) -> Path:
        return self._folder(expression.video, "origin") / f"{expression.frames[index]}.jpg"

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        value = int(expression.exp_id) + 1
        return np.stack([self._values(expression, index, size) == value for index in indices])

    def void(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        return np.stack([np.isin(self._values(expression, index, size), VOID_VALUES) for index in indices])

    def _values(self, expression: Expression, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        return self.read_numbers(self._folder(expression.video, "mask") / f"{expression.frames[index]}.png", size)

    def _folder(self, video: str, kind: str) -> Path:
        return self.root / "data" / video / kind

    def _expressions(self, video: str, classes: Any, names: dict[int, str]) -> list[Expression]:
        folder = self._folder(plain_name(video, self.root / "val.txt"), "origin")
        frames = tuple(sorted(file.stem for file in folder.glob("*.jpg") if not file.name.startswith(".")))
        if not frames:
            raise MissingFileError(f"{self.origin}: {folder} must hold the frames; unpack the dataset again")
        numbers = entry(classes, video, list, self.source)
        if not all(isinstance(number, int) and number in range(NUM_CLASSES) for number in numbers):
            raise UserError(f"{self.source}: {video}: must list numbers from 0 to {NUM_CLASSES - 1}, got {numbers}")
        return [
            Expression(
                video=video,
                exp_id=str(number),
                caption=f"the {names[number]}",
                frames=frames,
                object_ids=(str(number),),
                kind=names[number],
            )
            for number in dict.fromkeys(numbers)
        ]


def _names(file: Path, origin: str) -> dict[int, str]:
    """Returns the names of the classes by number, from 0."""
    if not file.is_file():
        return {number: f"class {number}" for number in range(NUM_CLASSES)}
    values = read_annotations(file, origin)
    if not isinstance(values, dict):
        raise UserError(f"{file}: must be an object of class names, got {str(values)[:60]!r}; download the file again")
    names = {entry(values, name, int, file) - 1: name for name in values}
    missing = sorted(set(range(NUM_CLASSES)) - set(names))
    if missing:
        raise UserError(
            f"{file}: must name classes 1 to {NUM_CLASSES}, got none for {missing[0] + 1}; download it again"
        )
    return names
