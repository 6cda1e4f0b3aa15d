"""The rows of benchmarks/inference.py: ways to segment a video, and ways to run its DiT.

A row is a function that changes a pipeline. To add one, write the function and name it in ``ROWS``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from engine.demo.vram import TILE
from models import flowrvs, mask_vae, vae_stream
from models.dit_inference import NATIVE, compile_for_any_length
from models.flowrvs import FlowRVS
from models.vae_layers import compile_layers, use_library_layers
from models.vae_stream import decode_chunks, encode_chunks, set_tiling

WHOLE, DIT = "whole", "dit"
CUDA = "CUDA"
NUM_TOKENS = 20  # of a caption of the DiT's rows; the other rows are padding


def nothing(_pipeline: FlowRVS) -> None:
    """Changes nothing."""


@dataclass(frozen=True)
class Row:
    """One way to segment.

    Attributes:
        words: how it differs from ours.
        part: the whole run, from file to files, or only the DiT, on latents that are computed before.
        change: called with the pipeline after loading; the process ends with the row.
        prompt_batch: prompts that run together.
        num_steps: solver steps, for rows of the DiT.
        keeps_memory: call ``util.memory.keep_freed_memory``.
        needs: ``CUDA``, or empty.
    """

    words: str
    part: str = WHOLE
    change: Callable[[FlowRVS], None] = nothing
    prompt_batch: int = 4
    num_steps: int = 1
    keeps_memory: bool = True
    needs: str = ""


def library_vae(pipeline: FlowRVS) -> None:
    use_library_layers(pipeline.vae)
    for parameter in pipeline.vae.parameters():
        parameter.data = parameter.data.contiguous()


def library_stream(_pipeline: FlowRVS) -> None:
    def encode(vae: AutoencoderKLWan, frames: list[Tensor]) -> list[Tensor]:
        return [vae.encode(piece.to(vae.dtype)).latent_dist.parameters for piece in frames]

    def decode(vae: AutoencoderKLWan, latents: list[Tensor]) -> list[Tensor]:
        return [vae.decode(piece.to(vae.dtype)).sample for piece in latents]

    patch.multiple(mask_vae, encode_chunks=encode, decode_chunks=decode).start()


def four_chunks(_pipeline: FlowRVS) -> None:
    vae_stream.PIXELS_AT_ONCE *= 4


def four_masks(_pipeline: FlowRVS) -> None:
    flowrvs.DECODED_PIXELS *= 4


@torch.no_grad()
def vae_compiled(pipeline: FlowRVS) -> None:
    """Compiles at small sizes, which serve all sizes, so that compilation is not measured."""
    vae, device = pipeline.vae, pipeline.device
    compile_layers(vae)
    for _ in encode_chunks(vae, [torch.zeros(1, 3, 13, 64, 64, device=device)], chunks_at_once=1):
        pass
    for num_masks in (1, 4):
        for _ in decode_chunks(vae, [torch.zeros(num_masks, 16, 4, 8, 8, device=device)], latents_at_once=1):
            pass


def tiled(pipeline: FlowRVS) -> None:
    set_tiling(pipeline.vae, TILE)


def native(pipeline: FlowRVS) -> None:
    pipeline.transformer.set_attention_backend(NATIVE)


def unshared(pipeline: FlowRVS) -> None:
    """Undoes ``share_first_attention``."""
    pipeline.transformer.patch_embedding._forward_pre_hooks.clear()
    pipeline.transformer.blocks[0].attn2._forward_pre_hooks.clear()


def compiled(pipeline: FlowRVS) -> None:
    compile_for_any_length(pipeline.transformer)


def collapsed(pipeline: FlowRVS) -> None:
    """Replaces the text's padding rows by one key whose bias is the logarithm of their number; measured, not used."""
    native(pipeline)  # flash kernels take no bias
    dit = pipeline.transformer

    def keep_one(_module: nn.Module, _inputs: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
        temb, modulation, text, image = output  # text [B, L, D]
        dit.num_padding = text.shape[1] - NUM_TOKENS
        return temb, modulation, text[:, : NUM_TOKENS + 1], image

    def add_bias(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, text, _mask, *others = inputs
        bias: Tensor = torch.zeros(len(text), 1, 1, text.shape[1], dtype=hidden.dtype, device=hidden.device)
        bias[..., -1] = math.log(dit.num_padding)
        return (hidden, text, bias, *others)

    dit.condition_embedder.register_forward_hook(keep_one)
    for block in dit.blocks:
        block.attn2.register_forward_pre_hook(add_bias)


def text_kept(pipeline: FlowRVS) -> None:
    """Computes keys and values of the text once for all steps, the most that a cache can save; measured, not used."""
    for block in pipeline.transformer.blocks:
        block.attn2.to_k, block.attn2.to_v = Remembered(block.attn2.to_k), Remembered(block.attn2.to_v)


class Remembered(nn.Module):
    """A layer that always returns its first output: correct for a single batch of captions only."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.known: Tensor | None = None

    def forward(self, text: Tensor) -> Tensor:
        if self.known is None:
            self.known = self.layer(text)
        return self.known


PLAIN = "plain"
ROWS = {
    "ours": Row(""),
    "one-prompt": Row("one prompt at a time", prompt_batch=1),
    "freed-back": Row("freed memory goes back to the system", keeps_memory=False),
    "library-vae": Row("the library's VAE layers, contiguous", change=library_vae),
    "library-stream": Row("our layers, but the library's loop over chunks", change=library_stream),
    "four-chunks": Row("four chunks pass the VAE at once", change=four_chunks),
    "four-masks": Row("four masks pass the decoder at once", change=four_masks),
    "vae-compile": Row("compiled norms", change=vae_compiled),
    "tiling": Row("the decoder in tiles of 256 x 256", change=tiled),
    "dit": Row("", DIT),
    "dit-one-prompt": Row("one prompt at a time", DIT, prompt_batch=1),
    "dit-unshared": Row("first self-attention for every prompt", DIT, unshared),
    "dit-native": Row("torch's attention", DIT, native, needs=CUDA),
    "dit-compile": Row("compiled blocks", DIT, compiled),
    "dit-collapsed": Row("padding rows as one key with a bias", DIT, collapsed),
    "dit-2": Row("2 steps", DIT, prompt_batch=8, num_steps=2),
    "dit-2-text-kept": Row("2 steps, the text's keys and values kept", DIT, text_kept, 8, num_steps=2),
}
