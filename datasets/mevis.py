"""MeViS: what the expressions of a split are, and their masks. Free of torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.expression import Expression
from util.errors import MissingFileError, UserError
from util.masks import decode_rle

SPLITS = ("train", "valid_u", "valid")


class MeViS:
    """One split of MeViS.

    Frames are sorted by name once, their masks with them.

    Args:
        root: the folder that holds ``train``, ``valid_u`` and ``valid``.
        split: one of them.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.folder = root / split
        meta_file = self.folder / "meta_expressions.json"
        if not meta_file.is_file():
            raise MissingFileError(
                f"--mevis_path {root}: {split}/meta_expressions.json is missing; give MeViS's folder"
            )
        videos = _entry(_read_json(meta_file), "videos", meta_file)
        self._order = {video: _sorted_order(_entry(entry, "frames", meta_file)) for video, entry in videos.items()}
        self.expressions = [
            expression for video, entry in videos.items() for expression in _expressions(video, entry, meta_file)
        ]
        self._mask_file = self.folder / "mask_dict.json"
        self.has_masks = self._mask_file.is_file()
        self._rles: dict[str, list[Any]] = _read_json(self._mask_file) if self.has_masks else {}

    def frame_file(self, expression: Expression, index: int) -> Path:
        """Where the picture of a frame lies."""
        return self.folder / "JPEGImages" / expression.video / f"{expression.frames[index]}.jpg"

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """The union of the targets at some frames, [len(indices), H, W].

        Args:
            indices: positions in ``expression.frames``.
            size: (H, W) in pixels of the frames.

        Raises:
            UserError: if the masks are missing, of another number or of another size.
        """
        order = self._order[expression.video]
        union = np.zeros((len(indices), *size), bool)
        for object_id in expression.object_ids or ():
            rles = self._rles.get(object_id)
            if rles is None or len(rles) != len(order):
                raise UserError(
                    f"{self._mask_file}: annotation {object_id} of {expression.video} must list {len(order)} masks, "
                    f"one per frame, got {'none' if rles is None else len(rles)}"
                )
            for row, index in enumerate(indices):
                mask = decode_rle(rles[order[index]], size)
                if mask.shape != size:
                    raise UserError(f"{self._mask_file}: annotation {object_id} has size {mask.shape}, frames {size}")
                union[row] |= mask
        return union


def _expressions(video: str, entry: dict[str, Any], source: Path) -> list[Expression]:
    frames = tuple(sorted(entry["frames"]))
    return [
        Expression(
            video=video,
            exp_id=exp_id,
            caption=_entry(fields, "exp", source),
            frames=frames,
            object_ids=tuple(str(number) for number in fields["anno_id"]) if "anno_id" in fields else None,
            kind=fields.get("kind"),
        )
        for exp_id, fields in _entry(entry, "expressions", source).items()
    ]


def _sorted_order(frames: list[str]) -> list[int]:
    """Positions in the file's own order, by sorted name."""
    return sorted(range(len(frames)), key=frames.__getitem__)


def _entry(record: dict[str, Any], key: str, source: Path) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise UserError(f"{source}: an entry lacks the key '{key}'; download the file again")
    return record[key]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, UnicodeDecodeError, _DuplicateKeyError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download the file again") from None


class _DuplicateKeyError(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _DuplicateKeyError("an object names a key twice")
    return record
