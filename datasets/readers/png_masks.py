"""The base of readers whose frames are JPEGs and whose objects have numbers in PNG files."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import one_object, unsorted_videos, video_expressions
from datasets.split import Expression, Split
from util.errors import MissingFileError, UserError

VOID = 255  # void pixels, not an object


class PngMasks(Split):
    """A split whose masks are palette images: the value of a pixel is the number of its object.

    Args:
        root: the folder of the dataset.
        images: folder with one folder of JPEGs per video.
        annotations: folder with one folder of PNGs per video.
        videos: the records of ``meta_expressions.json``.
        source: that file.
        flag: the flag that named ``root``, for errors.
        needs_masks: raise an error if the split hides its targets.
        kind_key: key of the kind of expression.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(
        self,
        root: Path,
        images: Path,
        annotations: Path,
        videos: dict[str, Any],
        source: Path,
        *,
        flag: str,
        needs_masks: bool,
        kind_key: str = "kind",
    ) -> None:
        self.root, self.origin = root, f"{flag} {root}"
        self.images, self.annotations, self.source = images, annotations, source
        self.expressions = [
            expression
            for video, record in videos.items()
            for expression in video_expressions(video, record, source, self.targets, kind_key)
        ]
        self.unsorted_videos = unsorted_videos(videos)
        hidden = [expression.key for expression in self.expressions if expression.object_ids is None]
        if hidden and (needs_masks or len(hidden) < len(self.expressions)):
            raise UserError(
                f"{source}: {'/'.join(hidden[0])}: an entry lacks the key 'obj_id'; download the file again"
            )
        if needs_masks and not annotations.is_dir():
            raise MissingFileError(
                f"{self.origin}: {annotations} is missing; unpack the annotations of the dataset there"
            )
        self.has_masks = annotations.is_dir() and not hidden

    def targets(self, fields: Any, place: str) -> tuple[str, ...] | None:
        """Returns the object of an expression; None if the split hides it.

        Raises:
            UserError: if it is not a number that a pixel can have.
        """
        objects = one_object(fields, place)
        if objects and not 0 < int(objects[0]) < VOID:
            raise UserError(
                f"{place}: 'obj_id' must be from 1 to {VOID - 1}, got {objects[0]}; download the file again"
            )
        return objects

    def frame_file(self, expression: Expression, index: int) -> Path:
        return self.images / expression.video / f"{expression.frames[index]}.jpg"

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        masks = np.zeros((len(indices), *size), bool)
        for row, index in enumerate(indices):
            file = self.mask_file(expression, index)
            if file is None:
                continue
            values = self.read_numbers(file, size)
            masks[row] = self.shown(values, expression, file)
        return masks

    def mask_file(self, expression: Expression, index: int) -> Path | None:
        """Returns the PNG of a frame; None if the object is absent and there may be none."""
        return self.annotations / expression.video / f"{expression.frames[index]}.png"

    def shown(self, values: NDArray[np.uint8], expression: Expression, file: Path) -> NDArray[np.bool_]:  # noqa: ARG002
        """Returns where the pixels of a PNG, [H, W], show the object of an expression."""
        assert expression.object_ids is not None, "masks were asked of a split that hides them"
        return values == int(expression.object_ids[0])
