"""The toy Wan folder: builds the networks, trains the VAE, writes the folder."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from numpy.typing import NDArray
from torch import Generator, Tensor
from tqdm import tqdm
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from models.mask_vae import decode_unclamped
from models.vae_layers import use_fast_layers
from util.errors import UserError
from util.files import read_json, staged_folder
from util.images import read_image
from util.rle import decode_rle

# Entries of model_index.json: the box has the aspect ratio of 480 x 832, captions are short.
FLOWRVS_ENTRIES = {"max_sequence_length": 32, "box_height": 64, "box_width": 112}

LATENT_CHANNELS = 16
TEXT_WIDTH = 64
POSITION_BIAS_SCALE = 12.0  # gives a standard deviation of 1.5

WORDS = """
    a above all and at away back behind below big black blue bottom brown car cat circle circles dark dog down
    first front green grey in is it larger left light lower man moves moving object objects of on orange person
    purple red right round shape shapes side small smaller square squares stays still that the to top towards
    triangle triangles turns two up upper which white with woman yellow
"""

VIDEOS_PER_STEP, MASKS_PER_STEP = 3, 1
LEARNING_RATE, WARM_UP, MAX_GRADIENT_NORM = 1.5e-3, 0.05, 0.5  # higher rates diverge
KL_WEIGHT = 2e-3  # per latent element; with less the latents grow without bound
NUM_VIDEOS_FOR_STATISTICS = 256


def build_toy_wan(seed: int = 0) -> WanPipeline:
    """Builds random networks that fit each other; the same for the same seed.

    The VAE has stride 4 in space (one halving fewer than Wan's), which gives the small DiT four times the tokens, and
    stride 4 in time. Its config holds both.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = _build_tokenizer()
        return WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_build_text_encoder(tokenizer),
            vae=AutoencoderKLWan(
                base_dim=8,
                z_dim=LATENT_CHANNELS,
                dim_mult=[1, 2, 4],
                num_res_blocks=1,
                temperal_downsample=[True, True],
                # Meaningless for random weights, but 0 and 1 would hide a forgotten normalisation.
                latents_mean=[0.05 * (channel - 8) for channel in range(LATENT_CHANNELS)],
                latents_std=[0.8 + 0.05 * channel for channel in range(LATENT_CHANNELS)],
                scale_factor_spatial=4,
                scale_factor_temporal=4,
            ),
            transformer=WanTransformer3DModel(
                num_attention_heads=6,
                attention_head_dim=32,
                in_channels=LATENT_CHANNELS,
                out_channels=LATENT_CHANNELS,
                text_dim=TEXT_WIDTH,
                freq_dim=64,
                ffn_dim=768,
                num_layers=6,
            ),
            scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        )


def write_toy_wan(out: Path, seed: int = 0, train_on: Path | None = None, vae_steps: int = 3000) -> None:
    """Writes the folder ``out``, whole or not at all.

    Args:
        train_on: root of a toy MeViS; the VAE is trained on its training split.

    Raises:
        UserError: if ``out`` exists, or ``train_on`` holds no toy MeViS.
    """
    if out.exists():
        raise UserError(f"--out {out}: already exists; give a new folder or remove it")
    with staged_folder(out.parent, out.name) as staging:
        wan = build_toy_wan(seed)
        if train_on is not None:
            # A DiT trained from scratch learns faster if it starts with a velocity of zero.
            torch.nn.init.zeros_(wan.transformer.proj_out.weight)
            train_vae(wan.vae, *read_split(train_on / "train"), num_steps=vae_steps, seed=seed)
        wan.save_pretrained(staging)
        index_file = staging / "model_index.json"
        index = read_json(index_file)
        index_file.write_text(json.dumps(index | FLOWRVS_ENTRIES, indent=2) + "\n", encoding="utf-8")
        staging.replace(out)


def _build_text_encoder(tokenizer: T5TokenizerFast) -> UMT5EncoderModel:
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=16,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=0,
            feed_forward_proj="gated-gelu",
        )
    )
    # At the library's scale every head attends to all words equally, so "the circle left of the square" and "the square
    # left of the circle" would be the same: the DiT's cross-attention has no positions either.
    for block in encoder.encoder.block:
        block.layer[0].SelfAttention.relative_attention_bias.weight.data.mul_(POSITION_BIAS_SCALE)
    return encoder


def _build_tokenizer() -> T5TokenizerFast:
    """Builds a tokenizer of all printable ASCII characters, so any caption has tokens, and of common words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    characters = [(chr(code), -8.0) for code in range(ord("!"), ord("~") + 1)]
    words = [(f"▁{word}", -3.0) for word in WORDS.split()]
    return T5TokenizerFast(vocab=special + characters + words, extra_ids=0)


def read_split(split: Path, num_videos: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Reads videos and object masks of a split in MeViS's layout; all have one size and length.

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
    """Trains ``vae`` in place, then writes the statistics of its latents into its config.

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
    """Draws videos and masks, as black and white videos: [B, 3, T, H, W] in [-1, 1]."""
    videos = frames[torch.randint(len(frames), (VIDEOS_PER_STEP,), generator=generator).numpy()]
    drawn = masks[torch.randint(len(masks), (MASKS_PER_STEP,), generator=generator).numpy()]
    frames_and_masks = np.concatenate([videos, np.repeat(drawn[..., None] * np.uint8(255), 3, axis=-1)])
    return torch.from_numpy(frames_and_masks).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, frames: NDArray[np.uint8]) -> None:
    """Sets ``latents_mean`` and ``latents_std`` to mean and standard deviation per channel of the video latents."""
    videos = torch.from_numpy(frames[:NUM_VIDEOS_FOR_STATISTICS]).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in videos.split(8)])
    std, mean = torch.std_mean(latents, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
