"""The training tasks: a batch in, a loss out."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, ModelMixin, WanTransformer3DModel
from torch import Generator, Tensor, nn

from datasets.clip import ClipBatch
from engine.training.latent_cache import LatentBatch
from models import mask_vae
from models.dit import has_injection, predict_velocity
from models.flow import sample_sigma
from models.objectives import FLOW, NOISE, OBJECTIVE_ENTRY, REM, check_objective, training_example
from models.text import Captions


@dataclass(frozen=True)
class StepResult:
    """A loss to differentiate, and numbers to log."""

    loss: Tensor
    numbers: dict[str, Tensor]


class Task(Protocol):
    """What the trainer needs of a task.

    Attributes:
        part: the trained network's name in a pipeline.
        model: the trained network, as it is saved.
        network: what a step runs: the model or a part of it, which data-parallel processes wrap.
    """

    part: str
    model: ModelMixin
    network: nn.Module

    def step(self, batch: ClipBatch | LatentBatch) -> StepResult:
        """One forward pass; every draw of a sample comes from its seed, on the CPU."""


class FlowTask:
    """Flow matching from video latents to mask latents, or a baseline of it.

    Args:
        dit: trained.
        vae: frozen; encodes clips that come as pictures.
        captions: embeddings of every caption of the batches.
        bbs_prob: probability of the start point in boundary-biased sampling; 0 is uniform.
        start_point_augmentation: video latents are a sample of the posterior instead of its mean.
        objective: what the DiT predicts; see ``models.objectives``.
        timestep_beta: bias of the other timesteps; see ``sample_sigma``.

    Raises:
        UserError: if the DiT cannot have the objective.
    """

    part = "transformer"

    def __init__(
        self,
        dit: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        captions: Captions,
        *,
        bbs_prob: float,
        start_point_augmentation: bool,
        objective: str = FLOW,
        timestep_beta: float = 0.0,
    ) -> None:
        check_objective(objective, has_injection(dit))
        if objective != FLOW:
            dit.register_to_config(**{OBJECTIVE_ENTRY: objective})  # checkpoints carry it
        self.model = dit
        self.network: nn.Module = dit
        self.vae = vae
        self.captions = captions
        self.bbs_prob = bbs_prob
        self.start_point_augmentation = start_point_augmentation
        self.objective = objective
        self.timestep_beta = timestep_beta

    def step(self, batch: ClipBatch | LatentBatch) -> StepResult:
        device = self.model.device
        generators = [Generator().manual_seed(seed) for seed in batch.seeds]
        sigma = torch.cat(
            [sample_sigma(1, self.bbs_prob, generator, self.timestep_beta) for generator in generators]
        ).to(device)
        with torch.no_grad():
            latents = self._encode(batch) if isinstance(batch, ClipBatch) else batch
            mean, mask_latents = latents.mean.to(device), latents.mask_latents.to(device)
            if self.start_point_augmentation:
                mean = mask_vae.sample_posterior(mean, latents.log_variance.to(device), _noise_like(mean, generators))
            video_latents = mask_vae.normalise(self.vae, mean)
            if self.objective == REM:
                mask_latents = mask_vae.normalise(self.vae, mask_latents)
            embeddings = self.captions.lookup(batch.captions).to(device)
            noise = _noise_like(mean, generators) if self.objective == NOISE else video_latents
            example = training_example(self.objective, video_latents, mask_latents, sigma, noise)
        prediction = predict_velocity(
            self.model, example.latents, video_latents, example.sigma, embeddings, self.network
        )
        is_real = self._real_latents(batch.num_real_frames, video_latents)
        errors = mean_error(prediction.float(), example.target, is_real)
        sigma = example.sigma
        at_start = sigma == 1
        numbers = {
            "loss_at_start": errors[at_start].detach().mean(),  # NaN where the batch has none: not logged
            "loss_elsewhere": errors[~at_start].detach().mean(),
        }
        return StepResult(errors.mean(), numbers)

    def _real_latents(self, num_real_frames: list[int], latents: Tensor) -> Tensor:
        """[B, T'] bool: latent frames that hold at least one frame that is no repeat."""
        first_frame = 1 + self.vae.config.scale_factor_temporal * (torch.arange(latents.shape[2]) - 1)
        return (first_frame.clamp(min=0) < torch.tensor(num_real_frames)[:, None]).to(latents.device)

    def _encode(self, batch: ClipBatch) -> LatentBatch:
        mean, log_variance = mask_vae.encode_posterior(self.vae, batch.frames.to(self.vae.device))
        mask_latents = mask_vae.encode_masks(self.vae, batch.masks.to(self.vae.device))
        return LatentBatch(
            mean, log_variance, mask_latents, batch.captions, batch.keys, batch.seeds, batch.num_real_frames
        )


class _MaskDecoder(nn.Module):
    """The decoder's side of a VAE as one module, which processes can wrap: latents to unclamped logits."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return mask_vae.decode_unclamped(self.vae, latents)


class MaskVAETask:
    """Tunes the one-channel decoder: binary cross-entropy + Dice on unclamped logits, encoder frozen.

    Args:
        vae: from ``with_mask_head``; only its decoder side trains.
        crop: side in pixels of the square crops on which it trains; the decoder's backward pass on whole frames of 480p
            does not fit a GPU. 0 takes whole frames.
        latent_noise: deviation of the noise added to mask latents, as the DiT's predictions are not exact either.
    """

    part = "vae"

    def __init__(self, vae: AutoencoderKLWan, *, crop: int, latent_noise: float) -> None:
        self.model = vae
        self.crop = crop
        self.latent_noise = latent_noise
        vae.requires_grad_(False)
        for module in (vae.decoder, vae.post_quant_conv):
            module.requires_grad_(True)
        self.network: nn.Module = _MaskDecoder(vae)

    def step(self, batch: ClipBatch | LatentBatch) -> StepResult:
        assert isinstance(batch, ClipBatch), "the decoder learns from pictures of masks"
        generators = [Generator().manual_seed(seed) for seed in batch.seeds]
        crops = [_crop(masks, self.crop, generator) for masks, generator in zip(batch.masks, generators, strict=True)]
        masks = torch.stack(crops).to(self.model.device)
        with torch.no_grad():
            latents = mask_vae.encode_masks(self.model, masks)
            latents = latents + self.latent_noise * _noise_like(latents, generators)
        logits = self.network(latents).float().mean(dim=1, keepdim=True)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
        dice = dice_loss(logits, masks)
        return StepResult(cross_entropy + dice, {"cross_entropy": cross_entropy.detach(), "dice": dice.detach()})


def _noise_like(latents: Tensor, generators: list[Generator]) -> Tensor:
    """Standard normal noise, each sample's from its own generator."""
    return torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]).to(latents)


def mean_error(prediction: Tensor, target: Tensor, is_real: Tensor) -> Tensor:
    """[B]: each sample's mean squared error over its own real frames.

    Args:
        prediction, target: [B, C, T, H, W].
        is_real: [B, T]; at least one frame of each sample.
    """
    by_frame = (prediction - target).square().mean(dim=(1, 3, 4))  # [B, T]
    return (by_frame * is_real).sum(dim=1) / is_real.sum(dim=1)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice of sigmoid(logits) and masks [B, 1, T, H, W], per sample over all its pixels, averaged; in [0, 1)."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum(dim=(1, 2, 3, 4))
    total = probabilities.sum(dim=(1, 2, 3, 4)) + masks.sum(dim=(1, 2, 3, 4))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()  # the ones make empty masks defined


def _crop(masks: Tensor, side: int, generator: Generator) -> Tensor:
    """A square of ``side`` pixels of [1, T, H, W] at a random place; all where 0 or the frames are smaller."""
    height, width = masks.shape[-2:]
    if not side:
        return masks
    top = int(torch.randint(max(0, height - side) + 1, (1,), generator=generator))
    left = int(torch.randint(max(0, width - side) + 1, (1,), generator=generator))
    return masks[..., top : top + side, left : left + side]
