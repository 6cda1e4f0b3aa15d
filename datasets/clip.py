"""What data hands to training: clips, and batches of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from util.errors import UserError


@dataclass(frozen=True)
class Clip:
    """One training sample.

    Attributes:
        frames: [T, 3, H, W] in [-1, 1].
        masks: [T, 1, H, W] in {0, 1}.
        caption: the sentence.
        key: (video id, expression id).
        frame_indices: position of each frame in its video; the last one repeats where the video is short.
        num_real_frames: how many are not repeats.
        source_size: (H, W) in pixels of the file.
    """

    frames: Tensor
    masks: Tensor
    caption: str
    key: tuple[str, str]
    frame_indices: tuple[int, ...]
    num_real_frames: int
    source_size: tuple[int, int]


@dataclass(frozen=True)
class ClipBatch:
    """B clips of one size: frames [B, 3, T, H, W] in [-1, 1], masks [B, 1, T, H, W] in {0, 1}."""

    frames: Tensor
    masks: Tensor
    captions: list[str]
    keys: list[tuple[str, str]]


def collate(clips: list[Clip]) -> ClipBatch:
    """Stacks clips; the only place where time and channels swap.

    Raises:
        UserError: if the clips differ in size.
    """
    sizes = {tuple(clip.frames.shape) for clip in clips}
    if len(sizes) > 1:
        raise UserError(f"--batch_size {len(clips)}: clips of different sizes {sorted(sizes)} do not stack; use 1")
    return ClipBatch(
        torch.stack([clip.frames for clip in clips]).transpose(1, 2).contiguous(),
        torch.stack([clip.masks for clip in clips]).transpose(1, 2).contiguous(),
        [clip.caption for clip in clips],
        [clip.key for clip in clips],
    )
