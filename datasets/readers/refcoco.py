"""RefCOCO, RefCOCO+ and RefCOCOg as one-frame videos."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import each_row, entry, plain_name, read_annotations
from datasets.split import Expression, MaskSizeError, Split
from util.errors import UserError
from util.rle import CocoMask, checked_mask


class RefCOCO(Split):
    """One split of RefCOCO, RefCOCO+ or RefCOCOg, in the format of ReferFormer's converter.

    The file has one image entry per caption, each with one annotation. The entry's id is our video id, its only
    expression
    is ``"0"``, its only frame the stem of the image.

    Args:
        root: the folder of ``train2014`` and one folder per dataset.
        dataset: refcoco, refcoco+ or refcocog.
        split: see ``datasets.registry``.
        flag: the flag that named ``root``, for errors.
        faults: collects the errors of single captions, which are then left out; if None, the first is raised.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(
        self,
        root: Path,
        dataset: str,
        split: str,
        flag: str = "--coco_path",
        faults: list[UserError] | None = None,
    ) -> None:
        self.has_masks, self.root = True, root
        self.origin = f"{flag} {root}"
        self.images = root / "train2014"
        self.source = root / dataset / f"instances_{dataset}_{split}.json"
        content = read_annotations(self.source, self.origin)
        annotations = self._by_image(entry(content, "annotations", list, self.source))
        self._files: dict[str, Path] = {}
        self._masks: dict[str, CocoMask] = {}
        images = entry(content, "images", list, self.source)
        self.expressions = each_row(lambda image, _: self._expression(image, annotations), images, faults)
        for video in annotations:
            if video not in self._files and not faults:
                raise UserError(f"{self.source}: an annotation is of image {video}, which is absent; {AGAIN}")

    def frame_file(self, expression: Expression, index: int) -> Path:  # noqa: ARG002
        return self._files[expression.video]

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        mask = self._masks[expression.video]
        if mask.size != size:
            raise MaskSizeError(
                f"{self.source}: image {expression.video} is {mask.size[1]} x {mask.size[0]}, its file "
                f"{self._files[expression.video]} is {size[1]} x {size[0]}; {AGAIN}"
            )
        return np.repeat(mask.decode()[None], len(indices), axis=0)

    def _by_image(self, annotations: list[Any]) -> dict[str, Any]:
        """Groups annotations by the id of their image."""
        by_image: dict[str, Any] = {}
        for annotation in annotations:
            video = str(entry(annotation, "image_id", (int, str), self.source))
            if video in by_image:
                raise UserError(f"{self.source}: image {video[:60]!r} must have one annotation, got several; {AGAIN}")
            by_image[video] = annotation
        return by_image

    def _expression(self, image: Any, annotations: dict[str, Any]) -> Expression:
        video = plain_name(str(entry(image, "id", (int, str), self.source)), f"{self.source}: an image")
        place = f"{self.source}: image {video}"
        if video in self._files:
            raise UserError(f"{place}: stands in it twice; {AGAIN}")
        if video not in annotations:
            raise UserError(f"{place}: must have one annotation, got none; {AGAIN}")
        height, width = (entry(image, side, int, place) for side in ("height", "width"))
        if min(height, width) < 1:
            raise UserError(f"{place}: 'height' and 'width' must be positive, got {height} and {width}; {AGAIN}")
        annotation = annotations[video]
        try:
            self._masks[video] = checked_mask(entry(annotation, "segmentation", (list, dict), place), (height, width))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{place}: {error}; {AGAIN}") from None
        file = self.images / plain_name(entry(image, "file_name", str, place), place)
        self._files[video] = file
        return Expression(
            video=video,
            exp_id="0",
            caption=entry(image, "caption", str, place),
            frames=(file.stem,),
            object_ids=(str(entry(annotation, "id", (int, str), place)),),
        )


AGAIN = "convert the dataset again"
