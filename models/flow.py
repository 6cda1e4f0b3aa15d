"""The maths of flow matching from a video to its mask. Pure functions of tensors.

Orientation is Wan's own: sigma = 1 is the source, here the video; sigma = 0 is the data, the mask.

Source: FlowRVS (arXiv 2510.06139) for the path; Wan2.1 for the shifted grid.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000  # the DiT reads sigma on this scale


def interpolate(video_latents: Tensor, mask_latents: Tensor, sigma: Tensor) -> Tensor:
    """The point at ``sigma`` on the straight path from mask to video.

    Args:
        video_latents, mask_latents: [B, C, T, H, W].
        sigma: [B] in [0, 1], 1 = video.

    Returns:
        [B, C, T, H, W] ``sigma * video_latents + (1 - sigma) * mask_latents``.
    """
    sigma = _per_sample(sigma, video_latents)
    return sigma * video_latents + (1 - sigma) * mask_latents


def velocity_target(video_latents: Tensor, mask_latents: Tensor) -> Tensor:
    """The derivative of the path by sigma, [B, C, T, H, W]: the same at every sigma."""
    return video_latents - mask_latents


def sample_sigma(
    num_samples: int, start_probability: float = 0.5, generator: torch.Generator | None = None, beta: float = 0.0
) -> Tensor:
    """Boundary-biased sampling: where on the path each training sample lies.

    Each takes timestep 1000, the video end, with ``start_probability``, otherwise a whole timestep from 1 to 1000:
    ``1000 * u ** (1 / (1 + beta))`` rounded up, u uniform. Drawn per sample, so the batch size does not change the law.

    Args:
        start_probability: in [0, 1]; 0 never prefers the start, the method uses 0.5.
        generator: on the CPU.
        beta: 0 is uniform; above 0 leans towards the video end, below 0 as much towards the mask end.

    Returns:
        [num_samples] float32 in (0, 1].
    """
    uniform = torch.rand(num_samples, generator=generator, dtype=torch.float64)
    share = uniform ** (1 / (1 + beta)) if beta >= 0 else 1 - uniform ** (1 / (1 - beta))
    timesteps = (NUM_TIMESTEPS * share).ceil().clamp(min=1)
    at_start = torch.rand(num_samples, generator=generator) < start_probability
    return (torch.where(at_start, NUM_TIMESTEPS, timesteps) / NUM_TIMESTEPS).float()


def euler_step(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Moves [B, C, T, H, W] latents from ``sigma`` to ``sigma_next`` (scalars or [B]) along ``velocity``."""
    return latents + _per_sample(sigma_next - sigma, latents) * velocity


def solve(velocity_at: Callable[[Tensor, Tensor], Tensor], video_latents: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates from the video to the mask with Euler steps.

    Args:
        velocity_at: takes latents [B, C, T, H, W] and sigma [B]; returns the velocity, [B, C, T, H, W].
        video_latents: [B, C, T, H, W], the solution at sigma = 1.
        sigmas: [num_steps + 1], falling from 1 to 0; ``velocity_at`` runs once for each but the last.

    Returns:
        [B, C, T, H, W] mask latents, the solution at sigma = 0.
    """
    latents = video_latents
    for sigma, sigma_next in itertools.pairwise(sigmas):
        velocity = velocity_at(latents, sigma.expand(len(latents)))
        latents = euler_step(latents, velocity, sigma, sigma_next)
    return latents


def sigma_schedule(num_steps: int, shift: float = 3.0) -> Tensor:
    """Times at which the Euler solver evaluates the velocity: the grid of the original's MeViS script.

    ``linspace(1, 0.001, num_steps + 1)``, shifted, rounded to whole timesteps, the last one replaced by 0.
    As timesteps: 1 step [1000, 0], 2 steps [1000, 750, 0], 4 steps [1000, 900, 750, 501, 0].

    Args:
        num_steps: solver steps; the DiT runs exactly this often.
        shift: > 1 spends more of the steps near the video end; 1 is uniform.

    Returns:
        [num_steps + 1] float32, strictly falling from 1 (video) to 0 (mask).

    Raises:
        ValueError: if ``num_steps`` is below 1, ``shift`` is not positive, or there are more steps than
            whole timesteps to place them on.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}; the method's default is 1")
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}; Wan2.1 uses 3.0")
    uniform = torch.linspace(1, 1 / NUM_TIMESTEPS, num_steps + 1, dtype=torch.float64)[:-1]
    shifted = shift * uniform / (1 + (shift - 1) * uniform)
    timesteps = torch.cat([(NUM_TIMESTEPS * shifted).round(), torch.zeros(1, dtype=torch.float64)])
    if (timesteps.diff() >= 0).any():
        raise ValueError(
            f"each of the num_steps must have a different timestep, got {num_steps} at shift {shift:g}; use at most 300"
        )
    return (timesteps / NUM_TIMESTEPS).float()


def timestep_of(sigma: Tensor) -> Tensor:
    """Sigma as the DiT reads it: [B] float32 whole numbers, 0 (mask) to 1000 (video)."""
    # Training and inference both use whole timesteps; rounding undoes the float32 error of 0.9 * 1000.
    return (NUM_TIMESTEPS * sigma.float()).round()


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Scalar or [B] shaped to multiply [B, C, T, H, W]."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))
