"""Objectives: what the DiT is trained to predict. The method's flow, and the baselines of the paper's ablation.

    flow        the velocity from the video to the mask, at any sigma
    velocity1   the velocity at sigma = 1 only, so one solver step
    noise       the velocity from Gaussian noise to the mask; the DiT sees the video by injection only
    direct      the mask latents, from the video in one evaluation
    rem         as REM does: normalised mask latents at timestep 0, decoded by the stock decoder

Source: "Deforming Videos to Masks" (arXiv 2510.06139), ablation; REM (arXiv 2410.23287).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.flow import interpolate, solve, velocity_target
from util.errors import UserError
from util.flags import OBJECTIVES

FLOW, VELOCITY1, NOISE, DIRECT, REM = OBJECTIVES
OBJECTIVE_ENTRY = "flowrvs_objective"  # entry in the config.json of a trained DiT; flow if absent
ONE_STEP = (VELOCITY1, DIRECT, REM)


@dataclass(frozen=True)
class Example:
    """A training example for the DiT.

    Attributes:
        latents: [B, C, T, H, W], its input.
        sigma: [B], the position of the input on the path.
        target: [B, C, T, H, W], what it should predict.
    """

    latents: Tensor
    sigma: Tensor
    target: Tensor


def training_example(
    objective: str, video_latents: Tensor, mask_latents: Tensor, sigma: Tensor, noise: Tensor
) -> Example:
    """Makes a training example of an objective.

    Args:
        video_latents: [B, C, T, H, W] normalised.
        mask_latents: [B, C, T, H, W] raw; for ``rem`` normalised.
        sigma: [B] in (0, 1], sampled; ``velocity1``, ``direct`` and ``rem`` ignore it.
        noise: [B, C, T, H, W] standard normal; only ``noise`` uses it.
    """
    if objective == FLOW:
        return Example(
            interpolate(video_latents, mask_latents, sigma), sigma, velocity_target(video_latents, mask_latents)
        )
    if objective == NOISE:
        return Example(interpolate(noise, mask_latents, sigma), sigma, velocity_target(noise, mask_latents))
    if objective == VELOCITY1:
        return Example(video_latents, torch.ones_like(sigma), velocity_target(video_latents, mask_latents))
    if objective == DIRECT:
        return Example(video_latents, torch.ones_like(sigma), mask_latents)
    assert objective == REM, f"unknown objective {objective}"
    return Example(video_latents, torch.zeros_like(sigma), mask_latents)


def predict_mask_latents(
    objective: str, evaluate: Callable[[Tensor, Tensor], Tensor], video_latents: Tensor, sigmas: Tensor, noise: Tensor
) -> Tensor:
    """Predicts mask latents [B, C, T, H, W], raw or normalised as in ``training_example``.

    Args:
        evaluate: the DiT: returns its prediction for latents [B, C, T, H, W] and sigma [B].
        video_latents: [B, C, T, H, W] normalised.
        sigmas: from ``sigma_schedule``.
        noise: like ``video_latents``; only ``noise`` uses it.
    """
    if objective in (FLOW, VELOCITY1):
        return solve(evaluate, video_latents, sigmas)
    if objective == NOISE:
        return solve(evaluate, noise, sigmas)
    sigma = torch.full((1,), 0.0 if objective == REM else 1.0, device=video_latents.device)
    return evaluate(video_latents, sigma.expand(len(video_latents)))


def check_objective(objective: str, injection: bool) -> None:
    """Refuses an objective that cannot work.

    Raises:
        UserError: if the name is unknown, or with ``noise`` the DiT has no direct video injection.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}; correct the config")
    if objective == NOISE and not injection:
        raise UserError(
            "--objective noise: needs direct video injection, without it the DiT sees no video; add --use_dvi"
        )


def check_num_steps(objective: str, num_steps: int) -> None:
    """Refuses several solver steps for an objective that has one.

    Raises:
        UserError: if ``num_steps`` exceeds 1 for such an objective.
    """
    if objective in ONE_STEP and num_steps > 1:
        raise UserError(f"num_steps (--num_steps) must be 1 for weights trained with objective {objective}")
