"""BURST, for scoring by class."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import entry, plain_name, read_annotations, texts
from datasets.split import Expression, MaskSizeError, Split
from util.errors import UserError
from util.rle import decode_rle


class BURST(Split):
    """One split of BURST, asked by class as REM does: "the {class}" means all tracks of that class in the video.

    ``exp_id`` is the class number, ``kind`` its name, ``annotated`` the annotated frames.

    Args:
        root: the folder ``TAO``, with ``annotations_burst`` and ``frames``.
        split: see ``datasets.registry``.
        flag: the flag that named ``root``, for errors.

    Raises:
        UserError: if files are missing or damaged, or disagree.
    """

    def __init__(self, root: Path, split: str, flag: str = "--burst_path") -> None:
        self.has_masks, self.root = True, root
        self.origin = f"{flag} {root}"
        self.frames = root / "frames" / split
        self.source = root / "annotations_burst" / split / "all_classes.json"
        content = read_annotations(self.source, self.origin)
        names = {
            entry(category, "id", int, self.source): entry(category, "name", str, self.source)
            for category in entry(content, "categories", list, self.source)
        }
        self._records: dict[str, Any] = {}
        self.expressions = [
            expression
            for record in entry(content, "sequences", list, self.source)
            for expression in self._expressions(record, names)
        ]

    def frame_file(self, expression: Expression, index: int) -> Path:
        record = self._records[expression.video]
        return self.frames / record["dataset"] / expression.video / record["all_image_paths"][index]

    def source_size(self, expression: Expression) -> tuple[int, int]:
        record = self._records[expression.video]
        return record["height"], record["width"]

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        expression.check_annotated(indices)
        assert expression.annotated is not None and expression.object_ids is not None, "sentences have one of each"
        if size != self.source_size(expression):
            raise MaskSizeError(
                f"{self.source}: {expression.video} has size {self.source_size(expression)}, not {size}"
            )
        segmentations = self._records[expression.video]["segmentations"]
        masks = np.zeros((len(indices), *size), bool)
        for row, index in enumerate(indices):
            tracks = segmentations[expression.annotated.index(index)]
            for track in expression.object_ids:
                if track in tracks:
                    masks[row] |= self._decode(tracks[track], size, expression)
        return masks

    def _decode(self, track: Any, size: tuple[int, int], expression: Expression) -> NDArray[np.bool_]:
        try:
            return decode_rle({"size": list(size), "counts": entry(track, "rle", str, self.source)}, size)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{self.source}: {expression.video}: {error}; download the file again") from None

    def _expressions(self, record: Any, names: dict[int, str]) -> list[Expression]:
        """Yields one expression per class that has a track in a sequence, by class number."""
        video = plain_name(entry(record, "seq_name", str, self.source), self.source)
        place = f"{self.source}: {video}"
        if video in self._records:
            raise UserError(f"{place}: is in it twice; give each sequence its own name")
        plain_name(entry(record, "dataset", str, place), place)
        images, annotated = texts(record, "all_image_paths", place), texts(record, "annotated_image_paths", place)
        segmentations = entry(record, "segmentations", list, place)
        if not set(annotated) <= set(images) or len(segmentations) != len(annotated):
            raise UserError(f"{place}: must have one segmentation for each annotated image; download the file again")
        if min(entry(record, "height", int, place), entry(record, "width", int, place)) < 1:
            raise UserError(f"{place}: 'height' and 'width' must be positive; download the file again")
        self._records[video] = record
        tracks: dict[int, list[str]] = {}
        for track, number in entry(record, "track_category_ids", dict, place).items():
            if number not in names:
                raise UserError(f"{place}: track {track} has class {number!r}, which 'categories' lacks")
            tracks.setdefault(number, []).append(track)
        return [
            Expression(
                video=video,
                exp_id=str(number),
                caption=f"the {names[number]}",
                frames=tuple(plain_name(Path(image).stem, place) for image in images),
                object_ids=tuple(tracks[number]),
                kind=names[number],
                annotated=tuple(images.index(image) for image in annotated),
            )
            for number in sorted(tracks)
        ]
