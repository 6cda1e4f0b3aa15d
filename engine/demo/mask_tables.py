"""Measures masks frame by frame, and writes them as tables: CSV, and COCO JSON with run-length encodings."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from util.frames import FrameSource
from util.rle import encode_rle

COLUMNS = (
    *("prompt", "sentence", "frame", "source_frame", "time", "present", "area"),
    *("x", "y", "width", "height", "center_x", "center_y"),
)


@dataclass(frozen=True)
class _Measured:
    """One mask. Pixels count from 0 at the top left; the box is (x, y, width, height), the centre that of mass."""

    area: int
    box: tuple[int, int, int, int]
    centre: tuple[float, float]
    rle: dict[str, Any] | None


class MaskTables:
    """Collects the masks of P prompts, frame by frame.

    Args:
        size: (H, W) in pixels.
        keeps_rle: also encode the masks, for ``write_rle``.
    """

    def __init__(self, prompts: list[str], source: FrameSource, size: tuple[int, int], *, keeps_rle: bool) -> None:
        self.prompts, self.source, self.size, self.keeps_rle = prompts, source, size, keeps_rle
        self._rows: list[list[_Measured]] = [[] for _ in prompts]

    def add(self, masks: NDArray[np.bool_]) -> None:
        """Measures the masks [P, H, W] of the next frame."""
        for row, mask in zip(self._rows, masks, strict=True):
            row.append(_measured(mask, self.keeps_rle))

    @property
    def num_frames(self) -> int:
        """Number of frames so far."""
        return len(self._rows[0])

    def areas(self) -> list[list[int]]:
        """Returns the areas in pixels, per prompt and frame."""
        return [[mask.area for mask in row] for row in self._rows]

    def found(self) -> list[bool]:
        """Returns for each prompt whether any frame shows its object."""
        return [any(mask.area for mask in row) for row in self._rows]

    def write_csv(self, folder: Path) -> None:
        """Writes ``masks.csv``: a row per prompt and frame; box and centre are empty where the object is absent."""
        with (folder / "masks.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for prompt, row in enumerate(self._rows):
                for (name, source_frame, time), mask in zip(self._frames(), row, strict=True):
                    where = [*mask.box, *(round(value, 2) for value in mask.centre)] if mask.area else 6 * [""]
                    writer.writerow(
                        [
                            *(prompt, self.prompts[prompt], name, source_frame, time),
                            *(int(mask.area > 0), mask.area, *where),
                        ]
                    )

    def write_rle(self, folder: Path) -> None:
        """Writes ``rle.json`` in the format of COCO: frames are its images, prompts its categories."""
        height, width = self.size
        images = [
            {"id": number, "file_name": f"{name}.png", "height": height, "width": width, "frame": frame, "time": time}
            for number, (name, frame, time) in enumerate(self._frames(), start=1)
        ]
        categories = [{"id": number, "name": prompt} for number, prompt in enumerate(self.prompts, start=1)]
        annotations: list[dict[str, Any]] = []
        for category, row in enumerate(self._rows, start=1):
            for image, mask in enumerate(row, start=1):
                if mask.area:
                    ids = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
                    shape = {"segmentation": mask.rle, "area": mask.area, "bbox": list(mask.box), "iscrowd": 0}
                    annotations.append(ids | shape)
        content = {"images": images, "categories": categories, "annotations": annotations}
        (folder / "rle.json").write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")

    def _frames(self) -> Iterator[tuple[str, int, float]]:
        """Yields (name, number in the file, seconds in the file) of each frame."""
        pairs = zip(self.source.source_frames, self.source.source_times, strict=True)
        for index, (frame, time) in enumerate(pairs):
            name = os.fsencode(self.source.frame_name(index)).decode(errors="replace")
            yield name, frame, round(float(time), 6)


def _measured(mask: NDArray[np.bool_], keeps_rle: bool) -> _Measured:
    columns, rows = np.count_nonzero(mask, axis=0), np.count_nonzero(mask, axis=1)
    area = int(rows.sum())
    if area == 0:
        return _Measured(0, (0, 0, 0, 0), (0.0, 0.0), None)
    (xs,), (ys,) = columns.nonzero(), rows.nonzero()
    box = (int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
    centre = (float(columns @ np.arange(len(columns))) / area, float(rows @ np.arange(len(rows))) / area)
    return _Measured(area, box, centre, encode_rle(mask) if keeps_rle else None)
