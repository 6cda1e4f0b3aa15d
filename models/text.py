"""Cleans, tokenizes and embeds captions with the UMT5 encoder, as Wan and the released weights expect."""

import html
import logging
import re
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from util.errors import UserError

logger = logging.getLogger(__name__)


def clean_caption(caption: str) -> str:
    """Cleans a caption for the text encoder.

    In this order: replaces each run of whitespace by one space and strips the ends, unescapes HTML entities once,
    deletes
    double quotes and backslashes. Does not change case.

    Source: the behaviour of the FlowRVS reference; released weights depend on it.
    """
    caption = re.sub(r"\s+", " ", caption).strip()
    return html.unescape(caption).translate({ord('"'): None, ord("\\"): None})


def clean_captions(prompts: Sequence[str]) -> list[str]:
    """Cleans each prompt with ``clean_caption``.

    Raises:
        TypeError: if a prompt is no string.
        UserError: if there are no prompts, or one is empty.
    """
    if not isinstance(prompts, Sequence) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"prompts must be a string or a list of strings, got {prompts!r:.60}")
    if len(prompts) == 0:
        raise UserError("prompts (--text_prompts) must hold at least one prompt, got none")
    captions = [clean_caption(prompt) for prompt in prompts]
    for prompt, caption in zip(prompts, captions, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in caption):
            raise UserError(f"prompts (--text_prompts) must be UTF-8, got other bytes in {prompt!a}")
        if not caption.strip():
            raise UserError(f"prompts (--text_prompts) must not be empty, got {prompt!r}; describe an object")
    return captions


def embed_captions(
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    captions: list[str],
    max_length: int,
    padding: Literal["max_length", "longest"] = "max_length",
) -> Tensor:
    """Embeds cleaned captions.

    Args:
        captions: B texts from ``clean_caption``.
        max_length: tokens per caption; longer ones are cut, with a warning.
        padding: ``longest`` computes only as many rows as the longest caption has tokens. The encoder masks padding,
            so the
            rows of tokens are the same up to rounding, at a tenth of the cost for 20 tokens of 256.

    Returns:
        [B, max_length, D], or with ``longest`` fewer rows, in the encoder's dtype on its device. Rows after the last
        token
        are zero; the DiT attends to all max_length.
    """
    _warn_of_cut_captions(tokenizer, captions, max_length)
    tokens = tokenizer(
        captions,
        padding=padding,
        max_length=max_length,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    ).to(text_encoder.device)
    mask = tokens.attention_mask  # [B, L]
    embeddings = text_encoder(tokens.input_ids, attention_mask=mask).last_hidden_state  # [B, L, D]
    is_token = mask.to(embeddings.device).bool()[..., None]  # an offloaded encoder returns its output on another device
    return torch.where(is_token, embeddings, torch.zeros_like(embeddings))


class Captions(Protocol):
    """Embeddings of many captions, for instance a ``CaptionCache``."""

    def lookup(self, captions: list[str]) -> Tensor:
        """Returns [B, max_length, D] on the CPU, zero after the last token."""


def trim_rows(embedding: Tensor) -> Tensor:
    """Returns a view of [L, D] without the zero rows at its end."""
    used = embedding.any(dim=1).nonzero()
    return embedding[: int(used[-1]) + 1 if len(used) else 0]


def pad_rows(rows: Tensor, length: int) -> Tensor:
    """Pads [N, D] with zero rows to [length, D]."""
    return F.pad(rows, (0, 0, 0, length - len(rows)))


def _warn_of_cut_captions(tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int) -> None:
    for caption, token_ids in zip(captions, tokenizer(captions).input_ids, strict=True):
        if len(token_ids) > max_length:
            logger.warning("caption of %d tokens is cut to %d: '%.60s...'", len(token_ids), max_length, caption)
