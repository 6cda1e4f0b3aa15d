"""The interface of dataset readers: expressions, their frames and masks, and parts of a split."""

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from util.errors import MissingFileError, UserError, did_you_mean
from util.images import Frame, image_size, read_image, read_palette


@dataclass(frozen=True)
class Expression:
    """The dataset record of a caption about a video, and of the objects it means.

    Attributes:
        video: video id.
        exp_id: expression id; unique within the video.
        caption: the text as the dataset has it; captions may repeat.
        frames: frame names, sorted.
        object_ids: annotation ids of the targets, several or none; None if the split hides them.
        kind: the kind of expression, if the dataset has kinds.
        annotated: indices in ``frames`` that have masks; None if all have.
    """

    video: str
    exp_id: str
    caption: str
    frames: tuple[str, ...]
    object_ids: tuple[str, ...] | None
    kind: str | None = None
    annotated: tuple[int, ...] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(video id, expression id): identifies the expression; the text does not."""
        return self.video, self.exp_id

    def check_annotated(self, indices: list[int]) -> None:
        """Checks that every index is annotated.

        Raises:
            ValueError: if one is not.
        """
        bare = [] if self.annotated is None else sorted(set(indices) - set(self.annotated))
        if bare:
            raise ValueError(f"masks of {self.key} exist only at {self.annotated}, got {bare}")


class Split(ABC):
    """One split of a dataset.

    Attributes:
        expressions: in the order of the annotation file; keys (video id, expression id) are unique.
        has_masks: whether the ground truth of this split is public.
        root: the folder of the dataset.
        source: the annotation file.
        origin: the flag that named the dataset, with its value, for errors: ``--mevis_path DIR``.
        unsorted_videos: videos whose frames the annotation file does not list in the order of their names; ours are
            sorted.
    """

    expressions: list[Expression]
    has_masks: bool
    root: Path
    source: Path
    origin: str = "the dataset"
    unsorted_videos: tuple[str, ...] = ()

    @abstractmethod
    def frame_file(self, expression: Expression, index: int) -> Path:
        """Returns the file of the frame at ``index`` in ``expression.frames``."""

    @abstractmethod
    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Reads the union of the targets' masks, [len(indices), H, W].

        Args:
            indices: indices in ``expression.frames``.
            size: (H, W) in pixels of the frames.

        Raises:
            MissingFileError, MaskCountError, MaskSizeError: if masks are missing, too few or too many, or of another
                size.
            UserError: if they are damaged.
            ValueError: for an index without annotation, see ``Expression.annotated``.
        """

    def void(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_] | None:  # noqa: ARG002
        """Returns void pixels, which count for nobody, [len(indices), H, W]; None if the dataset has none.

        Args:
            indices, size: see ``masks``.
        """
        return None

    def source_size(self, expression: Expression) -> tuple[int, int]:
        """Returns (H, W) in pixels of the frames.

        Raises:
            UserError: if the first frame is missing or not an image.
        """
        return image_size(self.present(self.frame_file(expression, 0)))

    def iter_frames(
        self, expression: Expression, indices: list[int], at_least: tuple[int, int] | None = None
    ) -> Iterator[Frame]:
        """Yields frames, each [H, W, 3] uint8 RGB, all of one size; reads them one by one.

        Args:
            at_least: (height, width) in pixels: files may be decoded at a reduced scale that is not smaller than
                this.

        Raises:
            UserError: if a frame is missing, damaged, or differs in size from the first.
        """
        first: tuple[int, ...] | None = None
        for index, repeats in itertools.groupby(indices):  # the last frame of a short video repeats
            file = self.present(self.frame_file(expression, index))
            frame = read_image(file, at_least)
            first = first or frame.shape
            if frame.shape != first:
                raise UserError(
                    f"{file}: frames of a video must share one size, got {frame.shape[1]} x {frame.shape[0]} after "
                    f"{first[1]} x {first[0]}; replace the file"
                )
            yield from (frame for _ in repeats)

    def read_frames(
        self, expression: Expression, indices: list[int], at_least: tuple[int, int] | None = None
    ) -> list[Frame]:
        """Returns all frames of ``iter_frames``."""
        return list(self.iter_frames(expression, indices, at_least))

    def read_numbers(self, file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Reads [H, W] object or class numbers from a PNG.

        Raises:
            MissingFileError, MaskSizeError: if the file is missing, or differs in size from the frames, (H, W).
        """
        values = read_palette(self.present(file))
        if values.shape != size:
            raise MaskSizeError(
                f"{file}: must have the size of the frames, {size[1]} x {size[0]}, got {values.shape[1]} x "
                f"{values.shape[0]}; unpack the dataset again"
            )
        return values

    def present(self, file: Path) -> Path:
        """Checks that a file exists; returns it.

        Raises:
            MissingFileError: if it does not.
        """
        if not file.is_file():
            raise MissingFileError(f"{self.origin}: {file} is missing; download or unpack the dataset again")
        return file


class MaskCountError(UserError):
    """The number of masks differs from the number of frames."""


class MaskSizeError(UserError):
    """A mask differs in size from its frame."""


def chosen_expressions(split: Split, limit: int | None = None, names: list[str] | None = None) -> list[Expression]:
    """Returns the expressions of some videos, in the order of the split.

    Args:
        limit: only the first so many videos; None is no limit. Applied after ``names``.
        names: only these videos; None is all.

    Raises:
        UserError: if the split has no video of such a name.
    """
    videos = list(dict.fromkeys(expression.video for expression in split.expressions))
    for name in names or ():
        if name not in videos:
            raise UserError(f"--videos: {name[:60]!r} is not a video of {split.source}{did_you_mean(name, videos)}")
    chosen = set([video for video in videos if names is None or video in names][:limit])
    return [expression for expression in split.expressions if expression.video in chosen]


def with_videos(split: Split, limit: int | None = None, names: list[str] | None = None) -> Split:
    """Returns the split with some of its videos; arguments and errors are those of ``chosen_expressions``."""
    part = copy.copy(split)
    part.expressions = chosen_expressions(split, limit, names)
    return part
