"""The interface of dataset readers: expressions, their frames and masks, and parts of a split. Free of torch."""

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
    """A sentence about a video, and the objects it means.

    Attributes:
        video: video id.
        exp_id: expression id; unique within the video, the sentence need not be.
        caption: the sentence as the dataset has it.
        frames: frame names, sorted.
        object_ids: annotation ids of the targets, several or none; None where the split hides them.
        kind: the sort of sentence, where the dataset labels it.
        annotated: positions in ``frames`` that have masks; None is all.
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
        """(video id, expression id): the unit of evaluation, never the text."""
        return self.video, self.exp_id

    def check_annotated(self, indices: list[int]) -> None:
        """Nothing, where every position has a mask.

        Raises:
            ValueError: if one has none.
        """
        bare = [] if self.annotated is None else sorted(set(indices) - set(self.annotated))
        if bare:
            raise ValueError(f"masks of {self.key} exist at positions {self.annotated} alone, asked for {bare}")


class Split(ABC):
    """One split of a dataset.

    Attributes:
        expressions: in the order of the annotation file; keys (video id, expression id) are unique.
        has_masks: whether this split's targets are public.
        root: the folder of the dataset.
        source: the annotation file.
        origin: the option that the dataset came by, with its value, for messages: ``--mevis_path DIR``.
        unsorted_videos: videos whose frames the annotation file lists in another order than by name; ours are sorted.
    """

    expressions: list[Expression]
    has_masks: bool
    root: Path
    source: Path
    origin: str = "the dataset"
    unsorted_videos: tuple[str, ...] = ()

    @abstractmethod
    def frame_file(self, expression: Expression, index: int) -> Path:
        """Where the picture at position ``index`` of ``expression.frames`` lies."""

    @abstractmethod
    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """The union of the targets at some frames, [len(indices), H, W].

        Args:
            indices: positions in ``expression.frames``.
            size: (H, W) in pixels of the frames.

        Raises:
            MissingFileError, MaskCountError, MaskSizeError: if there are none, too few or too many, of another size.
            UserError: if they are damaged.
            ValueError: for a position without annotation, see ``Expression.annotated``.
        """

    def void(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_] | None:  # noqa: ARG002
        """Pixels at some frames that count neither for nor against a prediction, [len(indices), H, W]; None is none.

        Args:
            indices, size: as of ``masks``.
        """
        return None

    def source_size(self, expression: Expression) -> tuple[int, int]:
        """(H, W) in pixels of the frames.

        Raises:
            UserError: if the first frame is missing or no image.
        """
        return image_size(self.present(self.frame_file(expression, 0)))

    def iter_frames(
        self, expression: Expression, indices: list[int], at_least: tuple[int, int] | None = None
    ) -> Iterator[Frame]:
        """The frames at some positions, each [H, W, 3] uint8 RGB, of one size; read one by one.

        Args:
            at_least: (height, width) in pixels: files may be decoded at a reduced scale that is not below it.

        Raises:
            UserError: if one is missing, damaged or of another size than the first.
        """
        first: tuple[int, ...] | None = None
        for index, repeats in itertools.groupby(indices):  # the last frame of a short video comes several times
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
        """All frames of ``iter_frames``."""
        return list(self.iter_frames(expression, indices, at_least))

    def read_numbers(self, file: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
        """[H, W] of a PNG whose values are numbers of objects or classes.

        Raises:
            MissingFileError, MaskSizeError: if it is not there, or of another size than the frames, (H, W).
        """
        values = read_palette(self.present(file))
        if values.shape != size:
            raise MaskSizeError(
                f"{file}: must have the size of the frames, {size[1]} x {size[0]}, got {values.shape[1]} x "
                f"{values.shape[0]}; unpack the dataset again"
            )
        return values

    def present(self, file: Path) -> Path:
        """``file`` itself.

        Raises:
            MissingFileError: if it is not there.
        """
        if not file.is_file():
            raise MissingFileError(f"{self.origin}: {file} is missing; download or unpack the dataset again")
        return file


class MaskCountError(UserError):
    """There are more or fewer masks than frames."""


class MaskSizeError(UserError):
    """A mask has another size than its frame."""


def chosen_expressions(split: Split, limit: int | None = None, names: list[str] | None = None) -> list[Expression]:
    """The expressions of some videos, in the order of the split.

    Args:
        limit: how many videos, from the first on; None is all.
        names: only these; None is all. ``limit`` counts what they leave.

    Raises:
        UserError: if one of the names is no video of the split.
    """
    videos = list(dict.fromkeys(expression.video for expression in split.expressions))
    for name in names or ():
        if name not in videos:
            raise UserError(f"--videos: {name[:60]!r} is no video of {split.source}{did_you_mean(name, videos)}")
    chosen = set([video for video in videos if names is None or video in names][:limit])
    return [expression for expression in split.expressions if expression.video in chosen]


def with_videos(split: Split, limit: int | None = None, names: list[str] | None = None) -> Split:
    """Returns the split with some of its videos; arguments and errors are those of ``chosen_expressions``."""
    part = copy.copy(split)
    part.expressions = chosen_expressions(split, limit, names)
    return part
