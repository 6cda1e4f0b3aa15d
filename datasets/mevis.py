"""MeViS: what the expressions of a split are, and their masks. Free of torch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.expression import Expression
from datasets.mask_store import MaskStore
from datasets.split import Split, entry, frame_names, read_annotations
from util.errors import UserError

SPLITS = ("train", "valid_u", "valid", "test")
META_FILES = ("meta_expressions.json", "meta_expressions_release.json")  # the test split comes under the second name


class MeViS(Split):
    """One split of MeViS, version 1 or 2.

    Frames are sorted by name once, their masks with them. Version 2 has expressions without a target; in version 1
    every expression of train and valid_u has one.

    Args:
        root: the folder that holds ``train``, ``valid_u``, ``valid`` and ``test``.
        split: one of them.
        cache_dir: where converted masks are kept; beside ``mask_dict.json`` if None.
        flag: the option that ``root`` came by, for messages.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str, cache_dir: Path | None = None, flag: str = "--mevis_path") -> None:
        self.folder = root / split
        present = [self.folder / name for name in META_FILES if (self.folder / name).is_file()]
        meta_file = present[0] if present else self.folder / META_FILES[0]
        videos = entry(read_annotations(meta_file, f"{flag} {root}"), "videos", dict, meta_file)
        self._order: dict[str, list[int]] = {}
        self.expressions = []
        for video, record in videos.items():
            names = frame_names(record, f"{meta_file}: {video}")
            self._order[video] = sorted(range(len(names)), key=names.__getitem__)
            self.expressions += _expressions(video, record, tuple(sorted(names)), f"{meta_file}: {video}")
        mask_file = self.folder / "mask_dict.json"
        self.has_masks = mask_file.is_file()
        if self.has_masks:
            self._store = MaskStore(mask_file, cache_dir)

    def frame_file(self, expression: Expression, index: int) -> Path:
        return self.folder / "JPEGImages" / expression.video / f"{expression.frames[index]}.jpg"

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        order = self._order[expression.video]
        union = np.zeros((len(indices), *size), np.uint8)
        for annotation in expression.object_ids or ():
            listed = self._store.num_masks(annotation) if annotation in self._store else None
            if listed != len(order):
                raise UserError(
                    f"{self._store.source}: annotation {annotation} of {expression.video} must list {len(order)} "
                    f"masks, one per frame, got {'none' if listed is None else listed}"
                )
            for row, index in enumerate(indices):
                mask = self._store.decode(annotation, order[index])
                if mask is None:
                    continue
                if mask.shape != size:
                    raise UserError(
                        f"{self._store.source}: annotation {annotation} has size {mask.shape}, the frames of "
                        f"{expression.video} have {size}"
                    )
                union[row] |= mask
        return union.view(bool)


def _expressions(video: str, record: dict[str, Any], frames: tuple[str, ...], place: str) -> list[Expression]:
    return [
        Expression(
            video=video,
            exp_id=exp_id,
            caption=entry(fields, "exp", str, f"{place}/{exp_id}"),
            frames=frames,
            object_ids=_targets(fields, f"{place}/{exp_id}"),
            kind=fields.get("kind"),
        )
        for exp_id, fields in entry(record, "expressions", dict, place).items()
    ]


def _targets(fields: dict[str, Any], place: str) -> tuple[str, ...] | None:
    """Annotation ids; None where the split hides them."""
    if "anno_id" not in fields:
        return None
    listed = entry(fields, "anno_id", list, place)
    if not all(isinstance(number, int | str) for number in listed):
        raise UserError(f"{place}: 'anno_id' must list annotation numbers, got {str(listed)[:60]}")
    return tuple(str(number) for number in listed)
