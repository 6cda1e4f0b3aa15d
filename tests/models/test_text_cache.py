"""Embeddings of captions on disk."""

import multiprocessing
import os
import shutil
import weakref

import pytest
import torch

import models.text_cache
import models.weights
from engine.captions import embed_now
from models.text import clean_caption, embed_captions
from models.text_cache import CaptionCache, text_identity
from models.weights import load_flowrvs
from util.errors import UserError

LENGTH = 32
CAPTIONS = ["the red circle", "all squares", "a", "the big dog that moves left behind the small cat", "Über 3 cats"]
# Padding to another length, or beside other captions, sums the same float32 numbers in another order; the toy's
# embeddings have a deviation of 1.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def never():
    raise AssertionError("the encoder was loaded")


@pytest.fixture
def load(toy_pipeline):
    return lambda: (toy_pipeline.text_encoder, toy_pipeline.tokenizer)


@pytest.fixture
def open_cache(toy_folder, tmp_path):
    def build(length=LENGTH, dtype=torch.float32):
        return CaptionCache(tmp_path / "cache", text_identity(toy_folder), length, dtype)

    return build


@pytest.fixture
def embedded(monkeypatch):
    """The batches that went through the encoder."""
    batches = []

    def spy(encoder, tokenizer, captions, *rest, **options):
        batches.append(captions)
        return embed_captions(encoder, tokenizer, captions, *rest, **options)

    monkeypatch.setattr(models.text_cache, "embed_captions", spy)
    return batches


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(models.text_cache, "SHARD_SIZE", 2)
    monkeypatch.setattr(models.text_cache, "BATCH_SIZE", 1)


def shards(cache):
    return sorted(cache.folder.glob("*.safetensors"))


def numbers(count):
    return [f"{number} dogs" for number in range(count)]


@torch.no_grad()
def test_lookup_gives_the_encoder_s_embeddings(toy_pipeline, open_cache, load, embedded):
    cache = open_cache()
    cache.add_missing(CAPTIONS, load)
    direct = embed_captions(*load(), CAPTIONS, LENGTH)
    found = cache.lookup(CAPTIONS)
    assert found.dtype == direct.dtype
    torch.testing.assert_close(found, direct, **ROUNDING)
    assert torch.equal(found == 0, direct == 0)  # the zero rows are the same
    (batch,) = embedded
    stored = embed_captions(*load(), batch, LENGTH, padding="longest")
    assert torch.equal(cache.lookup(batch)[:, : stored.shape[1]], stored)  # the files change no bit


@torch.no_grad()
@pytest.mark.parametrize("padding", ["max_length", "longest"])
def test_an_embedding_does_not_depend_on_its_batch(load, padding):
    together = embed_captions(*load(), CAPTIONS, LENGTH, padding=padding)
    for caption, rows in zip(CAPTIONS, together, strict=True):
        alone = embed_captions(*load(), [caption], LENGTH, padding=padding)[0]
        torch.testing.assert_close(rows[: len(alone)], alone, **ROUNDING)
        assert not rows[len(alone) :].any()


def test_embeddings_keep_the_encoder_s_dtype(toy_folder, open_cache):
    pipeline = load_flowrvs(str(toy_folder), dtype=torch.bfloat16).pipeline
    cache = open_cache(dtype=torch.bfloat16)
    cache.add_missing(CAPTIONS, lambda: (pipeline.text_encoder, pipeline.tokenizer))
    assert cache.lookup(CAPTIONS).dtype == torch.bfloat16
    assert open_cache(dtype=torch.float32).missing(CAPTIONS)
    with pytest.raises(AssertionError, match="bfloat16"):
        open_cache(dtype=torch.float32).add_missing(["a"], lambda: (pipeline.text_encoder, pipeline.tokenizer))


def test_a_caption_is_embedded_once_ever(open_cache, load):
    assert open_cache().missing(CAPTIONS) == sorted(CAPTIONS)
    first = open_cache()
    first.add_missing(CAPTIONS, load)
    again = open_cache()
    assert again.missing(CAPTIONS) == []
    again.add_missing(CAPTIONS, never)
    assert torch.equal(again.lookup(CAPTIONS), first.lookup(CAPTIONS))


