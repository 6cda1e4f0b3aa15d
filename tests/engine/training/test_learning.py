"""A small DiT overfits two captions of one clip, with the shipped toy VAE."""

import json
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from diffusers import WanTransformer3DModel
from tiny_training import CaptionTable
from torch.utils.data import DataLoader

from datasets.readers.mevis import MeViS
from datasets.referring import ClipOptions, ReferringClips
from datasets.registry import Source
from datasets.toy import write_toy_mevis
from datasets.transforms import Box
from engine.inference.results_folder import ResultsFolder
from engine.inference.segment_split import segment_split
from engine.segment_options import SegmentOptions
from engine.training.latent_cache import CachedLatents, collate_latents
from engine.training.tasks import FlowOptions, FlowTask
from engine.training.trainer import Trainer, TrainerOptions
from models.weights import load_flowrvs

TOY = Path(__file__).parents[3] / "assets" / "toy"
# Two objects that differ only in their motion. The decoder returns their ground truth with J 0.97 or more.
WORLD, CAPTIONS = 33, ["the circle that stays still", "the object moving up"]
STEPS = 200


def zeroed_dit():
    torch.manual_seed(0)
    dit = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=32, in_channels=32, out_channels=16, text_dim=64, freq_dim=64,
        ffn_dim=256, num_layers=2,
    )  # fmt: skip
    torch.nn.init.zeros_(dit.proj_out.weight)
    return dit


def test_overfitting_one_clip_drives_the_loss_near_zero_and_j_above_0_95(tmp_path):
    write_toy_mevis(tmp_path / "toy", WORLD, num_train=1, num_valid_u=1, num_valid=1)
    split = MeViS(tmp_path / "toy", "train")
    split.expressions = [expression for expression in split.expressions if expression.caption in CAPTIONS]
    pipeline = load_flowrvs(str(TOY / "flowrvs"), vae_ckpt=str(TOY / "mask_vae")).pipeline
    pipeline.register_modules(transformer=zeroed_dit())
    pipeline.set_progress_bar_config(disable=True)
    table = CaptionTable(pipeline, CAPTIONS)
    task = FlowTask(pipeline.transformer, pipeline.vae, table, FlowOptions(bbs_prob=0.5, use_spa=False))
    clips = ReferringClips([Source("toy", split)], ClipOptions(9, Box(64, 112, 8), sampling="dense"))
    latents = CachedLatents(tmp_path / "latents", clips, {"vae": "toy"})
    latents.fill(pipeline.vae)
    options = TrainerOptions(
        max_steps=STEPS, lr=3e-3, weight_decay=0.0, lr_schedule="cosine", warmup_steps=20, lr_drop_steps=1,
        clip_max_norm=1.0, ema_decay=0.9, amp=False, seed=0, save_at=(STEPS,), keep_last=1, print_freq=20,
        optimizer="adamw", ema_device="cpu", max_bad_steps=1, decay_all=False, adam_betas=(0.9, 0.95), adam_eps=1e-8,
    )  # fmt: skip
    trainer = Trainer(task, options, tmp_path, Accelerator(cpu=True))
    batches = [[(epoch, 0), (epoch, 1)] for epoch in range(STEPS)]
    for _ in trainer.run(DataLoader(latents, batch_sampler=batches, collate_fn=collate_latents)):
        pass
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 0.5
    assert losses[-1] < 0.05
    with trainer.ema.in_network():
        folder = ResultsFolder(tmp_path / "out")
        metrics = segment_split(pipeline, split, table, folder, SegmentOptions(), PartialState())
    assert len(metrics["units"]) == len(CAPTIONS)
    for unit in metrics["units"].values():
        assert unit["J"] > 0.95
