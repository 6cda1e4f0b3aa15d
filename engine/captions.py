"""Captions embedded once: the text encoder, 11 GB of Wan2.1's, is in memory for that alone."""

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from models.text import embed_captions
from models.text_cache import CaptionCache, text_identity
from models.weights import LoadedFlowRVS, load_text
from util.flags import TEXT_PLACES
from util.memory import naming_what_saves_memory, return_freed_memory

ON_GPU, IN_LAYERS, _ = TEXT_PLACES


def embed_once(
    captions: Iterable[str], loaded: LoadedFlowRVS, cache: Path, device: torch.device, dtype: torch.dtype
) -> CaptionCache:
    """Embeds the captions that are not in the cache yet; of several processes one does it, the others need no encoder.

    Args:
        loaded: names the folder of the text encoder.
        cache: a folder (--text_cache); may hold more, and be shared.
        dtype: of the encoder.

    Raises:
        UserError: if the encoder is missing or damaged, or the cache cannot be written.
    """
    length = loaded.pipeline.config.max_sequence_length
    embedded = CaptionCache(cache, text_identity(loaded.folder), length, dtype)

    def load() -> Any:
        encoder, tokenizer = load_text(loaded.folder, dtype)
        return encoder.to(device), tokenizer

    embedded.add_missing(captions, load)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # which other processes may want
    return embedded


@torch.no_grad()
def embed_now(
    captions: list[str], loaded: LoadedFlowRVS, device: torch.device, dtype: torch.dtype, place: str = ON_GPU
) -> Tensor:
    """[P, L, D] of cleaned captions, on the CPU; the text encoder comes for that alone.

    Args:
        place: one of ``util.flags.TEXT_PLACES``: on ``device``, there layer by layer, the others waiting in main
            memory, or on the CPU.

    Raises:
        UserError: if the encoder is missing or damaged, or the memory does not hold it.
    """
    encoder, tokenizer = load_text(loaded.folder, dtype)
    with naming_what_saves_memory():
        if place == IN_LAYERS:
            apply_group_offloading(encoder, onload_device=device, offload_type="leaf_level")
        elif place == ON_GPU:
            encoder.to(device)
        embeddings = embed_captions(encoder, tokenizer, captions, loaded.pipeline.config.max_sequence_length).cpu()
    del encoder
    gc.collect()  # the hooks of offloading refer to it in a circle
    return_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # which the other networks want
    return embeddings
