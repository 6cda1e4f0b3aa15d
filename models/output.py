"""What ``FlowRVS`` returns, and the way from mask logits to packed masks on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from models.mask_vae import logit_threshold, resize_logits
from models.windows import Joint
from util.bitmasks import unpack_masks


@dataclass
class FlowRVSOutput(BaseOutput):
    """Masks of P prompts over T frames. Equal prompts share a row: D of the P prompts are distinct.

    Attributes:
        packed_masks: [D, T, ceil(H * W / 8)] uint8, one bit per pixel, see ``pack_masks``.
        model_logits: [D, T, h, w] float32 on the CPU, in [-1, 1], at the size that the model saw.
        rows: for each prompt, in the order given, its row in the arrays above.
        size: (H, W) of the masks in pixels.
        seconds: wall-clock time of each stage: text, encode, dit, decode.
        agreement: [W - 1, P] IoU of the masks that each two successive windows predict for the frames they share.
    """

    packed_masks: NDArray[np.uint8]
    model_logits: Tensor
    rows: list[int]
    size: tuple[int, int]
    seconds: dict[str, float]
    agreement: Tensor

    @property
    def masks(self) -> NDArray[np.bool_]:
        """[P, T, H, W] bool. Unpacked on request; ``iter_masks`` needs the memory of one frame only."""
        return unpack_masks(self.packed_masks[self.rows], self.size)

    def iter_masks(self) -> Iterator[NDArray[np.bool_]]:
        """Yields the masks of each frame, [P, H, W] bool."""
        for frame in range(self.packed_masks.shape[1]):
            yield unpack_masks(self.packed_masks[self.rows, frame], self.size)

    @property
    def logits(self) -> Tensor:
        """[P, T, H, W] float32 on the CPU, in [-1, 1]. Resized on request: 4 bytes per pixel, frame and prompt."""
        logits = self.model_logits[self.rows]
        if logits.shape[-2:] == torch.Size(self.size):
            return logits
        resized = torch.empty(*logits.shape[:2], *self.size)
        for frame in range(logits.shape[1]):
            resized[:, frame] = resize_logits(logits[:, frame], self.size)
        return resized


@dataclass(frozen=True)
class EncodedWindow:
    """Consecutive frames of a video, encoded.

    Attributes:
        start: index of the first frame.
        num_frames: without the padding to 4n + 1.
        latents: [1, C, T', H', W'] normalised video latents.
    """

    start: int
    num_frames: int
    latents: Tensor


@dataclass(frozen=True)
class FinishedFrames:
    """The frames that no later window changes, after each window.

    Attributes:
        start: index of the first of the N frames.
        logits: [P, N, h, w] float32 at the size that the model saw; N may be 0.
        joint: the state after this window; pass it as ``after`` to continue from here.
        agreement: [P] with the window before, see ``FlowRVSOutput``; None after the first window and at the end.
    """

    start: int
    logits: Tensor
    joint: Joint
    agreement: Tensor | None


def pack_masks(logits: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Resizes logits to source size, thresholds them, and packs eight pixels into a byte: 1/32 of the logits' bytes.

    Args:
        logits: [B, T, h, w] as the model predicts them.
        size: (H, W) in pixels.
        threshold: foreground where the sigmoid exceeds it.

    Returns:
        [B, T, ceil(H * W / 8)] uint8 on the same device, the first pixel in the highest bit; see
        ``util.bitmasks.unpack_masks``.
    """
    level = logit_threshold(threshold)
    frames = [_pack_bits((resize_logits(frame, size) > level).flatten(1)) for frame in logits.unbind(dim=1)]
    return torch.stack(frames, dim=1)


def _pack_bits(pixels: Tensor) -> Tensor:
    """[B, N] bool to [B, ceil(N / 8)] uint8, the first pixel in the highest bit, zeros after the last."""
    missing = -pixels.shape[1] % 8
    eights = torch.nn.functional.pad(pixels.view(torch.uint8), (0, missing)).unflatten(1, (-1, 8))  # [B, N / 8, 8]
    packed = eights[..., 0].clone()
    for bit in range(1, 8):
        packed <<= 1
        packed |= eights[..., bit]
    return packed
