"""A training run that a test can afford: a DiT of one block, two captions, random latents."""

import torch
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from torch.utils.data import DataLoader

from engine.training.latent_cache import LatentBatch
from engine.training.tasks import FlowOptions, FlowTask
from engine.training.trainer import Trainer, TrainerOptions
from models.text import clean_caption, embed_captions

CAPTIONS = ["the red circle", "all squares"]


class CaptionTable:
    """Embeddings in memory."""

    @torch.no_grad()
    def __init__(self, pipeline, captions):
        rows = embed_captions(pipeline.text_encoder, pipeline.tokenizer, captions, pipeline.config.max_sequence_length)
        self.rows = dict(zip(captions, rows, strict=True))

    def lookup(self, captions):
        return torch.stack([self.rows[clean_caption(caption)] for caption in captions])


def tiny_options(**changes):
    options = {
        "max_steps": 4, "lr": 1e-3, "weight_decay": 0.01, "lr_schedule": "constant", "warmup_steps": 0,
        "lr_drop_steps": 10, "clip_max_norm": 1.0, "ema_decay": 0.9, "amp": False, "seed": 1, "save_at": (2,),
        "keep_last": 2, "print_freq": 2,
        "optimizer": "adamw", "ema_device": "cpu", "max_bad_steps": 3,
        "decay_all": False, "adam_betas": (0.9, 0.95), "adam_eps": 1e-8,
    }  # fmt: skip
    return TrainerOptions(**options | changes)


def tiny_dit(channels=32):
    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=channels, out_channels=16, text_dim=64, freq_dim=16,
        ffn_dim=32, num_layers=1,
    )  # fmt: skip


def flow_task(pipeline, dit=None, **options):
    table = CaptionTable(pipeline, CAPTIONS)
    how = FlowOptions(**{"bbs_prob": 0.5, "use_spa": True} | options)
    return FlowTask(dit or tiny_dit(), pipeline.vae, table, how)


def latent_batch(size=2, seeds=None):
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(size, 16, 2, 4, 4, generator=generator)  # noqa: E731
    keys = [("v", str(number)) for number in range(size)]
    return LatentBatch(draw(), draw(), draw(), (CAPTIONS * size)[:size], keys, seeds or list(range(size)), [5] * size)


class Endless(torch.utils.data.IterableDataset):
    def __init__(self, start):
        self.start = start

    def __iter__(self):
        while True:
            yield latent_batch()


def make_trainer(task, folder, **options):
    return Trainer(task, tiny_options(**options), folder, Accelerator(cpu=True))


def run_trainer(pipeline, folder, resume_from=None, dit=None, **options):
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(flow_task(pipeline, dit), folder, **options)
    if resume_from is not None:
        trainer.load(resume_from)
    list(trainer.run(DataLoader(Endless(trainer.step), batch_size=None)))
    return trainer
