"""Captions as Wan's text encoder shall see them."""

import logging

import pytest
import torch

from models.text import clean_caption, clean_captions, embed_captions
from util.errors import UserError


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\t dog \n runs ", "a dog runs"),
        ("Tom &amp; Jerry", "Tom & Jerry"),
        ("&amp;lt;b&amp;gt;", "&lt;b&gt;"),  # unescaped once, not until nothing is left
        ('the "red" car', "the red car"),
        ("say &quot;hi&quot;", "say hi"),  # the quotes that unescaping makes go too
        ("back\\slash", "backslash"),
        ("Der KÄFER", "Der KÄFER"),  # neither lower-cased nor normalised
        ("a&nbsp;b", "a\xa0b"),  # whitespace is folded before entities become characters
    ],
)
def test_captions_are_cleaned_in_the_order_of_the_reference(raw, clean):
    assert clean_caption(raw) == clean


@pytest.mark.parametrize("prompts", [[], [""], ["a dog", "  "], ['"\\"'], ['" "'], ["&nbsp;"], ["caf\udce9"]])
def test_prompts_without_words_are_refused(prompts):
    with pytest.raises(UserError, match="text_prompts"):
        clean_captions(prompts)


@torch.no_grad()
def test_rows_after_the_last_token_are_zero_and_the_others_are_the_encoder_s(toy_pipeline):
    tokenizer, encoder = toy_pipeline.tokenizer, toy_pipeline.text_encoder
    captions = ["the red circle", "a"]
    embeddings = embed_captions(encoder, tokenizer, captions, 12)
    assert embeddings.shape == (2, 12, 64)
    for caption, rows in zip(captions, embeddings, strict=True):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        length = ids.shape[1]
        assert (rows[length:] == 0).all()
        torch.testing.assert_close(rows[:length], encoder(ids).last_hidden_state[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_caption_longer_than_the_limit_is_cut_with_a_warning(toy_pipeline, caplog):
    with caplog.at_level(logging.WARNING, "models.text"):
        embeddings = embed_captions(toy_pipeline.text_encoder, toy_pipeline.tokenizer, ["red " * 40, "red"], 8)
    assert embeddings.shape[1] == 8
    assert [record.levelname for record in caplog.records] == ["WARNING"]
