"""A2D-Sentences, for scoring."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from datasets.annotations import each_row, is_number, numbered_frames, plain_name, read_annotations
from datasets.split import Expression, MaskSizeError, Split
from util.errors import UserError
from util.extras import extra_module
from util.images import Frame

logger = logging.getLogger(__name__)

COPIED_ID = re.compile(r"\d+ \(copy\)")  # one row of the published dataset has such an instance id, by mistake
HELD_FRAMES = 2  # a container may announce this many frames too many


class A2DSentences(Split):
    """One split of A2D-Sentences, by MTTR's list of its samples.

    A sample, our expression, is a caption about an instance at the one frame that has its mask: ``exp_id`` is the
    sample's
    index in the list, ``object_ids`` its instance, ``annotated`` its frame. Frames are all those of the clip,
    numbered from
    00001 as the masks are; they are read from its mp4.

    Args:
        root: the folder of ``Release``, ``text_annotations`` and the list of samples.
        split: ``train`` or ``test``.
        flag: the flag that named ``root``, for errors.
        faults: collects the errors of single samples, which are then left out; if None, the first is raised.

    Raises:
        UserError: if files are missing or damaged, or disagree, or the package h5py is not installed.
    """

    def __init__(self, root: Path, split: str, flag: str = "--a2d_path", faults: list[UserError] | None = None) -> None:
        extra_module("h5py", "A2D-Sentences")  # checked now, not at the first mask
        self.has_masks, self.root = True, root
        self.origin = f"{flag} {root}"
        self.clips = root / "Release" / "clips320H"
        self.annotations = root / "text_annotations" / "a2d_annotation_with_instances"
        self.source = root / f"a2d_sentences_single_frame_{split}_annotations.json"
        rows = read_annotations(self.source, self.origin)
        if not isinstance(rows, list):
            raise UserError(f"{self.source}: must list samples, got {str(rows)[:60]!r}; download the file again")
        self._clips: dict[str, tuple[int, tuple[int, int]]] = {}  # number of frames, (H, W)
        self.expressions = each_row(self._expression, rows, faults)

    def frame_file(self, expression: Expression, index: int) -> Path:  # noqa: ARG002
        """Returns the clip that holds the frame."""
        return self.clips / f"{expression.video}.mp4"

    def source_size(self, expression: Expression) -> tuple[int, int]:
        return self._clips[expression.video][1]

    def iter_frames(
        self,
        expression: Expression,
        indices: list[int],
        at_least: tuple[int, int] | None = None,  # noqa: ARG002
    ) -> Iterator[Frame]:
        file = self.frame_file(expression, 0)
        read: dict[int, Frame] = {}
        last: av.VideoFrame | None = None
        count = 0
        with _opened(self.present(file)) as container:
            # In the order of the file: masks were numbered without regard to time stamps.
            for last in container.decode(video=0):
                if last.is_corrupt:
                    raise UserError(f"{file}: damaged at frame {count + 1}; copy it again")
                if count in indices:
                    read[count] = _rgb(last)
                count += 1
                if count > max(indices):
                    break
        missing = set(indices) - set(read)
        if last is None or (missing and count + HELD_FRAMES < len(expression.frames)):
            raise UserError(f"{file}: ends after {count} of {len(expression.frames)} frames; copy it again")
        read |= dict.fromkeys(missing, _rgb(last))
        yield from (read[index] for index in indices)

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        expression.check_annotated(indices)
        assert expression.annotated is not None and expression.object_ids is not None, "samples have one of each"
        file = self.annotations / expression.video / f"{expression.frames[expression.annotated[0]]}.h5"
        mask = _instance_mask(self.present(file), int(expression.object_ids[0]))
        if mask.shape != size:
            raise MaskSizeError(
                f"{file}: must have the size of the frames, {size[1]} x {size[0]}, got {mask.shape[1]} x "
                f"{mask.shape[0]}; download the file again"
            )
        return np.repeat(mask[None], len(indices), axis=0)

    def _expression(self, row: Any, number: int) -> Expression | None:
        """Returns the expression of a row; None if the published dataset cannot use it."""
        place = f"{self.source}: row {number}"
        if not isinstance(row, list) or len(row) != 4 or not isinstance(row[0], str) or not isinstance(row[1], str):
            raise UserError(
                f"{place}: must be [query, video, frame, instance], got {str(row)[:60]!r}; download it again"
            )
        caption, video, frame, instance = row
        if isinstance(instance, str) and COPIED_ID.fullmatch(instance):
            logger.warning("%s: left out, its instance is '%s'", place, instance)
            return None
        if not is_number(frame) or not is_number(instance):
            raise UserError(
                f"{place}: frame and instance must be whole numbers, got {str(row[2:])[:60]!r}; download the file again"
            )
        if plain_name(video, place) not in self._clips:
            self._clips[video] = _frames_and_size(self.present(self.clips / f"{video}.mp4"))
        num_frames = self._clips[video][0]
        if not 1 <= int(frame) <= num_frames:
            raise UserError(f"{place}: frame must be from 1 to {num_frames}, got {frame}; download the file again")
        return Expression(
            video=video,
            exp_id=str(number),
            caption=caption,
            frames=numbered_frames(num_frames),
            object_ids=(str(int(instance)),),
            annotated=(int(frame) - 1,),
        )


def _rgb(frame: av.VideoFrame) -> Frame:
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[av.container.InputContainer]:
    try:
        with av.open(str(file.absolute())) as container:
            yield container
    except (av.FFmpegError, IndexError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: damaged or not a video ({error}); copy it again") from None


def _frames_and_size(file: Path) -> tuple[int, tuple[int, int]]:
    """Reads the number of frames and (H, W) of a clip from its header."""
    with _opened(file) as container:
        stream = container.streams.video[0]
        if stream.frames < 1:
            raise UserError(f"{file}: does not say how many frames it has; copy it again")
        return stream.frames, (stream.height, stream.width)


def _instance_mask(file: Path, instance: int) -> NDArray[np.bool_]:
    """Reads the mask [H, W] of one instance of an annotated frame."""
    try:
        with extra_module("h5py", "A2D-Sentences").File(file, "r") as content:
            instances = np.ravel(np.asarray(content["instance"])).tolist()
            masks = np.asarray(content["reMask"]) > 0  # [instances, W, H], written by MATLAB
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: damaged or not an annotation ({error}); download the file again") from None
    if masks.ndim == 2:  # without the first axis for a single instance
        masks = masks[None]
    if masks.ndim != 3 or len(masks) != len(instances):
        raise UserError(f"{file}: 'reMask' must have a mask for each of {len(instances)} instances, got {masks.shape}")
    if instance not in instances:
        raise UserError(f"{file}: must hold instance {instance}, got {instances}; download the file again")
    return masks[instances.index(instance)].T
