"""The end of the work on the device: logits to source size, to masks, to one bit a pixel."""

import torch
from torch import Tensor

from models.mask_vae import logit_threshold, resize_logits


def pack_masks(logits: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Masks at source size, eight pixels a byte: what leaves the device is a 32nd of the logits.

    Args:
        logits: [B, T, h, w] as the model gives them.
        size: (H, W) in pixels.
        threshold: foreground where the sigmoid exceeds it.

    Returns:
        [B, T, ceil(H * W / 8)] uint8 on the same device, see ``util.bitmasks.unpack_masks``.
    """
    cut = logit_threshold(threshold)
    frames = [_pack_bits((resize_logits(frame, size) > cut).flatten(1)) for frame in logits.unbind(dim=1)]
    return torch.stack(frames, dim=1)


def merge_objects(logits: Tensor, numbers: list[int], size: tuple[int, int], threshold: float) -> Tensor:
    """One object number a pixel: of the highest probability, the first of equals; 0 where all are below ``threshold``.

    Args:
        logits: [N, T, h, w], one object each.
        numbers: of the objects, 1 to 255.
        size: (H, W) in pixels.

    Returns:
        [T, H, W] uint8 on the same device.

    Source: the Ref-DAVIS17 protocol of ReferFormer, whose background of 0.1 any kept probability exceeds.
    """
    labels = torch.zeros(logits.shape[1], *size, dtype=torch.uint8, device=logits.device)
    for frame, merged in zip(logits.unbind(dim=1), labels, strict=True):
        highest = torch.zeros(size, device=logits.device)
        # Probabilities, not logits: those that round to the same are equal. No argmax: it may take any of equals.
        for number, probability in zip(numbers, resize_logits(frame, size).sigmoid(), strict=True):
            is_higher = (probability >= threshold) & (probability > highest)
            merged.masked_fill_(is_higher, number)
            highest = torch.where(is_higher, probability, highest)
    return labels


def _pack_bits(pixels: Tensor) -> Tensor:
    """[B, N] bool to [B, ceil(N / 8)] uint8, the first pixel in the highest bit, zeros after the last."""
    missing = -pixels.shape[1] % 8
    eights = torch.nn.functional.pad(pixels.view(torch.uint8), (0, missing)).unflatten(1, (-1, 8))  # [B, N / 8, 8]
    packed = eights[..., 0].clone()
    for place in range(1, 8):
        packed <<= 1
        packed |= eights[..., place]
    return packed
