"""Converts frames, in any form that a user has them, to the tensor that the VAE takes."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.mask_vae import padded_num_frames
from util.errors import UserError
from util.images import Frame, resize_frame

VideoFrames = NDArray[np.uint8] | Tensor | Sequence[Image.Image] | Sequence[Frame]


def frames_to_tensor(frames: VideoFrames) -> Tensor:
    """Checks frames and converts them to one layout.

    Args:
        frames: an array [T, H, W, 3] uint8, a tensor [T, 3, H, W] (uint8, or float in [-1, 1]), or a list of
            PIL images or [H, W, 3] uint8 arrays; RGB, one size, T >= 1.

    Returns:
        [T, 3, H, W], uint8 or float in [-1, 1].

    Raises:
        UserError: for anything else.
    """
    if len(frames) == 0:
        raise UserError("frames must hold at least one frame, got none")
    if isinstance(frames, Tensor):
        return _checked_tensor(frames)
    array = _checked_array(frames if isinstance(frames, np.ndarray) else _stack(frames))
    return rearrange(torch.from_numpy(np.ascontiguousarray(array)), "t h w c -> t c h w")


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
    return frames


def _checked_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        raise UserError(f"frames as arrays must be [T, H, W, 3] uint8, got {list(array.shape)} {array.dtype}")
    return array


def _stack(frames: Sequence[Image.Image] | Sequence[Frame]) -> NDArray[np.uint8]:
    video = [np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame) for frame in frames]
    for index, frame in enumerate(video):
        if frame.shape != video[0].shape:
            raise UserError(f"frames must share one size, got {frame.shape} at index {index} after {video[0].shape}")
    return np.stack(video)


def _to_bytes(video: Tensor) -> Tensor:
    if video.dtype == torch.uint8:
        return video
    return ((video.float() + 1) * 127.5).round().to(torch.uint8)
