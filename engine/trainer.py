"""The training loop: step, check, clip, average, log, save, resume."""

import json
import logging
import math
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.clip import ClipBatch
from engine.checkpoints import read_network, read_state, write_checkpoint
from engine.latents import LatentBatch
from engine.optimizer import build_optimizer, set_learning_rate
from engine.steps import StepResult, Task
from engine.stopping import StopSignal
from util.errors import UserError
from util.files import write_text_whole
from util.run_folder import averaged_name, checkpoint_name

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class TrainerOptions:
    """How to train; the flags of ``main.py`` describe each.

    ``save_at``: a checkpoint after every so many steps, by any of the numbers.
    """

    max_steps: int
    optimizer: str
    lr: float
    weight_decay: float
    lr_schedule: str
    warmup_steps: int
    lr_drop_steps: int
    clip_max_norm: float
    ema_decay: float
    ema_device: str
    amp: bool
    seed: int
    max_bad_steps: int
    save_at: tuple[int, ...]
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
    """Trains the network of a task, in one process or data-parallel over several.

    It draws nothing itself: every draw of a sample comes from the sample's seed, so that a resumed run repeats what an
    uninterrupted one does, whatever the number of processes.

    Args:
        run_dir: checkpoints ``step_<n>/`` and ``metrics.jsonl`` go here.
        accelerator: the processes; its model wrapper is put around the task's network.
    """

    def __init__(self, task: Task, options: TrainerOptions, run_dir: Path, accelerator: Accelerator) -> None:
        self.task = task
        self.options = options
        self.run_dir = run_dir
        self.accelerator = accelerator
        self.step = 0
        self.num_samples = 0  # seen by all processes
        self.num_bad_steps = 0  # in a row
        self.stopped_by: signal.Signals | None = None
        self.parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(options.optimizer, task.model, options.lr, options.weight_decay, seed=options.seed)
        task.network, self.optimizer = accelerator.prepare(task.network, optimizer)
        # All parameters, frozen ones too: the averaged network is saved whole.
        self.ema = EMAModel(task.model.parameters(), decay=options.ema_decay, foreach=True)
        self.ema.to(device=options.ema_device)

    @property
    def batches_per_step(self) -> int:
        """Of each process."""
        return self.accelerator.gradient_accumulation_steps

    def run(self, loader: DataLoader[Any]) -> Iterator[int]:
        """Trains until ``max_steps`` or a signal; yields the number of steps done after each one.

        Args:
            loader: this process's batches from here on, endless.
        """
        self.task.model.train()
        batches = iter(loader)
        window = _Window()
        stop = StopSignal()
        is_main = self.accelerator.is_main_process
        with (
            stop.watched(),
            tqdm(
                total=self.options.max_steps, initial=self.step, desc="train", unit="step", disable=not is_main
            ) as bar,
        ):
            while self.step < self.options.max_steps:
                before = time.perf_counter()
                step_batches = [next(batches) for _ in range(self.batches_per_step)]
                window.seconds_waited += time.perf_counter() - before
                window.add(self._train_step(step_batches), sum(len(batch.captions) for batch in step_batches))
                self.step += 1
                bar.update()
                is_last = self.step == self.options.max_steps
                if self.step % self.options.print_freq == 0 or is_last:
                    record = self._log(window)
                    bar.set_postfix(loss=f"{record['loss']:.4f}", lr=f"{record['lr']:.1e}")
                    window = _Window()
                self.stopped_by = self._agreed(stop.received)
                if self.stopped_by or is_last or any(self.step % every == 0 for every in self.options.save_at):
                    self.save()
                if self.stopped_by:
                    return
                yield self.step

    def _train_step(self, batches: list[ClipBatch | LatentBatch]) -> dict[str, Tensor]:
        """One step of the optimizer over its batches; a step whose gradient is not finite changes nothing."""
        rate = learning_rate(self.options, self.step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        device = self.task.model.device.type
        results = []
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.task.network):
                with torch.autocast(device, torch.bfloat16, enabled=self.options.amp):
                    result: StepResult = self.task.step(batch)
                (result.loss / len(batches)).backward()
            results.append(result)
            self.num_samples += len(batch.captions) * self.accelerator.num_processes
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_max_norm or math.inf)
        # The gradient is the mean over all processes, so all see the same norm and decide alike.
        if math.isfinite(norm.item()):
            self.num_bad_steps = 0
            self.optimizer.step()
            self._average()
        else:
            self._skip(batches, results, norm.item())
        return {
            **_means([result.numbers for result in results]),
            "loss": torch.stack([result.loss.detach() for result in results]).mean(),
            "grad_norm": norm.detach(),
            "lr": torch.tensor(rate),
            "recentred_share": _recentred_share(batches),
        }

    def _average(self) -> None:
        parameters: list[Tensor] = list(self.task.model.parameters())
        if self.options.ema_device != parameters[0].device.type:
            parameters = [parameter.detach().to(self.options.ema_device) for parameter in parameters]
        self.ema.step(parameters)

    def _skip(self, batches: list[ClipBatch | LatentBatch], results: list[StepResult], norm: float) -> None:
        """Counts a step that is left out, and says which of this process's samples may have caused it.

        Raises:
            UserError: if there were too many in a row; a checkpoint is saved before.
        """
        self.num_bad_steps += 1
        for batch, result in zip(batches, results, strict=True):
            if not math.isfinite(result.loss.item()):
                logger.warning("step %d: the loss of %s is %s", self.step + 1, batch.keys, result.loss.item())
        logger.warning("step %d: gradient norm %s, step skipped", self.step + 1, norm)
        if self.num_bad_steps >= self.options.max_bad_steps:
            checkpoint = self.save()
            raise UserError(
                f"step {self.step + 1}: the gradient was not finite {self.num_bad_steps} times in a row "
                f"(--max_bad_steps); the state before is in {checkpoint}; lower --lr, or look at the "
                "samples named above"
            )

    def _agreed(self, received: signal.Signals | None) -> signal.Signals | None:
        """The signal that any process received: all must stop at the same step."""
        if self.accelerator.num_processes == 1:
            return received
        number = torch.tensor(int(received or 0), device=self.accelerator.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return signal.Signals(int(number)) if int(number) else None

    def _log(self, window: "_Window") -> dict[str, float]:
        """The means over a window and all processes; the main process appends them to ``metrics.jsonl``."""
        record: dict[str, float] = {"step": self.step, **window.means(self.accelerator)}
        if torch.cuda.is_available():
            record["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.accelerator.is_main_process:
            with (self.run_dir / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=self.step)
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
        """Writes ``step_<n>/``; every process calls it, the main one writes, and all wait for it."""
        target = self.run_dir / checkpoint_name(self.step)
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "num_samples": self.num_samples,
                "seed": self.options.seed,
                "optimizer": self.options.optimizer,
                "optimizer_state": self.optimizer.state_dict(),
                "ema_steps": self.ema.optimization_step,
            }
            write_checkpoint(self.run_dir, self.step, self._save_networks, state, self.options.keep_last)
        self.accelerator.wait_for_everyone()
        return target

    def _save_networks(self, folder: Path) -> None:
        self.task.model.save_pretrained(folder / self.task.part)
        with self.averaged_weights():
            self.task.model.save_pretrained(folder / averaged_name(self.task.part))

    def load(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint folder: weights, averaged weights, optimizer, step and place in the data.

        Raises:
            UserError: if the folder is no checkpoint of this task, or the run had another seed or optimizer.
        """
        state = read_state(checkpoint, {"seed": self.options.seed, "optimizer": self.options.optimizer})
        model = self.task.model
        read_network(checkpoint, self.task.part, model, list(model.parameters()))
        read_network(checkpoint, averaged_name(self.task.part), model, self.ema.shadow_params)
        self.optimizer.load_state_dict(state["optimizer_state"])
        self.ema.optimization_step = state["ema_steps"]
        self.step = state["step"]
        self.num_samples = state["num_samples"]
        if self.accelerator.is_main_process:
            _cut_metrics(self.run_dir / METRICS_FILE, self.step)


def _cut_metrics(file: Path, step: int) -> None:
    """Leaves out lines beyond ``step``: those steps come again."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text_whole(file, "".join(kept))


def _means(numbers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each number over the batches that have it; NaN says that one has none."""
    return {name: torch.stack([entry[name] for entry in numbers]).nanmean() for name in numbers[0]}


def _recentred_share(batches: list[ClipBatch | LatentBatch]) -> Tensor:
    clips = [batch for batch in batches if isinstance(batch, ClipBatch)]
    if not clips:
        return torch.tensor(math.nan)
    return torch.tensor(sum(b.num_recentred for b in clips) / sum(len(b.captions) for b in clips))


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

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of each number over the window and all processes, those left out that no step had."""
        elapsed = time.perf_counter() - self.started
        names = sorted(self.numbers)
        own = torch.stack([torch.stack([v.float().to(accelerator.device) for v in self.numbers[n]]) for n in names])
        everyone = accelerator.gather(own[None])  # [processes, numbers, steps]
        # The loss itself keeps a NaN, which must be seen; the others use it for "none in this batch".
        means = {
            name: (values.mean() if name == "loss" else values.nanmean()).item()
            for name, values in zip(names, everyone.unbind(1), strict=True)
        }
        return {
            **{name: value for name, value in means.items() if name == "loss" or not math.isnan(value)},
            "clips_per_second": self.num_clips * accelerator.num_processes / elapsed,
            "data_wait_share": self.seconds_waited / elapsed,
        }
