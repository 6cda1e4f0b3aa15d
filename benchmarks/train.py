"""Measures speed and memory of training, with each optimisation on and off, against a frozen baseline.

    PYTHONPATH=. python benchmarks/train.py [--size mid] [--rows baseline ours ...] [--steps 2] [--rounds 2]

``--size 1.3b`` is Wan2.1-T2V-1.3B at 480 x 832 x 17 and needs a GPU. ``mid`` is for a CPU; its networks take about the
same shares of the work. ``toy`` only shows that the program runs. Weights are random. Every row trains in a new process
on the same clips in memory; benchmarks/data.py measures augmentation and reading. "ours" trains as main.py does by
default, with the same functions; the other rows add flags of main.py, or change something that has no flag.

The baseline does what a training step of the original does, with the libraries only: bf16 weights, torch's AdamW, the
text encoder run in each step on 256 tokens, every block recomputed, a contiguous VAE that encodes video and mask one
after the other, EMA weights updated on the device in a loop over the parameters, loss and norm read in each step. On a
CPU its weights are float32, as ours are, since bf16 is emulated there and would only slow it down.

TFLOP/s count the DiT forward and backward (without recomputation, VAE and text), so they compare all rows. The device's
rate is that of a large matrix product, in bf16 on CUDA and float32 on a CPU, measured in each process. Peak memory
includes the weights: on CUDA it is the allocated memory, on a CPU the growth of resident memory since the imports.
"""

import gc
import itertools
import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKLWan
from diffusers.utils import logging as library_logging
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from benchmarks.gauges import PeakMemory, in_fresh_processes, machine, matmul_rate, timed
from benchmarks.random_wan import (
    CAPTIONS,
    SIZES,
    TEXT_LENGTH,
    Parts,
    Size,
    build_parts,
    count_flops,
    draw_batches,
    keep_bfloat16,
)
from datasets.clip import ClipBatch
from engine.training.build import build_task, prepare_network, trainer_options
from engine.training.latent_cache import LatentBatch
from engine.training.trainer import Trainer
from main import build_parser
from models import mask_vae
from models.flowrvs import FlowRVS
from models.text import Captions, embed_captions
from models.text_cache import CaptionCache
from models.vae_layers import use_fast_layers, use_library_layers
from util.device import select_device
from util.errors import UserError, exit_on_user_error
from util.flags import DEVICE_HELP, device_name
from util.options import OptionParser, int_in

WARM_UP_STEPS = 2  # the first allocates the optimizer's moments


# -- the baseline: frozen on 2026-11-21, never touched again -----------------------------------------------------


