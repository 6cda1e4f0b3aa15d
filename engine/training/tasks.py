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
    """The loss of a batch, and further numbers to log."""

    loss: Tensor
    numbers: dict[str, Tensor]


class Task(Protocol):
    """What the trainer needs from a task.

    Attributes:
        network_name: ``transformer`` or ``vae``: where a pipeline and a checkpoint hold the trained network.
        network: the trained network, as it is saved.
        wrapped: the module that a step calls, around ``network``; the trainer wraps it for data-parallel training.
    """

    network_name: str
    network: ModelMixin
    wrapped: nn.Module

    def step(self, batch: ClipBatch | LatentBatch) -> StepResult:
        """Runs one forward pass. All randomness of a sample comes from its seed, on the CPU."""


@dataclass(frozen=True)
class FlowOptions:
    """The flags of ``FlowTask``.

    Attributes:
        bbs_prob: probability of the start point in boundary-biased sampling, in [0, 1]; 0 samples uniformly.
        use_spa: start-point augmentation: draw the video latents from the posterior instead of taking its mean.
        objective: what the DiT predicts; see ``models.objectives``.
        timestep_beta: bias of the other timesteps; see ``sample_sigma``.
    """

    bbs_prob: float
    use_spa: bool
    objective: str = FLOW
    timestep_beta: float = 0.0


class FlowTask:
    """Trains flow matching from video latents to mask latents, or a baseline of it.

    Args:
        dit: the network to train.
        vae: frozen; encodes the clips of batches that hold frames.
        captions: embeddings of every caption in the batches.

    Raises:
        UserError: if the DiT's channels do not fit the objective.
    """

    network_name = "transformer"

    def __init__(
        self,
        dit: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        captions: Captions,
        options: FlowOptions,
    ) -> None:
        check_objective(options.objective, has_injection(dit))
        if options.objective != FLOW:
            dit.register_to_config(**{OBJECTIVE_ENTRY: options.objective})  # so that checkpoints record it
        self.network = dit
        self.wrapped: nn.Module = dit
        self.vae = vae
        self.captions = captions
        self.options = options

    def step(self, batch: ClipBatch | LatentBatch) -> StepResult:
        device = self.network.device
        generators = [Generator().manual_seed(seed) for seed in batch.seeds]
        bbs_prob, beta = self.options.bbs_prob, self.options.timestep_beta
        sigma = torch.cat([sample_sigma(1, bbs_prob, generator, beta) for generator in generators]).to(device)
        with torch.no_grad():
            latents = self._encode(batch) if isinstance(batch, ClipBatch) else batch
            mean, mask_latents = latents.mean.to(device), latents.mask_latents.to(device)
            if self.options.use_spa:
                mean = mask_vae.sample_posterior(mean, latents.log_variance.to(device), _noise_like(mean, generators))
            video_latents = mask_vae.normalise(self.vae, mean)
            if self.options.objective == REM:
                mask_latents = mask_vae.normalise(self.vae, mask_latents)
            embeddings = self.captions.lookup(batch.captions).to(device)
            noise = _noise_like(mean, generators) if self.options.objective == NOISE else video_latents
            example = training_example(self.options.objective, video_latents, mask_latents, sigma, noise)
        prediction = predict_velocity(
            self.network, example.latents, video_latents, example.sigma, embeddings, self.wrapped
        )
        is_real = self._real_latents(batch.num_real_frames, video_latents)
        errors = mean_error(prediction.float(), example.target, is_real)
        sigma = example.sigma
        at_start = sigma == 1
        numbers = {
            "loss_at_start": errors[at_start].detach().mean(),  # NaN if the batch has none: not logged
            "loss_elsewhere": errors[~at_start].detach().mean(),
        }
        return StepResult(errors.mean(), numbers)

    def _real_latents(self, num_real_frames: list[int], latents: Tensor) -> Tensor:
        """Returns [B, T'] bool: the latent frames that hold at least one frame that is not a repeat."""
        first_frame = 1 + self.vae.config.scale_factor_temporal * (torch.arange(latents.shape[2]) - 1)
        return (first_frame.clamp(min=0) < torch.tensor(num_real_frames)[:, None]).to(latents.device)

    def _encode(self, batch: ClipBatch) -> LatentBatch:
        mean, log_variance = mask_vae.encode_posterior(self.vae, batch.frames.to(self.vae.device))
        mask_latents = mask_vae.encode_masks(self.vae, batch.masks.to(self.vae.device))
        return LatentBatch(
            mean, log_variance, mask_latents, batch.captions, batch.keys, batch.seeds, batch.num_real_frames
        )


