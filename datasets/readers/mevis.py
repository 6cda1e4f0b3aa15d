"""MeViS, versions 1 and 2."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import entry, frame_names, read_videos, unsorted_videos, video_expressions
from datasets.readers.mask_store import MaskStore
from datasets.split import Expression, MaskCountError, MaskSizeError, Split
from util.errors import UserError

META_FILES = ("meta_expressions.json", "meta_expressions_release.json")  # the test split has the second name


class MeViS(Split):
    """One split of MeViS, version 1 or 2.

    Frames are sorted by name, and their masks with them. Version 2 has expressions without a target; in version 1
    every
    expression of train and valid_u has one.

    Args:
        root: the folder of ``train``, ``valid_u``, ``valid`` and ``test``.
        split: one of them.
        cache_dir: folder of the converted masks; None is beside ``mask_dict.json``.
        flag: the flag that named ``root``, for errors.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str, cache_dir: Path | None = None, flag: str = "--mevis_path") -> None:
        self.root = root
        self.folder = root / split
        self.origin = f"{flag} {root}"
        present = [self.folder / name for name in META_FILES if (self.folder / name).is_file()]
        meta_file = self.source = present[0] if present else self.folder / META_FILES[0]
        self._order: dict[str, list[int]] = {}
        self.expressions = []
        videos = read_videos(meta_file, self.origin)
        for video, record in videos.items():
            names = frame_names(record, f"{meta_file}: {video}")
            self._order[video] = sorted(range(len(names)), key=names.__getitem__)
            self.expressions += video_expressions(video, record, meta_file, _targets)
        self.unsorted_videos = unsorted_videos(videos)
        mask_file = self.folder / "mask_dict.json"
        self.has_masks = mask_file.is_file()
        if self.has_masks:
            self._store = MaskStore(mask_file, cache_dir)

    def frame_file(self, expression: Expression, index: int) -> Path:
        return self.folder / "JPEGImages" / expression.video / f"{expression.frames[index]}.jpg"

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        order = self._order[expression.video]
        annotations = expression.object_ids or ()
        for annotation in annotations:
            listed = self._store.num_masks(annotation) if annotation in self._store else None
            if listed != len(order):
                raise MaskCountError(
                    f"{self._store.source}: annotation {annotation} of {expression.video} must list {len(order)} "
                    f"masks, one per frame, got {'none' if listed is None else listed}"
                )
        columns = np.zeros((len(indices), size[1], size[0]), np.uint8)  # transposed, in the order of run lengths
        for column, index in zip(columns, indices, strict=True):
            for annotation in annotations:
                own_size = self._store.size(annotation, order[index])
                if own_size not in (None, size):
                    raise MaskSizeError(
                        f"{self._store.source}: annotation {annotation} has size {own_size}, the frames of "
                        f"{expression.video} have {size}"
                    )
                self._store.paint(annotation, order[index], column)
        return columns.view(bool).transpose(0, 2, 1)


def _targets(fields: Any, place: str) -> tuple[str, ...] | None:
    """Returns annotation ids; None if the split hides them."""
    if "anno_id" not in fields:
        return None
    listed = entry(fields, "anno_id", list, place)
    if not all(isinstance(number, int | str) and not isinstance(number, bool) for number in listed):
        raise UserError(f"{place}: 'anno_id' must list annotation numbers, got {str(listed)[:60]!r}")
    return tuple(str(number) for number in listed)