class Baseline:
    """Does the training step of the original, with torch, diffusers and transformers only."""

    def __init__(self, parts: Parts, device: torch.device) -> None:
        self.parts, self.device = parts, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        dit = parts.dit.to(self.dtype).requires_grad_(True).train()
        dit.enable_gradient_checkpointing()
        self.parameters = list(dit.parameters())
        self.average = [parameter.detach().clone().float() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=5e-5, weight_decay=5e-4)
        config = parts.vae.config
        self.mean = torch.tensor(config.latents_mean, device=device, dtype=self.dtype).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std, device=device, dtype=self.dtype).view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode(self, frames: Tensor, masks: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        frames, masks = frames.to(self.device, self.dtype), masks.to(self.device, self.dtype)
        video = (self.parts.vae.encode(frames).latent_dist.sample() - self.mean) / self.std
        mask = self.parts.vae.encode((2 * masks - 1).repeat(1, 3, 1, 1, 1)).latent_dist.mean
        tokens = self.parts.tokenizer(
            captions, padding="max_length", max_length=256, truncation=True, return_attention_mask=True,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        text = self.parts.encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return video, mask, text * tokens.attention_mask[..., None].to(text.dtype)

    def step(self, frames: Tensor, masks: Tensor, captions: list[str]) -> tuple[float, float]:
        video, mask, text = self.encode(frames, masks, captions)
        timestep = torch.randint(1, 1001, (len(video),), device=self.device)
        timestep = torch.where(torch.rand(len(video), device=self.device) < 0.5, 1000, timestep)
        sigma = (timestep.to(self.dtype) / 1000).view(-1, 1, 1, 1, 1)
        latents = sigma * video + (1 - sigma) * mask
        velocity = self.parts.dit(torch.cat([latents, video], dim=1), timestep, text, return_dict=False)[0]
        loss = F.mse_loss(velocity, video - mask)
        loss_value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.sub_((1 - 0.9999) * (average - parameter))
        return loss_value, norm.item()


# -- ours --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        flags: of main.py.
        text_each_step: run the text encoder in each step, instead of the caption cache.
        library_vae: use the library's VAE layers and contiguous weights.
        cached: take latents as from --latent_cache, but from memory.
        needs: what the row needs and this machine may not have.
    """

    flags: str = ""
    text_each_step: bool = False
    library_vae: bool = False
    cached: bool = False
    needs: str = ""

    def words(self) -> str:
        changes = {
            f"`{self.flags}`": bool(self.flags),
            "text encoder each step": self.text_each_step,
            "the library's VAE layers, contiguous": self.library_vae,
            "latents cached": self.cached,
        }
        return ", ".join(words for words, holds in changes.items() if holds)


BASELINE = "baseline"
CUDA, EIGHT_BIT = "a GPU", "torchao or bitsandbytes"
ROWS = {
    "ours": Row(),
    "text-each-step": Row(text_each_step=True),
    "library-vae": Row(library_vae=True),
    "checkpoint-2": Row("--checkpoint_every 2"),
    "checkpoint-0": Row("--checkpoint_every 0"),
    "compile": Row("--compile"),
    "bf16-weights": Row("--weights_dtype bf16"),
    "adamw8bit": Row("--optimizer adamw8bit", needs=EIGHT_BIT),
    "ema-cpu": Row("--ema_device cpu", needs=CUDA),
    "log-each-step": Row("--print_freq 1"),
    "latent-cache": Row(cached=True),
    "quick": Row("--checkpoint_every 0 --compile", cached=True),
    "frugal": Row("--weights_dtype bf16 --ema_device cpu", needs=CUDA),
}


class EachStep:
    """Embeds captions whenever they are looked up."""

    def __init__(self, encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer

    def lookup(self, captions: list[str]) -> Tensor:
        return embed_captions(self.encoder, self.tokenizer, captions, TEXT_LENGTH)


class Endless(IterableDataset[ClipBatch | LatentBatch]):
    """Repeats a few batches from the CPU's memory without an end."""

    def __init__(self, batches: list[ClipBatch] | list[LatentBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[ClipBatch | LatentBatch]:
        return itertools.cycle(self.batches)


@torch.no_grad()
def cached_batches(vae: AutoencoderKLWan, batches: list[ClipBatch]) -> list[LatentBatch]:
    encoded = []
    for batch in batches:
        mean, log_variance = mask_vae.encode_posterior(vae, batch.frames.to(vae.device))
        mask_latents = mask_vae.encode_masks(vae, batch.masks.to(vae.device))
        own = (batch.captions, batch.keys, batch.seeds, batch.num_real_frames)
        encoded.append(LatentBatch(mean.cpu(), log_variance.cpu(), mask_latents.cpu(), *own))
    return encoded


def our_trainer(row: Row, parts: Parts, device: torch.device, num_steps: int, folder: Path) -> Trainer:
    """Builds the trainer as main.py does from flags; its last step, which saves, comes after ``num_steps``."""
    flags = [*row.flags.split(), "--max_steps", str(num_steps + 1), "--device", str(device)]
    options = build_parser().parse_args(flags)
    if options.weights_dtype == "bf16":
        keep_bfloat16(parts.dit)
    pipeline = FlowRVS(parts.dit, parts.vae, None, None)
    use_fast_layers(parts.vae)
    if row.library_vae:
        use_library_layers(parts.vae)
        for parameter in parts.vae.parameters():
            parameter.data = parameter.data.contiguous()
    captions: Captions = EachStep(parts.encoder, parts.tokenizer)
    if not row.text_each_step:
        cache = CaptionCache(folder / "text_cache", {"encoder": "random"}, TEXT_LENGTH, parts.encoder.dtype)
        cache.add_missing(CAPTIONS, lambda: (parts.encoder, parts.tokenizer))
        captions = cache
    prepare_network(options, pipeline, device)
    task = build_task(options, pipeline, captions)
    return Trainer(task, trainer_options(options, 10**6, device), folder, Accelerator(cpu=device.type == "cpu"))


# -- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Wall and processor seconds of each step, peak memory in bytes, FLOP/s of the matrix product."""

    wall: list[float]
    processor: list[float]
    peak: int
    matmul: float


Results: TypeAlias = dict[str, list[Measured | None]]


def measure(name: str, size: Size, device: torch.device, num_steps: int, num_threads: int) -> Measured | None:
    """Measures a row in this process; returns None if it runs out of memory."""
    library_logging.set_verbosity_error()  # .to() warns; the baseline wants what it does
    torch.set_num_threads(num_threads)
    matmul = matmul_rate(size.matmul, device)
    memory = PeakMemory(device)
    num_all = WARM_UP_STEPS + num_steps
    try:
        # The parent process shows the progress bar.
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
            steps = prepared_steps(name, size, device, num_all, Path(folder))
            gc.collect()
            memory.reset()
            wall, processor = timed(steps, num_all, device)
            peak = memory.read()
    except torch.OutOfMemoryError:
        return None
    return Measured(wall[WARM_UP_STEPS:], processor[WARM_UP_STEPS:], peak, matmul)


def prepared_steps(name: str, size: Size, device: torch.device, num_steps: int, folder: Path) -> Iterator[object]:
    """Builds everything that a row needs; returns an iterator that does its steps."""
    parts, batches = build_parts(size, device), draw_batches(size)
    if name == BASELINE:
        baseline = Baseline(parts, device)
        return (baseline.step(batch.frames, batch.masks, batch.captions) for batch in itertools.cycle(batches))
    row = ROWS[name]
    trainer = our_trainer(row, parts, device, num_steps, folder)
    data = Endless(cached_batches(parts.vae, batches) if row.cached else batches)
    loader: DataLoader[Any] = DataLoader(data, batch_size=None)
    return map(_checked, trainer.run(loader), itertools.repeat(trainer))


def _checked(step: int, trainer: Trainer) -> int:
    assert trainer.num_bad_steps == 0, "a skipped step costs less"
    return step


def lacking(name: str, device: torch.device) -> str:
    """Returns what a row needs and this machine does not have; empty if nothing is missing."""
    needs = ROWS[name].needs if name in ROWS else ""
    has = {CUDA: device.type == "cuda", EIGHT_BIT: bool(find_spec("torchao") or find_spec("bitsandbytes"))}
    return "" if has.get(needs, True) else needs


# -- the table ---------------------------------------------------------------------------------------------------


def table(results: Results, size: Size, flops: int) -> str:
    """Returns the results as a Markdown table, with medians over the steps of all rounds.

    Args:
        flops: useful floating-point operations per clip.
    """
    complete = {
        name: [m for m in every if m is not None] for name, every in results.items() if None not in every
    }  # fmt: skip
    matmul = statistics.median([m.matmul for every in complete.values() for m in every]) if complete else math.nan
    wall = {name: statistics.median([s for m in every for s in m.wall]) for name, every in complete.items()}
    processor = {name: statistics.median([s for m in every for s in m.processor]) for name, every in complete.items()}
    lines = [
        "| row | differs from ours in | s/step (least to most) | clips/s | of baseline | processor s/step "
        f"| of baseline | TFLOP/s | share of {matmul / 1e12:.3g} | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in results:
        start = f"| {name} | {ROWS[name].words() if name in ROWS else 'see the first lines of the program'} "
        if name not in complete:
            lines.append(f"{start}| out of memory |" + " |" * 7)
            continue
        every = [seconds for m in complete[name] for seconds in m.wall]
        rate = size.batch / wall[name]
        sooner = [times.get(BASELINE, math.nan) / times[name] for times in (wall, processor)]
        peak = statistics.median([m.peak for m in complete[name]]) / 2**30
        lines.append(
            f"{start}| {wall[name]:.3f} ({min(every):.3f} to {max(every):.3f}) | {rate:.3g} | {sooner[0]:.2f} "
            f"| {processor[name]:.3f} | {sooner[1]:.2f} | {rate * flops / 1e12:.3g} | {rate * flops / matmul:.0%} "
            f"| {peak:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = OptionParser(prog="benchmarks/train.py", description="Speed and memory of training.")
    parser.add_argument("--size", choices=tuple(SIZES), default="mid", help="size of networks and clips")
    parser.add_argument(
        "--rows", nargs="+", choices=(BASELINE, *ROWS), default=[BASELINE, *ROWS], help="rows to measure"
    )
    parser.add_argument(
        "--steps", type=int_in(1), default=2, help="timed steps in each process, after two more that are not timed"
    )
    parser.add_argument("--rounds", type=int_in(1), default=2, help="how often each row is measured")
    parser.add_argument("--device", type=device_name, default="auto", help=DEVICE_HELP)
    options = parser.parse_args()
    with exit_on_user_error(parser.prog):
        device, size = select_device(options.device), SIZES[options.size]
        if options.size == "1.3b" and device.type == "cpu":
            raise UserError("--size 1.3b: needs a GPU, got cpu; use --size mid")
        absent = {name: needs for name in options.rows if (needs := lacking(name, device))}
        training, encoding = count_flops(size)
        present = [name for name in options.rows if name not in absent]
        one = partial(measure, size=size, device=device, num_steps=options.steps, num_threads=torch.get_num_threads())
        results = in_fresh_processes(one, present, options.rounds)
    num_frames, height, width = size.clip
    print(
        f"    PYTHONPATH=. python {shlex.join(sys.argv)}\n\n{machine(device)}; {date.today()}; random weights, "
        f"{height} x {width} x {num_frames}, {size.batch} clips a step. A clip takes {training / 1e12:.3g} TFLOP in "
        f"the DiT, forward and backward, and {encoding / 1e12:.3g} in the VAE's encoder. Medians of {options.rounds} x "
        f"{options.steps} steps.\n\n{table(results, size, training)}"
    )
    for name, needs in absent.items():
        print(f"\nLeft out: {name}, which needs {needs}.")


if __name__ == "__main__":
    main()
