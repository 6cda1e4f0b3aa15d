"""The training loop: step, clip, average, log, save, resume."""

import json
import logging
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.clip import ClipBatch
from engine.latents import LatentBatch
from engine.steps import StepResult, Task
from util.checkpoint import SAFETENSORS_NAME, load_plain, read_sharded_folder
from util.errors import MissingFileError, UserError
from util.files import staged_folder, write_text_whole

logger = logging.getLogger(__name__)

LATEST = "latest"
STATE_FILE = "training_state.pt"


@dataclass(frozen=True)
class TrainerOptions:
    """How to train; the flags of ``main.py`` describe each."""

    max_steps: int
    lr: float
    weight_decay: float
    lr_schedule: str
    warmup_steps: int
    lr_drop_steps: int
    clip_max_norm: float
    ema_decay: float
    amp: bool
    seed: int
    save_steps: int
    keep_last: int
    print_freq: int


def learning_rate(options: TrainerOptions, step: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then constant, cosine to 0, or x0.9 at each drop."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.lr_schedule == "cosine":
        share = (step - options.warmup_steps) / max(1, options.max_steps - options.warmup_steps)
        return options.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    if options.lr_schedule == "multistep":
        return options.lr * 0.9 ** (step // options.lr_drop_steps)
    return options.lr


class Trainer:
    """Trains the network of a task on one device.

    It draws nothing itself: every draw of a sample comes from the sample's seed, so that a resumed run repeats what an
    uninterrupted one does.

    Args:
        run_dir: checkpoints ``step_<n>/`` and ``metrics.jsonl`` go here.
    """

    def __init__(self, task: Task, options: TrainerOptions, run_dir: Path) -> None:
        self.task = task
        self.options = options
        self.run_dir = run_dir
        self.step = 0
        self.parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            _decay_groups(task.model, options.weight_decay), lr=options.lr, betas=(0.9, 0.95), fused=True
        )
        # All parameters, frozen ones too: the averaged network is saved whole.
        self.ema = EMAModel(task.model.parameters(), decay=options.ema_decay, foreach=True)

    def run(self, loader: DataLoader[Any]) -> Iterator[int]:
        """Trains until ``max_steps``; yields the number of steps done after each one, for what the caller does between.

        Args:
            loader: batches from ``self.step`` on, endless.
        """
        self.task.model.train()
        batches = iter(loader)
        window = _Window()
        with tqdm(total=self.options.max_steps, initial=self.step, desc="train", unit="step") as bar:
            while self.step < self.options.max_steps:
                before = time.perf_counter()
                batch = next(batches)
                window.seconds_waited += time.perf_counter() - before
                window.add(self._train_step(batch), len(batch.captions))
                self.step += 1
                bar.update()
                if self.step % self.options.print_freq == 0 or self.step == self.options.max_steps:
                    record = self._log(window)
                    bar.set_postfix(loss=f"{record['loss']:.4f}", lr=f"{record['lr']:.1e}")
                    window = _Window()
                if self.step % self.options.save_steps == 0 or self.step == self.options.max_steps:
                    self.save()
                yield self.step

    def _train_step(self, batch: ClipBatch | LatentBatch) -> dict[str, Tensor]:
        rate = learning_rate(self.options, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = self.task.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.options.amp):
            result: StepResult = self.task.step(batch)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_max_norm or math.inf)
        self.optimizer.step()
        self.ema.step(self.task.model.parameters())
        numbers = {"loss": result.loss.detach(), "grad_norm": norm, "lr": torch.tensor(rate), **result.numbers}
        if isinstance(batch, ClipBatch):
            numbers["recentred_share"] = torch.tensor(batch.num_recentred / len(batch.captions))
        return numbers

    def _log(self, window: "_Window") -> dict[str, float]:
        """Appends one line to ``metrics.jsonl``; the only place that waits for the GPU."""
        record = {"step": self.step, **window.means()}
        if not math.isfinite(record["loss"]):
            raise UserError(f"step {self.step}: the loss is {record['loss']}; lower --lr, or look at the data")
        if torch.cuda.is_available():
            record["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        with (self.run_dir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return record

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block the network holds its averaged weights."""
        parameters = list(self.task.model.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.task.model.eval()
        try:
            yield
        finally:
            self.ema.restore(parameters)
            self.task.model.train()

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Writes ``step_<n>/`` whole or not at all, then points ``latest`` at it, then removes the oldest."""
        name = f"step_{self.step:07d}"
        target = self.run_dir / name
        with staged_folder(self.run_dir, name) as staging:
            self.task.model.save_pretrained(staging / self.task.part)
            with self.averaged_weights():
                self.task.model.save_pretrained(staging / f"{self.task.part}_ema")
            state = {
                "step": self.step,
                "seed": self.options.seed,
                "optimizer": self.optimizer.state_dict(),
                "ema_steps": self.ema.optimization_step,
            }
            torch.save(state, staging / STATE_FILE)
            if target.exists():
                shutil.rmtree(target)
            staging.replace(target)
        write_text_whole(self.run_dir / LATEST, name + "\n")
        checkpoints = sorted(self.run_dir.glob("step_*"))
        for old in checkpoints[: -self.options.keep_last]:
            shutil.rmtree(old)
        return target

    def load(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint folder: weights, averaged weights, optimizer and step.

        Raises:
            UserError: if the folder is no checkpoint of this task, or the run had another seed.
        """
        source = f"--resume {checkpoint}"
        state = load_plain(checkpoint / STATE_FILE, source)
        if state["seed"] != self.options.seed:
            raise UserError(f"{source}: was started with --seed {state['seed']}, got {self.options.seed}; use that one")
        for part, parameters in (
            (self.task.part, list(self.task.model.parameters())),
            (f"{self.task.part}_ema", self.ema.shadow_params),
        ):
            tensors = read_sharded_folder(checkpoint / part, source).tensors
            names = [name for name, _ in self.task.model.named_parameters()]
            if tensors.keys() != set(names):
                raise UserError(f"{source}: {part}/{SAFETENSORS_NAME} is of another network; give a run of this model")
            for name, parameter in zip(names, parameters, strict=True):
                if parameter.shape != tensors[name].shape:
                    raise UserError(f"{source}: {name} has another shape; give a run of this model")
                parameter.data.copy_(tensors[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.optimization_step = state["ema_steps"]
        self.step = state["step"]


class _Window:
    """Numbers of the steps since the last log line; tensors stay on their device until the means are taken."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[Tensor]] = defaultdict(list)
        self.num_clips = 0
        self.seconds_waited = 0.0
        self.started = time.perf_counter()

    def add(self, numbers: dict[str, Tensor], num_clips: int) -> None:
        for name, value in numbers.items():
            self.numbers[name].append(value)
        self.num_clips += num_clips

    def means(self) -> dict[str, float]:
        """Mean of each number, those left out that no step had (a batch without a start point, say)."""
        elapsed = time.perf_counter() - self.started
        # The loss itself keeps a NaN, which must be seen; the others use it for "none in this batch".
        means = {name: torch.stack(values).nanmean().item() for name, values in self.numbers.items() if name != "loss"}
        return {
            "loss": torch.stack(self.numbers["loss"]).mean().item(),
            **{name: value for name, value in means.items() if not math.isnan(value)},
            "clips_per_second": self.num_clips / elapsed,
            "data_wait_share": self.seconds_waited / elapsed,
        }


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint folder that ``--resume`` means: ``auto`` is the latest of this run, or none yet.

    Raises:
        UserError: if another value names neither a run nor a checkpoint.
    """
    place = run_dir if resume == "auto" else Path(resume)
    if (place / STATE_FILE).is_file():
        return place
    latest = place / LATEST
    if latest.is_file():
        return place / latest.read_text(encoding="utf-8").strip()
    if resume == "auto":
        return None
    raise MissingFileError(f"--resume {resume}: neither a run nor a checkpoint of one; give its folder, or auto")


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay; norms, biases and modulation tables do not."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    exempt = [p for name, p in trained if p.ndim < 2 or "norm" in name or "scale_shift_table" in name]
    exempt_ids = {id(parameter) for parameter in exempt}
    decayed = [parameter for _, parameter in trained if id(parameter) not in exempt_ids]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
