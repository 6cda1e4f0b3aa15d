"""Masks in one folder per concept, for scoring: a layout for datasets without a reader, such as Ref-VPS."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.split import Expression, Split
from util.errors import MissingFileError, UserError
from util.images import image_size

CONCEPT_VALUE = 255  # 0 is background; values between are void


class MaskFolder(Split):
    """Videos whose masks are ``<root>/Annotations/<video>/<concept>/<frame>.png``.

    Pixels are 255 where the concept is, 0 where it is not, and any value between for void. ``exp_id`` and ``kind``
    are the
    concept; frames are those of the masks. Images, ``<root>/JPEGImages/<video>/<frame>.jpg``, may be missing.

    Args:
        flag: the flag that named ``root``, for errors.

    Raises:
        UserError: if there is no mask.
    """

    def __init__(self, root: Path, flag: str = "--folder_path") -> None:
        self.has_masks, self.root = True, root
        self.origin = f"{flag} {root}"
        self.source = root / "Annotations"
        self.expressions = [
            Expression(
                video=concept.parent.name,
                exp_id=concept.name,
                caption=f"the {concept.name}",
                frames=frames,
                object_ids=(concept.name,),
                kind=concept.name,
            )
            for concept in sorted(self.source.glob("*/*"))
            if (frames := tuple(sorted(file.stem for file in concept.glob("[!.]*.png"))))
        ]
        if not self.expressions:
            raise MissingFileError(f"{self.origin}: must hold Annotations/<video>/<concept>/<frame>.png, got none")

    def frame_file(self, expression: Expression, index: int) -> Path:
        return self.root / "JPEGImages" / expression.video / f"{expression.frames[index]}.jpg"

    def source_size(self, expression: Expression) -> tuple[int, int]:
        return image_size(self._mask_file(expression, 0))

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        return self._values(expression, indices, size) == CONCEPT_VALUE

    def void(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        values = self._values(expression, indices, size)
        return (values != 0) & (values != CONCEPT_VALUE)

    def _mask_file(self, expression: Expression, index: int) -> Path:
        return self.source / expression.video / expression.exp_id / f"{expression.frames[index]}.png"

    def _values(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.uint8]:
        values = np.stack([self.read_numbers(self._mask_file(expression, index), size) for index in indices])
        if values.any() and not (values == CONCEPT_VALUE).any() and values.max() == 1:
            raise UserError(
                f"{self._mask_file(expression, indices[0])}: the object must be {CONCEPT_VALUE}, got 1; scale them"
            )
        return values
