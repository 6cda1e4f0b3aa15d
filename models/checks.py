"""Checks that the networks of a ``FlowRVS`` fit each other, and the numbers of a call."""

from typing import Any

from models import mask_vae
from models.dit import has_injection
from models.objectives import check_objective
from util.errors import UserError
from util.flags import HIGHEST_THRESHOLD, LOWEST_THRESHOLD


def check_networks(pipeline: Any) -> None:
    """Compares the configs of a ``FlowRVS`` and of its networks.

    Raises:
        UserError: if the networks do not fit each other, or an entry of a config is out of range.
    """
    dit, vae = pipeline.transformer.config, pipeline.vae.config
    check_objective(pipeline.config.objective, has_injection(pipeline.transformer))
    mask_vae.check_strides(pipeline.vae)
    if dit.image_dim is not None or dit.added_kv_proj_dim is not None:
        raise UserError("transformer: an image-to-video DiT has image inputs that FlowRVS does not feed; use T2V")
    if vae.z_dim != dit.out_channels or dit.in_channels not in (vae.z_dim, 2 * vae.z_dim):
        raise UserError(
            f"transformer and vae must agree on latent channels: the DiT maps {dit.in_channels} to "
            f"{dit.out_channels}, the VAE has {vae.z_dim}; take both from one model"
        )
    if pipeline.text_encoder is not None and pipeline.text_encoder.config.d_model != dit.text_dim:
        raise UserError(
            f"text_encoder and transformer must agree on the embedding width, got "
            f"{pipeline.text_encoder.config.d_model} and {dit.text_dim}; take both from one model"
        )
    if dit.patch_size[0] != 1:
        raise UserError(f"transformer: patch_size must be 1 in time, got {dit.patch_size[0]}")
    if not len(vae.latents_mean) == len(vae.latents_std) == vae.z_dim or min(vae.latents_std) <= 0:
        raise UserError(
            f"vae: latents_mean and latents_std must hold {vae.z_dim} numbers each, the latter positive, got "
            f"{vae.latents_mean} and {vae.latents_std}; correct vae/config.json"
        )
    for name in ("max_sequence_length", "box_height", "box_width"):
        if not isinstance(pipeline.config[name], int) or pipeline.config[name] < 1:
            raise UserError(
                f"{name} must be a whole number from 1, got {pipeline.config[name]!r}; correct model_index.json"
            )


def check_numbers(threshold: float, prompt_batch: int) -> None:
    """Raises a ``ValueError`` if ``threshold`` or ``prompt_batch`` is out of range."""
    if not LOWEST_THRESHOLD <= threshold <= HIGHEST_THRESHOLD:
        raise ValueError(
            f"threshold must lie in [{LOWEST_THRESHOLD}, {HIGHEST_THRESHOLD}], got {threshold}: logits are clamped to "
            "[-1, 1], so outside this range all pixels would be the same"
        )
    if prompt_batch < 1:
        raise ValueError(f"prompt_batch must be at least 1, got {prompt_batch}")
