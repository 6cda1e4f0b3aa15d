"""Ref-DAVIS17 in the layout of Refer-YouTube-VOS: what the expressions are, and their masks. Free of torch."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import read_videos
from datasets.readers.png_masks import PngMasks
from datasets.split import Expression

NUM_ANNOTATORS = 4  # each describes every object
ANNOTATOR_FOLDERS = tuple(f"anno_{number}" for number in range(NUM_ANNOTATORS))  # of results, as the field names them
VALID_NAMES = ("valid", "val")  # converters and loaders disagree
RESOLUTION = "480p"  # a level that some copies keep between JPEGImages and the sequences


class RefDAVIS17(PngMasks):
    """One split of Ref-DAVIS17; both names of valid mean whichever folder exists.

    Expression ids count four annotators fastest: ``int(exp_id) % 4`` is the annotator, ``int(exp_id) // 4`` the object.

    Args:
        root: the folder that holds ``meta_expressions``, ``train`` and ``valid``.
        split: see ``datasets.registry``.
        flag: the option that ``root`` came by, for messages.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str, flag: str = "--davis_path") -> None:
        names = (split, *VALID_NAMES) if split in VALID_NAMES else (split,)
        folder = _first([root / name for name in names])
        source = _first([root / "meta_expressions" / name for name in names]) / "meta_expressions.json"
        super().__init__(
            root,
            _with_resolution(folder / "JPEGImages"),
            _with_resolution(folder / "Annotations"),
            read_videos(source, f"{flag} {root}"),
            source,
            flag=flag,
            needs_masks=True,
        )

    def object_numbers(self, expression: Expression, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Which object each pixel of each frame shows, named by a sentence or not, [T, H, W]; 0 none, 255 void."""
        folder = self.annotations / expression.video
        return np.stack([self.read_numbers(folder / f"{frame}.png", size) for frame in expression.frames])


def _first(folders: list[Path]) -> Path:
    """The first that exists, or the first of all."""
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _with_resolution(folder: Path) -> Path:
    return folder / RESOLUTION if (folder / RESOLUTION).is_dir() else folder
