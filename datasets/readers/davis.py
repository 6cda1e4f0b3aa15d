"""Ref-DAVIS17 in the layout of Ref-YouTube-VOS."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import read_videos
from datasets.readers.png_masks import PngMasks
from datasets.split import Expression

NUM_ANNOTATORS = 4  # each annotator describes every object
ANNOTATOR_FOLDERS = tuple(
    f"anno_{number}" for number in range(NUM_ANNOTATORS)
)  # folders of results, as the field names them
VALID_NAMES = ("valid", "val")  # converters and loaders use different names
RESOLUTION = "480p"  # folder between JPEGImages and the sequences in some copies


class RefDAVIS17(PngMasks):
    """One split of Ref-DAVIS17; both names of valid mean whichever folder exists.

    Expression ids count four annotators fastest: ``int(exp_id) % 4`` is the annotator, ``int(exp_id) // 4`` the object.

    Args:
        root: the folder of ``meta_expressions``, ``train`` and ``valid``.
        split: see ``datasets.registry``.
        flag: the flag that named ``root``, for errors.

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
        """Returns the object number of each pixel, also of objects without a caption, [T, H, W]; 0 none, 255 void."""
        folder = self.annotations / expression.video
        return np.stack([self.read_numbers(folder / f"{frame}.png", size) for frame in expression.frames])


def _first(folders: list[Path]) -> Path:
    """Returns the first path that exists, else the first of all."""
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _with_resolution(folder: Path) -> Path:
    return folder / RESOLUTION if (folder / RESOLUTION).is_dir() else folder
