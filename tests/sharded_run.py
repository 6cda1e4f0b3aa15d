"""What the processes of tests/engine/training/test_fsdp.py run: a tiny DiT, trained plain and sharded, and resumed."""

import shutil

import torch
from accelerate import Accelerator
from tiny_training import tiny_dit, tiny_options
from torch import nn
from torch.distributed.tensor import DTensor

from engine.training.checkpoints import OPTIMIZER_FILE
from engine.training.fsdp import shard_network
from engine.training.latent_cache import LatentBatch
from engine.training.tasks import FlowOptions, FlowTask
from engine.training.trainer import Trainer
from models.dit import checkpoint_blocks
from util.errors import UserError


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


def trainer_in(folder, accelerator, is_sharded=True, **options):
    folder.mkdir(exist_ok=True)
    dit = tiny_dit()
    checkpoint_blocks(dit, 1)
    if is_sharded:
        shard_network(dit, "cpu")
        weight = dit.blocks[0].ffn.net[2].weight
        assert weight.to_local().numel() < weight.numel()
    task = FlowTask(dit, FakeVAE(), Captions(), FlowOptions(bbs_prob=0.5, use_spa=True))
    return Trainer(task, tiny_options(print_freq=1, **options), folder, accelerator)


def train(trainer, checkpoint=None):
    if checkpoint is not None:
        trainer.load(checkpoint)
    list(trainer.run(batches(trainer.accelerator.process_index, trainer.step)))


def write_slices(trainer, checkpoint):
    """Replaces the optimizer's file in a checkpoint by one for each process, as --fsdp wrote them once."""
    trainer.load(checkpoint)
    state = trainer.optimizer.state_dict()
    state["state"] = {
        key: {name: value.to_local() if isinstance(value, DTensor) else value for name, value in entries.items()}
        for key, entries in state["state"].items()
    }
    accelerator = trainer.accelerator
    torch.save(state, checkpoint / f"optimizer_{accelerator.process_index}of{accelerator.num_processes}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (checkpoint / OPTIMIZER_FILE).unlink()
    accelerator.wait_for_everyone()


def train_and_resume(folder):
    """Trains four steps into plain/ and sharded/, and the sharded run again from step 2 on into resumed*/."""
    accelerator = Accelerator(cpu=True)
    train(trainer_in(folder / "plain", accelerator, is_sharded=False))
    train(trainer_in(folder / "sharded", accelerator))
    for name in ("resumed", "resumed_from_slices"):
        if accelerator.is_main_process:
            shutil.copytree(folder / "sharded", folder / name)
        accelerator.wait_for_everyone()
    train(trainer_in(folder / "resumed", accelerator), folder / "resumed" / "step_0000002")
    run_dir = folder / "resumed_from_slices"
    write_slices(trainer_in(run_dir, accelerator), run_dir / "step_0000002")
    train(trainer_in(run_dir, accelerator), run_dir / "step_0000002")
    accelerator.end_training()


def fail_and_resume(folder):
    """Trains four steps from the checkpoint of a run whose first gradient is not finite."""
    accelerator = Accelerator(cpu=True)
    trainer = trainer_in(folder, accelerator, max_bad_steps=1)
    batch = next(batches(accelerator.process_index, 0))
    batch.mean.fill_(float("nan"))
    try:
        list(trainer.run([batch]))
    except UserError:
        train(trainer_in(folder, accelerator), folder / "step_0000000")
    accelerator.end_training()


def load_and_save(checkpoint, folder):
    """Resumes a sharded run and saves it again without a step."""
    accelerator = Accelerator(cpu=True)
    trainer = trainer_in(folder, accelerator)
    trainer.load(checkpoint)
    trainer.save()
    accelerator.end_training()
