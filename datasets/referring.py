"""Clips of a referring video dataset: choose frames, read, resize, hand out."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.clip import Clip
from datasets.expression import Expression
from datasets.mevis import MeViS
from datasets.sampling import dense_indices
from util.frames import resize_frame
from util.images import read_image


class ReferringClips(Dataset[Clip]):
    """One item for every ``num_frames``-th frame of every expression: the clip that starts there.

    Args:
        split: a split with masks.
        num_frames: T, frames per clip.
        fitted_size: (H, W) of a file to (h, w) of the clip, in pixels.
    """

    def __init__(self, split: MeViS, num_frames: int, fitted_size: Callable[[int, int], tuple[int, int]]) -> None:
        self.split = split
        self.num_frames = num_frames
        self.fitted_size = fitted_size
        self.items: list[tuple[Expression, int]] = [
            (expression, start)
            for expression in split.expressions
            for start in range(0, len(expression.frames), num_frames)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Clip:
        expression, start = self.items[item]
        indices = dense_indices(start, self.num_frames, len(expression.frames))
        frames, source_size = self.read_frames(expression, indices)
        return Clip(
            frames=frames,
            masks=self.read_masks(expression, indices, source_size),
            caption=expression.caption,
            key=expression.key,
            frame_indices=tuple(indices),
            num_real_frames=len(set(indices)),
            source_size=source_size,
        )

    def read_frames(self, expression: Expression, indices: list[int]) -> tuple[Tensor, tuple[int, int]]:
        """Frames [T, 3, h, w] in [-1, 1] at positions of the video, and the size (H, W) of its files."""
        pictures = [read_image(self.split.frame_file(expression, index)) for index in indices]
        source_size = (pictures[0].shape[0], pictures[0].shape[1])
        frames = np.stack([resize_frame(picture, *self.fitted_size(*source_size)) for picture in pictures])
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1, source_size

    def read_masks(self, expression: Expression, indices: list[int], source_size: tuple[int, int]) -> Tensor:
        """Masks [T, 1, h, w] in {0, 1} of the targets at positions of the video."""
        height, width = self.fitted_size(*source_size)
        masks = [
            cv2.resize(mask.view(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
            for mask in self.split.masks(expression, indices, source_size)
        ]
        return torch.from_numpy(np.stack(masks))[:, None].float()
