"""The DiT: diffusers' ``WanTransformer3DModel``, with or without direct video injection."""

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.dit_inference import is_one_row
from models.flow import timestep_of
from util.errors import UserError

PATCH_WEIGHT = "patch_embedding.weight"


def has_injection(dit: WanTransformer3DModel) -> bool:
    """Whether the DiT takes ``[latents, video_latents]``, twice as many channels as it predicts."""
    return dit.config.in_channels == 2 * dit.config.out_channels


def config_for_weights(config: dict[str, Any], tensors: dict[str, Tensor], source: str) -> dict[str, Any]:
    """Returns the DiT's config with the ``in_channels`` of the weights: C, or 2C with direct video injection.

    Raises:
        UserError: if the patch embedding is missing or has another number of input channels.
    """
    if PATCH_WEIGHT not in tensors or tensors[PATCH_WEIGHT].ndim != 5:
        raise UserError(
            f"{source}: has no 5-dimensional '{PATCH_WEIGHT}', so it holds no Wan DiT; give the weights of one"
        )
    in_channels = tensors[PATCH_WEIGHT].shape[1]
    channels = config["out_channels"] or config["in_channels"]
    if in_channels not in (channels, 2 * channels):
        raise UserError(
            f"{source}: '{PATCH_WEIGHT}' must have {channels} input channels, or {2 * channels} with direct video "
            f"injection, got {in_channels}; give the weights of a text-to-video Wan or of FlowRVS"
        )
    return {**config, "in_channels": in_channels, "out_channels": channels}


def widened(weight: Tensor) -> Tensor:
    """Widens the weight of a pretrained patch embedding for direct video injection.

    The new input channels, those of the injected video, start at zero: at first the network computes the same as
    before.

    Args:
        weight: [D, C, 1, 2, 2] for Wan2.1.

    Returns:
        [D, 2C, 1, 2, 2].
    """
    return torch.cat([weight, torch.zeros_like(weight)], dim=1)


def with_injection(dit: WanTransformer3DModel) -> WanTransformer3DModel:
    """Returns the DiT with direct video injection; widens it in place if needed, without changing what it computes."""
    if not has_injection(dit):
        narrow = dit.patch_embedding
        wide = nn.Conv3d(2 * narrow.in_channels, narrow.out_channels, narrow.kernel_size, narrow.stride).to(
            narrow.weight
        )
        wide.load_state_dict({"weight": widened(narrow.weight), "bias": narrow.bias})
        dit.patch_embedding = wide
        dit.register_to_config(in_channels=2 * dit.config.out_channels)
    return dit


def checkpoint_blocks(dit: WanTransformer3DModel, every: int) -> None:
    """Recomputes the activations of every n-th block in the backward pass instead of keeping them; 0 keeps all."""
    if every == 0:
        dit.disable_gradient_checkpointing()
        return
    chosen = set(dit.blocks[::every])

    def run(block: nn.Module, *inputs: Tensor) -> Tensor:
        return checkpoint(block, *inputs, use_reentrant=False) if block in chosen else block(*inputs)

    dit.enable_gradient_checkpointing(run)


def predict_velocity(
    dit: WanTransformer3DModel,
    latents: Tensor,
    video_latents: Tensor,
    sigma: Tensor,
    caption_embeddings: Tensor,
    network: nn.Module | None = None,
) -> Tensor:
    """Predicts the velocity at ``latents`` with one evaluation of the DiT.

    If latents and sigma are one row, expanded, the DiT gets the one row: see ``dit_inference.share_first_attention``.

    Args:
        latents: [B, C, T, H, W] on the path.
        video_latents: [B, C, T, H, W] clean; concatenated on the channel axis if the DiT has direct video injection.
        sigma: [B] in [0, 1], 1 = video.
        caption_embeddings: [B, L, D], zero after the last token.
        network: called instead of ``dit``, for instance its DDP wrapper.

    Returns:
        [B, C, T, H, W] in the dtype of ``latents``.
    """
    dtype, num_rows = dit.patch_embedding.weight.dtype, len(caption_embeddings)
    if all(is_one_row(batch) for batch in (latents, video_latents, sigma)):
        latents, video_latents, sigma = latents[:1], video_latents[:1], sigma[:1]
    model_input = torch.cat([latents, video_latents], dim=1) if has_injection(dit) else latents
    velocity = (network or dit)(
        hidden_states=model_input.to(dtype).expand(num_rows, -1, -1, -1, -1),
        timestep=timestep_of(sigma),
        encoder_hidden_states=caption_embeddings.to(dtype),
        return_dict=False,
    )[0]
    return velocity.to(latents.dtype)