class _MaskDecoder(nn.Module):
    """Makes the decoder side of a VAE one module, for DDP to wrap: latents to unclamped logits."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return mask_vae.decode_unclamped(self.vae, latents)


@dataclass(frozen=True)
class MaskVAEOptions:
    """The flags of ``MaskVAETask``.

    Attributes:
        crop: side in pixels of the square crops to train on; 0 takes whole frames. The decoder's backward pass on whole
            frames of 480p does not fit a GPU.
        latent_noise: standard deviation of noise added to the mask latents, since the DiT's predictions are not exact.
    """

    crop: int
    latent_noise: float


class MaskVAETask:
    """Tunes the one-channel decoder with binary cross-entropy and Dice on unclamped logits; the encoder is frozen.

    Args:
        vae: from ``with_mask_head``; only its decoder side trains.
    """

    network_name = "vae"

    def __init__(self, vae: AutoencoderKLWan, options: MaskVAEOptions) -> None:
        self.network = vae
        self.options = options
        vae.requires_grad_(False)
        for module in (vae.decoder, vae.post_quant_conv):
            module.requires_grad_(True)
        self.wrapped: nn.Module = _MaskDecoder(vae)

    def step(self, batch: ClipBatch | LatentBatch) -> StepResult:
        assert isinstance(batch, ClipBatch), "the decoder is trained on masks, not on cached latents"
        generators = [Generator().manual_seed(seed) for seed in batch.seeds]
        side = self.options.crop
        crops = [_crop(masks, side, generator) for masks, generator in zip(batch.masks, generators, strict=True)]
        masks = torch.stack(crops).to(self.network.device)
        with torch.no_grad():
            latents = mask_vae.encode_masks(self.network, masks)
            latents = latents + self.options.latent_noise * _noise_like(latents, generators)
        logits = self.wrapped(latents).float().mean(dim=1, keepdim=True)
        cross_entropy = F.binary_cross_entropy_with_logits(logits, masks)
        dice = dice_loss(logits, masks)
        return StepResult(cross_entropy + dice, {"cross_entropy": cross_entropy.detach(), "dice": dice.detach()})


def _noise_like(latents: Tensor, generators: list[Generator]) -> Tensor:
    """Draws standard normal noise, each sample's from its own generator."""
    return torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]).to(latents)


def mean_error(prediction: Tensor, target: Tensor, is_real: Tensor) -> Tensor:
    """Returns [B]: each sample's mean squared error over the frames that are real.

    Args:
        prediction, target: [B, C, T, H, W].
        is_real: [B, T] bool; at least one frame of each sample is real.
    """
    by_frame = (prediction - target).square().mean(dim=(1, 3, 4))  # [B, T]
    return (by_frame * is_real).sum(dim=1) / is_real.sum(dim=1)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns the mean over the samples of 1 - Dice, in [0, 1), of sigmoid(logits) and masks, both [B, 1, T, H, W]."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * masks).sum(dim=(1, 2, 3, 4))
    total = probabilities.sum(dim=(1, 2, 3, 4)) + masks.sum(dim=(1, 2, 3, 4))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()  # the ones avoid 0 / 0 for empty masks


def _crop(masks: Tensor, side: int, generator: Generator) -> Tensor:
    """Cuts a square of ``side`` pixels at random out of [1, T, H, W]; the whole if ``side`` is 0 or larger."""
    height, width = masks.shape[-2:]
    if not side:
        return masks
    top = int(torch.randint(max(0, height - side) + 1, (1,), generator=generator))
    left = int(torch.randint(max(0, width - side) + 1, (1,), generator=generator))
    return masks[..., top : top + side, left : left + side]
