"""JHMDB-Sentences, for scoring."""

from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.annotations import each_row, is_number, numbered_frames, plain_name, read_annotations
from datasets.split import Expression, MaskCountError, MaskSizeError, Split
from util.errors import UserError
from util.extras import extra_module


class JHMDBSentences(Split):
    """JHMDB-Sentences, by MTTR's list of its samples.

    A sample, our expression, is a caption at the one frame that has its mask: ``exp_id`` is the sample's index in the
    list,
    ``annotated`` its frame. Frames are those of the video that have masks.

    Args:
        root: the folder of ``Rename_Images``, ``puppet_mask`` and the list of samples.
        flag: the flag that named ``root``, for errors.
        faults: collects the errors of single samples, which are then left out; if None, the first is raised.

    Raises:
        UserError: if files are missing or damaged, or disagree, or the package scipy is not installed.
    """

    def __init__(self, root: Path, flag: str = "--jhmdb_path", faults: list[UserError] | None = None) -> None:
        extra_module("scipy.io", "JHMDB-Sentences")  # checked now, not at the first mask
        self.has_masks, self.root = True, root
        self.origin = f"{flag} {root}"
        self.source = root / "jhmdb_sentences_samples_metadata.json"
        rows = read_annotations(self.source, self.origin)
        if not isinstance(rows, list):
            raise UserError(f"{self.source}: must list samples, got {str(rows)[:60]!r}; download the file again")
        self._actions: dict[str, str] = {}
        self.expressions = each_row(self._expression, rows, faults)

    def frame_file(self, expression: Expression, index: int) -> Path:
        return self._frame_folder(expression.video) / f"{expression.frames[index]}.png"

    def masks(self, expression: Expression, indices: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
        expression.check_annotated(indices)
        file = self.root / "puppet_mask" / self._actions[expression.video] / expression.video / "puppet_mask.mat"
        video_masks = _puppet_masks(self.present(file))
        height, width, num_masks = video_masks.shape
        if (height, width) != size or num_masks <= max(indices):
            fault = MaskCountError if (height, width) == size else MaskSizeError
            raise fault(
                f"{file}: must have a mask of {size[1]} x {size[0]} at frame {max(indices) + 1}, got {num_masks} of "
                f"{width} x {height}; download the file again"
            )
        return video_masks[:, :, indices].transpose(2, 0, 1)

    def _frame_folder(self, video: str) -> Path:
        return self.root / "Rename_Images" / self._actions[video] / video

    def _expression(self, row: Any, number: int) -> Expression:
        place = f"{self.source}: row {number}"
        if (
            not isinstance(row, list)
            or len(row) != 5
            or not all(isinstance(row[column], str) for column in (0, 1, 2, 4))
        ):
            raise UserError(
                f"{place}: must be [video, frame file, mask file, number of frames, query], got {str(row)[:60]!r}; "
                "download the file again"
            )
        video, frame_file, _, num_frames, caption = row
        # The paths are those of the machine that made the list; from the action folder on they hold here too.
        action, folder, frame = (("",) * 3 + PureWindowsPath(frame_file).parts)[-3:]
        if folder != video:
            raise UserError(f"{place}: the frame must lie in the folder {video[:60]!r}, got {folder[:60]!r}")
        self._actions[plain_name(video, place)] = plain_name(action, place)
        position = frame.removesuffix(".png")
        if not is_number(position) or not is_number(num_frames) or not 1 <= int(position) <= int(num_frames):
            raise UserError(
                f"{place}: the frame must be a number from 1 to that of the frames, got {frame[:60]!r} of "
                f"{str(num_frames)[:60]}; download the file again"
            )
        self.present(self._frame_folder(video) / f"{int(num_frames):05d}.png")  # checked before they are listed
        return Expression(
            video=video,
            exp_id=str(number),
            caption=caption,
            frames=numbered_frames(int(num_frames)),
            object_ids=None,
            annotated=(int(position) - 1,),
        )


def _puppet_masks(file: Path) -> NDArray[np.bool_]:
    """Reads [H, W, T] masks of the actor."""
    try:
        masks = np.asarray(extra_module("scipy.io", "JHMDB-Sentences").loadmat(file)["part_mask"] > 0)
    except UserError:
        raise
    except Exception as error:  # scipy raises all kinds of errors on damaged bytes
        raise UserError(f"{file}: no masks or damaged ({error}); download the file again") from None
    if masks.ndim != 3:
        raise UserError(f"{file}: 'part_mask' must be of height, width and time, got {masks.shape}")
    return masks
