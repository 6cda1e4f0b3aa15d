"""Converts frames, in any form that a user has them, to the tensor that the VAE takes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.mask_vae import padded_num_frames
from util.errors import UserError
from util.frames import FrameSource
from util.images import Frame, resize_frame
from util.video import open_frames

VideoFrames = (
    str | Path | FrameSource | Image.Image | NDArray[np.uint8] | Tensor | Iterable[Image.Image] | Iterable[Frame]
)
ACCEPTED = (
    "a path of a video, image or folder, what util.video.read_video returns, a PIL image, an array [T, H, W, 3] uint8, "
    "a tensor [T, 3, H, W], or an iterable of PIL images or [H, W, 3] uint8 arrays"
)


def open_path(frames: VideoFrames) -> VideoFrames:
    """Opens frames that are given as a path; returns all others as they are."""
    return open_frames(frames) if isinstance(frames, str | Path) else frames


def frames_to_tensor(frames: VideoFrames) -> Tensor:
    """Checks frames and converts them to one layout.

    Args:
        frames: a path of a video, an image or a folder of images; a ``FrameSource``; one PIL image; an array
            [T, H, W, 3] uint8; a tensor [T, 3, H, W] (uint8, or float in [-1, 1]); or an iterable of PIL images or
            [H, W, 3] uint8 arrays. RGB, one size, T >= 1.

    Returns:
        [T, 3, H, W], uint8 or float in [-1, 1].

    Raises:
        TypeError: for an object of another type.
        UserError: for frames of another shape, other values, or a file that cannot be read.
    """
    frames = open_path(frames)
    if isinstance(frames, Image.Image):
        frames = [frames]
    if isinstance(frames, Tensor):
        if len(frames) == 0:
            raise UserError("frames must hold at least one frame, got none")
        return _checked_tensor(frames)
    if not isinstance(frames, np.ndarray):
        if not isinstance(frames, Iterable):
            raise TypeError(f"frames must be {ACCEPTED}; got {type(frames).__name__}")
        frames = _stack(list(frames))
    if len(frames) == 0:
        raise UserError("frames must hold at least one frame, got none")
    return rearrange(torch.from_numpy(np.ascontiguousarray(_checked_array(frames))), "t h w c -> t c h w")


def as_video(video: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """Resizes and pads frames for the VAE.

    Args:
        video: [T, 3, H, W] from ``frames_to_tensor``.
        size: (h, w) in pixels; the resize is done on 8 bits by an antialiased bilinear filter.

    Returns:
        [1, 3, T', h, w] float32 in [-1, 1] on ``device``; T' = 4n + 1, the last frame repeated.
    """
    if video.shape[-2:] != torch.Size(size):
        array = rearrange(_to_bytes(video), "t c h w -> t h w c").cpu().numpy()
        array = np.stack([resize_frame(frame, *size) for frame in array])
        video = rearrange(torch.from_numpy(array), "t h w c -> t c h w")
    padding = padded_num_frames(len(video)) - len(video)
    video = torch.cat([video, video[-1:].expand(padding, -1, -1, -1)]).to(device)
    # In place: of the whole video, each further copy would be 5 MB a frame.
    values = video.float().div_(127.5).sub_(1) if video.dtype == torch.uint8 else video.float()
    return rearrange(values, "t c h w -> 1 c t h w")


def _checked_tensor(frames: Tensor) -> Tensor:
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise UserError(f"frames as a tensor must be [T, 3, H, W], got {list(frames.shape)}")
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point() or not -1 <= frames.min() <= frames.max() <= 1:
        raise UserError("frames as a tensor must be uint8, or float in [-1, 1]; got other values, rescale them")
    if 0 <= frames.min() < frames.max():  # as torchvision has them; nobody films without any dark pixel
        raise UserError(
            "frames as a float tensor must be in [-1, 1], -1 for black; these are all in [0, 1]: pass 2 * frames - 1"
        )
    return frames


def _checked_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        raise UserError(f"frames as arrays must be [T, H, W, 3] uint8, got {list(array.shape)} {array.dtype}")
    return array


def _stack(frames: list[Any]) -> NDArray[np.uint8]:
    if not frames:
        raise UserError("frames must hold at least one frame, got none")
    video: list[NDArray[np.uint8]] = []
    for index, frame in enumerate(frames):
        one = np.asarray(frame.convert("RGB")) if isinstance(frame, Image.Image) else frame
        if not isinstance(one, np.ndarray):
            raise TypeError(f"frames must be {ACCEPTED}; got {type(frame).__name__} at index {index}")
        if one.shape != (video or [one])[0].shape:
            raise UserError(f"frames must share one size, got {one.shape} at index {index} after {video[0].shape}")
        video.append(one)
    return np.stack(video)


def _to_bytes(video: Tensor) -> Tensor:
    if video.dtype == torch.uint8:
        return video
    return ((video.float() + 1) * 127.5).round().to(torch.uint8)
