"""Clips and batches: what the data code passes to training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from util.errors import UserError


@dataclass(frozen=True)
class Clip:
    """One training sample.

    Attributes:
        frames: [T, 3, H, W] in [-1, 1].
        masks: [T, 1, H, W] in {0, 1}.
        caption: the caption; left and right are swapped if the frames are mirrored.
        key: (video id, expression id).
        frame_indices: index of each frame in its video; the last one repeats if the video is short.
        num_real_frames: number of frames that are not repeats; they come first.
        source_size: (H, W) in pixels of the file.
        seed: random seed of what training draws for this sample: timestep and posterior noise.
        was_recentred: the random crop had lost the object and was moved back onto it.
    """

    frames: Tensor
    masks: Tensor
    caption: str
    key: tuple[str, str]
    frame_indices: tuple[int, ...]
    num_real_frames: int
    source_size: tuple[int, int]
    seed: int
    was_recentred: bool = False


@dataclass(frozen=True)
class ClipBatch:
    """B clips of one size.

    Attributes:
        frames: [B, 3, T, H, W] in [-1, 1].
        masks: [B, 1, T, H, W] in {0, 1}.
        captions, keys, seeds, num_real_frames: of each clip.
        num_recentred: number of crops that had lost their object.
    """

    frames: Tensor
    masks: Tensor
    captions: list[str]
    keys: list[tuple[str, str]]
    seeds: list[int]
    num_real_frames: list[int]
    num_recentred: int = 0


def collate(clips: list[Clip]) -> ClipBatch:
    """Stacks clips of one size; the only place where time and channels swap."""
    return ClipBatch(
        _stack([clip.frames.transpose(0, 1) for clip in clips]),
        _stack([clip.masks.transpose(0, 1) for clip in clips]),
        [clip.caption for clip in clips],
        [clip.key for clip in clips],
        [clip.seed for clip in clips],
        [clip.num_real_frames for clip in clips],
        sum(clip.was_recentred for clip in clips),
    )


def empty_to_send(*shape: int) -> Tensor:
    """Allocates float32 memory for what a loader returns.

    In a worker it is shared memory: a clip, 100 MB at 480p, is then not copied on its way to the main process.

    Raises:
        UserError: if shared memory is full.
    """
    if get_worker_info() is None:
        return torch.empty(shape)
    num_bytes = 4 * math.prod(shape)
    try:
        return torch.empty(0).set_(torch.UntypedStorage._new_shared(num_bytes)).view(shape)
    except RuntimeError as error:
        raise UserError(
            f"--num_workers: shared memory has no room for a clip of {num_bytes >> 20} MiB ({error}); start "
            "the container with more (docker run --shm-size), or lower --num_workers or --batch_size"
        ) from error


def _stack(tensors: list[Tensor]) -> Tensor:
    """Adds a batch axis in front; does not copy a single clip."""
    if len(tensors) == 1:
        return tensors[0][None].contiguous()
    return torch.stack(tensors, out=empty_to_send(len(tensors), *tensors[0].shape))
