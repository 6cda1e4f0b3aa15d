"""Long-RVOS."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import one_object, read_videos
from datasets.readers.png_masks import PngMasks
from datasets.split import Expression
from util.errors import MissingFileError, UserError

OBJECT_VALUE = 255  # value of the object's pixels


class LongRVOS(PngMasks):
    """One split of Long-RVOS; each object has a folder of PNGs, one per frame that shows it.

    ``Expression.kind`` is ``static``, ``dynamic`` or ``hybrid``.

    Args:
        root: the folder of ``train``, ``valid`` and ``test``.
        split: one of them.
        flag: the flag that named ``root``, for errors.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str, flag: str = "--long_rvos_path") -> None:
        folder = root / split
        source = folder / "meta_expressions.json"
        super().__init__(
            root,
            folder / "JPEGImages",
            folder / "Annotations",
            read_videos(source, f"{flag} {root}"),
            source,
            flag=flag,
            needs_masks=split == "train",
            kind_key="type",
        )

    def targets(self, fields: Any, place: str) -> tuple[str, ...] | None:
        return one_object(fields, place)  # any number: it names a folder, not a pixel value

    def mask_file(self, expression: Expression, index: int) -> Path | None:
        assert expression.object_ids is not None, "masks were asked of a split that hides them"
        folder = self.annotations / expression.video / expression.object_ids[0]
        file = folder / f"{expression.frames[index]}.png"
        if file.is_file():
            return file
        if not folder.is_dir():  # a caption never names an object that is never seen
            raise MissingFileError(f"{self.origin}: {folder} is missing; download or unpack the dataset again")
        return None

    def shown(self, values: NDArray[np.uint8], expression: Expression, file: Path) -> NDArray[np.bool_]:  # noqa: ARG002
        mask = values == OBJECT_VALUE
        if values.any() and not mask.any():
            raise UserError(
                f"{file}: pixels of the object must be {OBJECT_VALUE}, the highest is {values.max()}; replace it"
            )
        return mask
