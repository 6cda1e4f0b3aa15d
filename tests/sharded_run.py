"""One process of tests/engine/training/test_fsdp.py: trains a tiny DiT, plain or sharded, and checks what it holds.

torchrun --nproc_per_node=2 tests/sharded_run.py FOLDER plain|sharded STEPS [CHECKPOINT]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accelerate import Accelerator
from diffusers import WanTransformer3DModel
from torch import nn

from engine.training.fsdp import shard_network
from engine.training.latent_cache import LatentBatch
from engine.training.tasks import FlowTask
from engine.training.trainer import Trainer, TrainerOptions
from models.dit import checkpoint_blocks


class Captions:
    def lookup(self, captions):
        return torch.ones(len(captions), 4, 64)


class FakeVAE(nn.Module):
    class config:
        latents_mean, latents_std, scale_factor_temporal = [0.0] * 16, [1.0] * 16, 4


def batches(rank, step):
    while True:
        generator = torch.Generator().manual_seed(100 * step + rank)
        draw = lambda: torch.randn(1, 16, 2, 4, 4, generator=generator)  # noqa: B023, E731
        yield LatentBatch(draw(), draw(), draw(), ["a"], [("v", "0")], [100 * step + rank], [5])
        step += 1


def main(folder, form, steps, checkpoint=None):
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    dit = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=32, out_channels=16, text_dim=64, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip
    checkpoint_blocks(dit, 1)
    if form == "sharded":
        shard_network(dit, "cpu")
        weight = dit.blocks[0].ffn.net[2].weight
        assert weight.to_local().numel() * 2 == weight.numel()
    task = FlowTask(dit, FakeVAE(), Captions(), bbs_prob=0.5, start_point_augmentation=True)
    options = TrainerOptions(
        max_steps=int(steps), optimizer="adamw", lr=1e-3, weight_decay=0.01, lr_schedule="constant", warmup_steps=0,
        lr_drop_steps=1, clip_max_norm=1.0, ema_decay=0.9, ema_device="cpu", amp=False, seed=0, max_bad_steps=1,
        save_at=(2,), keep_last=2, print_freq=1,
    )  # fmt: skip
    trainer = Trainer(task, options, Path(folder), accelerator)
    if checkpoint:
        trainer.load(Path(checkpoint))
    start = trainer.step
    list(trainer.run(batches(accelerator.process_index, start)))
    if accelerator.is_main_process:
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        (Path(folder) / "losses.json").write_text(json.dumps([json.loads(line)["loss"] for line in lines[start:]]))
    accelerator.end_training()


main(*sys.argv[1:])
