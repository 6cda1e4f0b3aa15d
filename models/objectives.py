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
OBJECTIVE_ENTRY = "flowrvs_objective"  # in the config.json of a trained DiT; absent is flow
ONE_STEP = (VELOCITY1, DIRECT, REM)


@dataclass(frozen=True)
class Example:
    """One training question to the DiT, and the answer.

    Attributes:
        latents: [B, C, T, H, W], what it is given.
        sigma: [B], as which position.
        target: [B, C, T, H, W], what it should predict.
    """

    latents: Tensor
    sigma: Tensor
    target: Tensor


def training_example(
    objective: str, video_latents: Tensor, mask_latents: Tensor, sigma: Tensor, noise: Tensor
) -> Example:
    """What the DiT is asked for a sample.

    Args:
        video_latents: [B, C, T, H, W] normalised.
        mask_latents: [B, C, T, H, W] raw; for ``rem`` normalised.
        sigma: [B] in (0, 1], drawn; ``velocity1``, ``direct`` and ``rem`` have their own.
        noise: [B, C, T, H, W] standard normal; only ``noise`` starts from it.
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
    """Mask latents [B, C, T, H, W], of the kind that ``training_example`` took.

    Args:
        evaluate: the DiT: latents [B, C, T, H, W] and sigma [B] to its prediction.
        video_latents: [B, C, T, H, W] normalised.
        sigmas: from ``sigma_schedule``.
        noise: like ``video_latents``; only ``noise`` starts from it.
    """
    if objective in (FLOW, VELOCITY1):
        return solve(evaluate, video_latents, sigmas)
    if objective == NOISE:
        return solve(evaluate, noise, sigmas)
    sigma = torch.full((1,), 0.0 if objective == REM else 1.0, device=video_latents.device)
    return evaluate(video_latents, sigma.expand(len(video_latents)))


def check_objective(objective: str, injection: bool) -> None:
    """Refuses what cannot work.

    Raises:
        UserError: if the name is unknown, or ``noise`` meets a DiT that never sees the video.
    """
    if objective not in OBJECTIVES:
        raise UserError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}; correct the config")
    if objective == NOISE and not injection:
        raise UserError("objective noise starts from noise, so the DiT must see the video: train with --use_dvi")


def check_num_steps(objective: str, num_steps: int) -> None:
    """Refuses several steps where the DiT learnt one.

    Raises:
        UserError: if ``num_steps`` exceeds 1 for such an objective.
    """
    if objective in ONE_STEP and num_steps > 1:
        raise UserError(f"num_steps (--num_steps) must be 1 for weights trained with objective {objective}")
