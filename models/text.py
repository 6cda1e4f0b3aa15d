"""Captions: cleaned, tokenized and embedded by the UMT5 encoder as Wan and the released weights expect."""

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
    """The caption as the text encoder shall see it.

    In this order: runs of whitespace become one space and the ends are stripped, HTML entities are
    unescaped once, double quotes and backslashes are deleted. Case stays.

    Source: the behaviour of the FlowRVS reference; released weights depend on it.
    """
    caption = re.sub(r"\s+", " ", caption).strip()
    return html.unescape(caption).translate({ord('"'): None, ord("\\"): None})


def clean_captions(prompts: Sequence[str]) -> list[str]:
    """``clean_caption`` of each prompt.

    Raises:
        UserError: if there are none, or one has nothing left.
    """
    if len(prompts) == 0:
        raise UserError("prompts (--text_prompts) must hold at least one sentence, got none")
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
        captions: B texts, each through ``clean_caption`` already.
        max_length: tokens per caption; longer ones are cut, with a warning.
        padding: ``longest`` computes no more rows than the longest caption has tokens. The encoder masks padding, so
            the rows of tokens are the same up to rounding, at a tenth of the cost for 20 tokens of 256.

    Returns:
        [B, max_length, D], or with ``longest`` fewer rows, in the encoder's dtype on its device; rows after the last
        token are zero, and the DiT attends to all max_length.
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
    is_token = mask.to(embeddings.device).bool()[..., None]  # an offloaded encoder answers from another device
    return torch.where(is_token, embeddings, torch.zeros_like(embeddings))


class Captions(Protocol):
    """Embeddings of many captions, such as ``CaptionCache`` keeps."""

    def lookup(self, captions: list[str]) -> Tensor:
        """[B, max_length, D] on the CPU, zero after the last token."""


def trim_rows(embedding: Tensor) -> Tensor:
    """[L, D] without the zero rows at its end; a view."""
    used = embedding.any(dim=1).nonzero()
    return embedding[: int(used[-1]) + 1 if len(used) else 0]


def pad_rows(rows: Tensor, length: int) -> Tensor:
    """[N, D] with zero rows up to [length, D]."""
    return F.pad(rows, (0, 0, 0, length - len(rows)))


def _warn_of_cut_captions(tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int) -> None:
    for caption, token_ids in zip(captions, tokenizer(captions).input_ids, strict=True):
        if len(token_ids) > max_length:
            logger.warning("caption of %d tokens is cut to %d: '%.60s...'", len(token_ids), max_length, caption)
