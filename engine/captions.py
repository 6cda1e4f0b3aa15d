"""Embeds captions once. The text encoder, 11 GB for Wan2.1, is in memory only for that."""

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
from util.memory import naming_what_saves_memory, return_freed_memory, return_gpu_memory

ON_GPU, IN_LAYERS, _ = TEXT_PLACES


def embed_once(
    captions: Iterable[str], loaded: LoadedFlowRVS, cache: Path, device: torch.device, dtype: torch.dtype
) -> CaptionCache:
    """Embeds the captions that are not in the cache yet. One process does it; the others do not load the encoder.

    Args:
        loaded: names the folder of the text encoder.
        cache: the cache folder (--text_cache); it may be shared and hold other captions.
        dtype: number format of the encoder.

    Raises:
        UserError: if the encoder is missing or damaged, or the cache cannot be written.
    """
    length = loaded.pipeline.config.max_sequence_length
    embedded = CaptionCache(cache, text_identity(loaded.folder), length, dtype)

    def load() -> Any:
        encoder, tokenizer = load_text(loaded.folder, dtype)
        return encoder.to(device), tokenizer

    embedded.add_missing(captions, load)
    return_gpu_memory(device)
    return embedded


@torch.no_grad()
def embed_now(
    captions: list[str], loaded: LoadedFlowRVS, device: torch.device, dtype: torch.dtype, place: str = ON_GPU
) -> Tensor:
    """Embeds cleaned captions to [P, L, D] on the CPU; loads the text encoder and frees it afterwards.

    Args:
        place: one of ``util.flags.TEXT_PLACES``: ``gpu`` runs on ``device``, ``layers`` there layer by layer while
            the other
            layers wait in main memory, ``cpu`` on the CPU.

    Raises:
        UserError: if the encoder is missing or damaged, or does not fit into memory.
    """
    encoder, tokenizer = load_text(loaded.folder, dtype)
    with naming_what_saves_memory():
        if place == IN_LAYERS:
            apply_group_offloading(encoder, onload_device=device, offload_type="leaf_level")
        elif place == ON_GPU:
            encoder.to(device)
        embeddings = embed_captions(encoder, tokenizer, captions, loaded.pipeline.config.max_sequence_length).cpu()
    del encoder
    gc.collect()  # the hooks of offloading hold a reference cycle
    return_freed_memory()
    return_gpu_memory(device)
    return embeddings
