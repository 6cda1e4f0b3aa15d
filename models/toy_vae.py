"""Teaches the toy VAE to reconstruct toy videos and masks, as Wan's has learnt from real ones."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from torch import Generator, Tensor
from tqdm import tqdm

from models.mask_vae import decode_unclamped
from models.vae_layers import use_fast_layers
from util.errors import UserError
from util.files import read_json
from util.images import read_image
from util.rle import decode_rle

VIDEOS_PER_STEP, MASKS_PER_STEP = 3, 1
LEARNING_RATE, WARM_UP, MAX_GRADIENT_NORM = 1.5e-3, 0.05, 0.5  # higher rates diverge
KL_WEIGHT = 2e-3  # per latent element; with less the latents grow without bound
NUM_VIDEOS_FOR_STATISTICS = 256


def read_split(split: Path, num_videos: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Videos and object masks of one split in MeViS's layout, all of one size and length.

    Returns:
        Frames [N, T, H, W, 3] and the masks of every object [M, T, H, W].

    Raises:
        UserError: if the split has no masks.
    """
    if not (split / "mask_dict.json").is_file():
        raise UserError(
            f"--train_on {split.parent}: no train/mask_dict.json in it; make it with python -m datasets.toy"
        )
    meta = read_json(split / "meta_expressions.json")["videos"]
    names = sorted(meta)[:num_videos]
    frames = np.stack(
        [
            np.stack([read_image(split / "JPEGImages" / name / f"{frame}.jpg") for frame in meta[name]["frames"]])
            for name in tqdm(names, desc="read videos", unit="video")
        ]
    )
    size = frames.shape[2:4]
    objects = read_json(split / "mask_dict.json").values()
    masks = np.stack([np.stack([decode_rle(rle, size) for rle in rles]) for rles in objects])
    return frames, masks


def train_vae(
    vae: AutoencoderKLWan, frames: NDArray[np.uint8], masks: NDArray[np.bool_], num_steps: int, seed: int = 0
) -> None:
    """Trains ``vae`` in place, then puts the statistics of its latents into its config.

    Args:
        frames: [N, T, H, W, 3]; T = 4n + 1.
        masks: [M, T, H, W].
    """
    generator = torch.Generator().manual_seed(seed)
    vae.train().requires_grad_(True)
    use_fast_layers(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, num_steps, pct_start=max(WARM_UP, 2 / num_steps)
    )
    with tqdm(range(num_steps), desc="train VAE", unit="step") as bar:
        for step in bar:
            batch = _draw_batch(frames, masks, generator)
            posterior = vae.encode(batch).latent_dist
            decoded = decode_unclamped(vae, posterior.sample(generator))
            error = decoded - batch
            divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
            loss = error.abs().mean() + error.square().mean() + KL_WEIGHT * divergence
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            if step % 50 == 0 or step == num_steps - 1:
                video_error = error[:VIDEOS_PER_STEP].abs().mean().item()
                mask_error = error[VIDEOS_PER_STEP:].abs().mean().item()
                bar.set_postfix(video=f"{video_error:.3f}", mask=f"{mask_error:.3f}")
    vae.eval().requires_grad_(False)
    _measure_latents(vae, frames)


def _draw_batch(frames: NDArray[np.uint8], masks: NDArray[np.bool_], generator: Generator) -> Tensor:
    """Videos, then masks as black and white pictures: [B, 3, T, H, W] in [-1, 1]."""
    videos = frames[torch.randint(len(frames), (VIDEOS_PER_STEP,), generator=generator).numpy()]
    drawn = masks[torch.randint(len(masks), (MASKS_PER_STEP,), generator=generator).numpy()]
    pictures = np.concatenate([videos, np.repeat(drawn[..., None] * np.uint8(255), 3, axis=-1)])
    return torch.from_numpy(pictures).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, frames: NDArray[np.uint8]) -> None:
    """Per-channel mean and deviation of video latents, for ``latents_mean`` and ``latents_std``."""
    videos = torch.from_numpy(frames[:NUM_VIDEOS_FOR_STATISTICS]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in videos.split(8)])
    std, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
