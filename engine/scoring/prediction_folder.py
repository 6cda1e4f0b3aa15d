"""Reads a folder of predicted masks, and checks that it is complete."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from datasets.split import Expression, Split
from util.errors import MissingFileError, UserError
from util.mask_files import check_mask_file, read_mask

MOST_NAMED = 3  # most names per kind of fault in a message
Size = tuple[int, int]


class PredictionFolder:
    """Masks as ``<video>/<exp_id>/<frame>.png``.

    Args:
        folder: holds the folders of the videos, or ``Annotations`` with them in it.
        split: the split that was segmented.
        expressions: expressions of the split to score; masks of others may be there too.
        besides: names of folders that may be there beside those of the videos.

    Raises:
        MissingFileError: if there is no such folder.
    """

    def __init__(
        self, folder: Path, split: Split, expressions: list[Expression], besides: frozenset[str] = frozenset()
    ) -> None:
        if not folder.is_dir():
            problem = "must be a folder, got a file" if folder.exists() else "no such folder"
            raise MissingFileError(f"--pred {folder}: {problem}; give the one that holds the videos' folders")
        self.root = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
        self.origin = f"--pred {folder}"
        self.split = split
        self.expressions = expressions
        self.besides = besides
        self._sizes: dict[str, Size] = {}

    def has_masks(self) -> bool:
        """Whether there is a folder of any of the videos."""
        return any((self.root / video).is_dir() for video in {expression.video for expression in self.expressions})

    def size(self, expression: Expression) -> Size:
        """Returns (H, W) of the frames of an expression's video."""
        if expression.video not in self._sizes:
            self._sizes[expression.video] = self.split.source_size(expression)
        return self._sizes[expression.video]

    def files(self, expression: Expression) -> list[Path]:
        """Returns the mask files that an expression must have, one per annotated frame."""
        folder = self.root / expression.video / expression.exp_id
        return [folder / f"{expression.frames[index]}.png" for index in annotated(expression)]

    def read(self, expression: Expression, row: int | None = None) -> NDArray[np.bool_]:
        """Reads the predicted masks of the annotated frames, [T, H, W]; with ``row`` only that one, [1, H, W].

        Raises:
            UserError: if a file is not a mask, damaged, or of another size.
        """
        size, files = self.size(expression), self.files(expression)
        return np.stack([read_mask(file, size) for file in (files if row is None else [files[row]])])

    def check(
        self, allow_partial: bool, check_file: Callable[[Path, Size], None] = check_mask_file
    ) -> list[Expression]:
        """Returns the complete expressions; refuses incomplete ones unless ``allow_partial``. Reads only headers.

        Raises:
            UserError: for the first kind of fault found: files that no expression asks for, missing masks, another
                size or
                other channels.
        """
        self._refuse_extras()
        present = {expression.key: visible_names(self.files(expression)[0].parent) for expression in self.expressions}
        lacking = {
            expression.key: [file.name for file in self.files(expression) if file.name not in present[expression.key]]
            for expression in self.expressions
        }
        incomplete = {"/".join(key): names for key, names in lacking.items() if names}
        if incomplete and not allow_partial:
            named = listed(f"{key} lacks {listed(names)}" for key, names in incomplete.items())
            raise MissingFileError(
                f"{self.origin}: {len(incomplete)} of {len(lacking)} expressions lack masks: {named}; predict them, or "
                "score the complete ones with --partial"
            )
        complete = [expression for expression in self.expressions if not lacking[expression.key]]
        if not complete:
            raise MissingFileError(
                f"{self.origin}: must hold <video>/<exp_id>/<frame>.png of at least one expression of "
                f"{self.split.source}, got none; check --dataset and --split"
            )
        for expression in tqdm(complete, desc="check masks", unit="expression"):
            for file in self.files(expression):
                check_file(file, self.size(expression))
        return complete

    def _refuse_extras(self) -> None:
        """Refuses files and folders that no expression asks for; ignores files beside the folders of the videos."""
        expressions: dict[str, dict[str, Expression]] = {}
        for expression in self.split.expressions:
            expressions.setdefault(expression.video, {})[expression.exp_id] = expression
        folders = visible_names(self.root) - set(expressions) - self.besides
        extra = sorted(name for name in folders if (self.root / name).is_dir())
        for video in dict.fromkeys(expression.video for expression in self.expressions):
            known = expressions[video]
            entries = visible_names(self.root / video)
            extra += [f"{video}/{name}" for name in sorted(entries - set(known))]
            for exp_id in sorted(entries & set(known)):
                frames = {f"{frame}.png" for frame in known[exp_id].frames}
                extra += [
                    f"{video}/{exp_id}/{name}" for name in sorted(visible_names(self.root / video / exp_id) - frames)
                ]
        if extra:
            raise UserError(
                f"{self.origin}: holds files of no expression of {self.split.source}: {listed(extra)}; remove them, "
                "or check --dataset and --split"
            )


def annotated(expression: Expression) -> list[int]:
    """Returns the indices of an expression's frames that have ground truth."""
    return list(range(len(expression.frames)) if expression.annotated is None else sorted(expression.annotated))


def listed(names: Iterable[str]) -> str:
    """Returns the first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else ""
    return ", ".join(every[:MOST_NAMED]) + more


def visible_names(folder: Path) -> set[str]:
    """Returns the names in a folder, none if it does not exist; ignores hidden files."""
    return {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