def test_opening_and_asking_write_nothing(open_cache, tmp_path):
    open_cache().missing(CAPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_new_captions_join_an_old_cache(open_cache, load, embedded):
    open_cache().add_missing(CAPTIONS[:2], load)
    cache = open_cache()
    before = cache.lookup(CAPTIONS[:2])
    cache.add_missing(CAPTIONS, load)
    assert sorted(embedded[1]) == sorted(CAPTIONS[2:])
    assert torch.equal(cache.lookup(CAPTIONS)[:2], before)
    assert open_cache().missing(CAPTIONS) == []


def test_captions_that_clean_to_the_same_text_share_one_entry(open_cache, load, embedded):
    forms = ["the  red circle", 'the "red" circle', "the red circle\n"]
    cache = open_cache()
    cache.add_missing(forms, load)
    assert embedded == [["the red circle"]]
    assert cache.lookup(forms).unique(dim=0).shape[0] == 1


def test_batches_hold_captions_of_like_length_the_longest_first(open_cache, load, embedded, small_shards, toy_pipeline):
    captions = numbers(3) + CAPTIONS
    open_cache().add_missing(captions, load)
    counts = [len(toy_pipeline.tokenizer(caption).input_ids) for batch in embedded for caption in batch]
    assert len(counts) == len(captions) and counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_an_interrupted_run_keeps_every_finished_shard(open_cache, load, embedded, small_shards, monkeypatch):
    spy = models.text_cache.embed_captions

    def interrupt(*arguments, **options):
        if len(embedded) == 5:  # in the third shard of two
            raise KeyboardInterrupt
        return spy(*arguments, **options)

    monkeypatch.setattr(models.text_cache, "embed_captions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_cache().add_missing(numbers(7), load)
    cache = open_cache()
    assert len(cache.missing(numbers(7))) == 3 and len(shards(cache)) == 2
    (cache.folder / f".{'0' * 16}.safetensors.partial-1").write_bytes(b"half a shard")  # of a killed process
    embedded.clear()
    monkeypatch.setattr(models.text_cache, "embed_captions", spy)
    cache.add_missing(numbers(7), load)
    assert len(embedded) == 3
    assert cache.lookup(numbers(7)).any(dim=(1, 2)).all()
    assert not list(cache.folder.glob(".*.partial-*"))


def test_of_two_processes_one_embeds_and_the_other_waits(open_cache, load, tmp_path):
    context = multiprocessing.get_context("fork")
    start, log = context.Barrier(2), tmp_path / "loads"

    def logged():
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return load()

    def work():
        cache = open_cache()
        assert cache.missing(numbers(40))
        start.wait(20)
        cache.add_missing(numbers(40), logged)
        assert cache.missing(numbers(40)) == [] and cache.lookup(numbers(40)).shape == (40, LENGTH, 64)

    workers = [context.Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(log.read_text().split()) == 1


def test_encoders_and_lengths_do_not_mix_in_one_folder(toy_folder, tmp_path, open_cache, load):
    open_cache().add_missing(CAPTIONS, load)
    shorter = open_cache(length=4)
    assert shorter.missing(CAPTIONS) == sorted(CAPTIONS)
    shorter.add_missing(CAPTIONS, load)
    assert shorter.lookup(CAPTIONS).shape == (5, 4, 64)
    other = CaptionCache(tmp_path / "cache", {"text_encoder/config.json": "another"}, LENGTH, torch.float32)
    assert other.missing(CAPTIONS) == sorted(CAPTIONS)
    assert open_cache().missing(CAPTIONS) == []


def test_the_identity_follows_the_files_and_not_their_place(toy_folder, tmp_path):
    copy = tmp_path / "copy"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(toy_folder / part, copy / part)
    assert text_identity(copy) == text_identity(toy_folder)
    weights = "text_encoder/model.safetensors"
    for name, position in (
        (weights, 9),
        (weights, -1),
        ("text_encoder/config.json", -2),
        ("tokenizer/tokenizer.json", 5),
    ):
        content = bytearray((toy_folder / name).read_bytes())
        content[position] ^= 1
        (copy / name).write_bytes(content)
        assert text_identity(copy) != text_identity(toy_folder), name
        shutil.copyfile(toy_folder / name, copy / name)
    (copy / weights).unlink()
    with pytest.raises(UserError, match="text_encoder or tokenizer has no files"):
        text_identity(copy)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_damaged_file_is_named_with_the_remedy(open_cache, load, small_shards, size):
    cache = open_cache()
    cache.add_missing(CAPTIONS, load)
    damaged = shards(cache)[1]
    damaged.write_bytes(damaged.read_bytes()[:size])
    with pytest.raises(UserError, match=rf"{damaged.name}: damaged .*remove it"):
        open_cache()
    with pytest.raises(UserError, match=rf"{damaged.name}: damaged .*remove it"):
        cache.lookup(CAPTIONS)
    damaged.unlink()
    cache = open_cache()
    assert 0 < len(cache.missing(CAPTIONS)) < len(CAPTIONS)
    cache.add_missing(CAPTIONS, load)
    assert cache.lookup(CAPTIONS).shape[0] == len(CAPTIONS)


def test_lookup_opens_the_files_of_its_captions_alone_and_keeps_no_rows(open_cache, load, small_shards, monkeypatch):
    cache = open_cache()
    cache.add_missing(numbers(8), load)
    assert len(shards(cache)) == 4
    opened = []
    safe_open = models.text_cache.safe_open
    monkeypatch.setattr(
        models.text_cache, "safe_open", lambda file, **rest: opened.append(file) or safe_open(file, **rest)
    )
    found = cache.lookup(["3 dogs"])
    assert len(opened) == 1
    assert found.untyped_storage().nbytes() == found.numel() * 4  # no view of the whole file
    assert not [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]


def test_only_rows_of_tokens_are_stored(open_cache, load, toy_pipeline):
    cache = open_cache()
    cache.add_missing(CAPTIONS, load)
    num_tokens = sum(len(toy_pipeline.tokenizer(clean_caption(caption)).input_ids) for caption in CAPTIONS)
    (shard,) = shards(cache)
    assert shard.stat().st_size < num_tokens * 64 * 4 + 1000


def test_a_folder_that_cannot_be_written_is_one_sentence(toy_folder, tmp_path, load):
    (tmp_path / "file").write_text("")
    cache = CaptionCache(tmp_path / "file", text_identity(toy_folder), LENGTH, torch.float32)
    with pytest.raises(UserError, match=r"--text_cache .*cannot be written"):
        cache.add_missing(CAPTIONS, load)


def test_a_full_disk_leaves_no_half_file(open_cache, load, monkeypatch):
    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise models.text_cache.SafetensorError("No space left on device")

    monkeypatch.setattr(models.text_cache, "save_file", full)
    cache = open_cache()
    with pytest.raises(UserError, match=r"--text_cache .*No space left"):
        cache.add_missing(CAPTIONS, load)
    assert {file.name for file in cache.folder.iterdir()} <= {".lock", "identity.json"}


def test_the_encoder_is_gone_once_captions_are_embedded_layer_by_layer(toy_folder, monkeypatch):
    loaded = load_flowrvs(str(toy_folder), text=False)
    encoders = []

    def load_text(*arguments):
        encoder, tokenizer = models.weights.load_text(*arguments)
        encoders.append(weakref.ref(encoder))
        return encoder, tokenizer

    monkeypatch.setattr("engine.captions.load_text", load_text)
    cpu = torch.device("cpu")
    there, whole = (embed_now(["a dog"], loaded, cpu, torch.float32, place) for place in ("layers", "cpu"))
    assert torch.equal(there, whole)
    assert [encoder() for encoder in encoders] == [None, None]
