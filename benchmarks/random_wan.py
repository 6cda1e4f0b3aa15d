"""Builds Wan models with random weights in a few sizes, and clips for them, to measure speed and memory."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from datasets.clip import ClipBatch
from models.toy_wan import build_toy_wan
from util.device import select_dtype

CAPTIONS = ["the man in a blue jacket who walks away from the car", "two dogs that turn around and run to the left"]
TEXT_LENGTH = 256


@dataclass(frozen=True)
class Size:
    """The size of networks, clips and batches.

    Attributes:
        dit, vae, text: configurations of the library's classes, without values that equal the defaults.
        clip: [T, H, W], H and W in pixels.
        batch: clips per training step, or prompts per video.
        matmul: rows of the square matrices whose product measures the device.
    """

    dit: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    clip: tuple[int, int, int]
    batch: int
    matmul: int


CHANNELS = {"in_channels": 32, "out_channels": 16}  # with direct video injection
WAN_VAE = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True], "z_dim": 16}
SIZES = {
    "toy": Size(
        {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 16, "ffn_dim": 64,
         "num_layers": 2},
        {**WAN_VAE, "base_dim": 4, "num_res_blocks": 1},
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 256},
        clip=(5, 32, 32), batch=1, matmul=256,
    ),
    # Two clips a step: with one, the library's VAE sends most convolutions on a CPU to a path many times slower.
    "mid": Size(
        {"num_attention_heads": 8, "attention_head_dim": 64, "text_dim": 256, "freq_dim": 128, "ffn_dim": 2944,
         "num_layers": 8},
        {**WAN_VAE, "base_dim": 16},
        {"d_model": 256, "d_kv": 64, "d_ff": 640, "num_layers": 3, "num_heads": 4, "vocab_size": 16384},
        clip=(9, 96, 160), batch=2, matmul=2048,
    ),
    "1.3b": Size(  # Wan2.1-T2V-1.3B
        {"num_attention_heads": 12, "attention_head_dim": 128, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960,
         "num_layers": 30},
        {**WAN_VAE, "base_dim": 96},
        {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384},
        clip=(17, 480, 832), batch=1, matmul=8192,
    ),
}  # fmt: skip
# Sizes for segmenting a video.
VIDEO_SIZES = {
    "toy": replace(SIZES["toy"], batch=2),
    "mid": Size(
        {"num_attention_heads": 2, "attention_head_dim": 128, "text_dim": 256, "freq_dim": 256, "ffn_dim": 1472,
         "num_layers": 8},
        {**WAN_VAE, "base_dim": 32},
        SIZES["mid"].text,
        clip=(33, 240, 416), batch=4, matmul=2048,
    ),
    "1.3b": replace(SIZES["1.3b"], clip=(81, 480, 832), batch=8),
}  # fmt: skip


@dataclass
class Parts:
    """Frozen networks on a device: the DiT in float32, the others in the dtype that a run gives them there."""

    dit: WanTransformer3DModel
    vae: AutoencoderKLWan
    encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase


def build_dit(size: Size) -> WanTransformer3DModel:
    return WanTransformer3DModel(**size.dit, **CHANNELS)


def build_vae(size: Size, out_channels: int = 3) -> AutoencoderKLWan:
    return AutoencoderKLWan(**size.vae, out_channels=out_channels)


def build_encoder(size: Size) -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**size.text, feed_forward_proj="gated-gelu"))


def build_parts(size: Size, device: torch.device, out_channels: int = 3) -> Parts:
    """Builds networks with the same random weights at every call.

    Args:
        out_channels: channels that the VAE decodes: 3 for video, 1 for masks.
    """
    torch.manual_seed(0)
    dtype = select_dtype("auto", device)
    with device:
        dit = build_dit(size)
        torch.set_default_dtype(dtype)  # in float32 the text encoder would not fit on many GPUs
        vae, encoder = build_vae(size, out_channels), build_encoder(size)
        torch.set_default_dtype(torch.float32)
    for model in (dit, vae, encoder):
        model.eval().requires_grad_(False)
    return Parts(dit, vae, encoder, build_toy_wan().tokenizer)


def draw_batches(size: Size) -> list[ClipBatch]:
    """Returns two batches of noise on the CPU, as from a loader; the same at every call."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(2):
        frames = 2 * torch.rand(size.batch, 3, *size.clip, generator=generator) - 1
        masks = (torch.rand(size.batch, 1, *size.clip, generator=generator) > 0.9).float()
        seeds = [number * size.batch + clip for clip in range(size.batch)]
        captions = [CAPTIONS[seed % len(CAPTIONS)] for seed in seeds]
        keys = [("video", str(seed)) for seed in seeds]
        batches.append(ClipBatch(frames, masks, captions, keys, seeds, [size.clip[0]] * size.batch))
    return batches


def count_flops(size: Size) -> tuple[int, int]:
    """Returns the FLOP of a clip: in the DiT forward and backward without recomputation, and in the VAE's encoder.

    The encoder sees video and mask. Counts on the meta device, where no fused attention hides its products.
    """
    with torch.device("meta"):
        dit, vae = build_dit(size).requires_grad_(True), build_vae(size).requires_grad_(False)
        with FlopCounterMode(display=False) as encoding:
            latents = vae.encode(torch.zeros(2, 3, *size.clip)).latent_dist.mean[:1]
        embeddings = torch.zeros(1, TEXT_LENGTH, size.text["d_model"])
        with FlopCounterMode(display=False) as training:
            dit(torch.cat([latents, latents], dim=1), torch.zeros(1), embeddings, return_dict=False)[0].sum().backward()
    return training.get_total_flops(), encoding.get_total_flops()


def keep_bfloat16(dit: WanTransformer3DModel) -> None:
    """Converts a DiT to bfloat16 as loading does: norms, time embedder and modulation stay float32."""
    kept = set(dit._keep_in_fp32_modules or [])
    for name, parameter in dit.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.bfloat16()


@torch.no_grad()
def count_video_flops(size: Size) -> dict[str, int]:
    """Counts the FLOP for one video and one prompt, by stage: encode, dit (one solver step), decode."""
    latents = torch.empty(1, 16, 1 + (size.clip[0] - 1) // 4, size.clip[1] // 8, size.clip[2] // 8, device="meta")
    embeddings = torch.empty(1, TEXT_LENGTH, size.text["d_model"], device="meta")
    with torch.device("meta"):
        dit, vae = build_dit(size), build_vae(size, 1)
        with FlopCounterMode(display=False) as encoding:
            vae.encode(torch.empty(1, 3, *size.clip))
        with FlopCounterMode(display=False) as solving:
            dit(torch.cat([latents, latents], dim=1), torch.zeros(1), embeddings, return_dict=False)
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latents)
    counters = {"encode": encoding, "dit": solving, "decode": decoding}
    return {stage: counter.get_total_flops() for stage, counter in counters.items()}
