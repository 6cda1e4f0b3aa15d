"""Captions embedded once: the text encoder, 11 GB of Wan2.1's, is in memory for that alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from models.text_cache import CaptionCache, text_identity
from models.weights import LoadedFlowRVS, load_text


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
