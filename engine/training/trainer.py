"""Runs the training loop: step, EMA, log, checkpoint, resume."""

import json
import logging
import math
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.clip import ClipBatch
from engine.training.checkpoints import (
    OPTIMIZER_FILE,
    STATE_FILE,
    commit_checkpoint,
    find_optimizer_file,
    read_network,
    read_state,
    saved_parameters,
    write_network,
)
from engine.training.ema import EMAWeights
from engine.training.fsdp import (
    gather,
    is_sharded,
    load_slices,
    load_whole_optimizer_state,
    no_sync,
    whole,
    whole_optimizer_state,
)
from engine.training.latent_cache import LatentBatch
from engine.training.log import RunningMeans, cut_records, mean_over_batches, recentred_share
from engine.training.optimizer import build_optimizer, set_learning_rate
from engine.training.signals import StopSignal, batches_of
from engine.training.tasks import StepResult, Task
from util.errors import UserError
from util.files import staged_folder
from util.run_folder import checkpoint_name, ema_name
from util.weight_files import load_plain

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class TrainerOptions:
    """How to train; ``main.py --help`` describes the flags of the same names.

    Attributes:
        lr_drop_steps: steps between two drops of the multistep schedule.
        save_at: save a checkpoint when the step is a multiple of any of these numbers.
    """

    max_steps: int
    optimizer: str
    lr: float
    weight_decay: float
    decay_all: bool
    adam_betas: tuple[float, float]
    adam_eps: float
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
    """Returns the learning rate of a step.

    After a linear warm-up it is constant, follows a cosine to 0, or is multiplied by 0.9 at each drop.

    Args:
        step: counted from 0.
    """
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

    It draws no random numbers: they come from each sample's seed, so that a resumed run repeats the steps of an
    uninterrupted one, on any number of processes.

    Args:
        task: its ``wrapped`` module is wrapped for data-parallel training here.
        run_dir: where checkpoints ``step_<n>/`` and ``metrics.jsonl`` are written.
        accelerator: gives the processes and the number of batches in a step.
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
        self.parameters = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
        self.is_sharded = is_sharded(self.parameters)
        if not self.is_sharded:
            task.wrapped = accelerator.prepare_model(task.wrapped)
        self.optimizer = build_optimizer(
            options.optimizer, task.network, options.lr, options.weight_decay,
            betas=(options.adam_betas[0], options.adam_betas[1]), eps=options.adam_eps,
            decay_all=options.decay_all, seed=options.seed,
        )  # fmt: skip
        self.ema = EMAWeights(task.network, options.ema_decay, options.ema_device)
        self._start = {"seed": options.seed, "optimizer": options.optimizer}  # a resumed run must have the same

    @property
    def batches_per_step(self) -> int:
        """Returns how many batches each process accumulates in a step."""
        return self.accelerator.gradient_accumulation_steps

    def run(self, loader: DataLoader[Any]) -> Generator[int, None, None]:
        """Trains until ``max_steps`` or a signal, and yields the number of finished steps after each step.

        Args:
            loader: this process's batches from the current step on, without an end.
        """
        self.task.network.train()
        means = RunningMeans()
        stop = StopSignal()
        is_main = self.accelerator.is_main_process
        with (
            stop.watched(),
            tqdm(
                total=self.options.max_steps, initial=self.step, desc="train", unit="step", disable=not is_main
            ) as bar,
            batches_of(loader) as batches,
        ):
            while self.step < self.options.max_steps:
                before = time.perf_counter()
                step_batches = [next(batches) for _ in range(self.batches_per_step)]
                means.seconds_waited += time.perf_counter() - before
                means.add(self._train_step(step_batches), sum(len(batch.captions) for batch in step_batches))
                self.step += 1
                bar.update()
                is_last = self.step == self.options.max_steps
                if self.step % self.options.print_freq == 0 or is_last:
                    record = self._log(means)
                    bar.set_postfix(loss=f"{record['loss']:.4f}", lr=f"{record['lr']:.1e}")
                    means = RunningMeans()
                self.stopped_by = self._agreed(stop.received)
                if self.stopped_by or is_last or any(self.step % every == 0 for every in self.options.save_at):
                    self.save()
                if self.stopped_by:
                    return
                yield self.step

    def _train_step(self, batches: list[ClipBatch | LatentBatch]) -> dict[str, Tensor]:
        """Does one optimizer step over its batches; if the gradient is not finite, skips the update."""
        rate = learning_rate(self.options, self.step)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        device = self.task.network.device.type
        results = []
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with nullcontext() if is_last else self._no_sync():
                # The cache would keep a bfloat16 copy of every weight until the end of the forward pass.
                with torch.autocast(device, torch.bfloat16, enabled=self.options.amp, cache_enabled=False):
                    result: StepResult = self.task.step(batch)
                (result.loss / len(batches)).backward()
            results.append(result)
            self.num_samples += len(batch.captions) * self.accelerator.num_processes
        norm = whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip_max_norm or math.inf))
        # The gradient is the mean over all processes, so all see the same norm and decide the same.
        if math.isfinite(norm.item()):
            self.num_bad_steps = 0
            self.optimizer.step()
            self.ema.step()
        else:
            self._skip(batches, results, norm.item())
        return {
            **mean_over_batches([result.numbers for result in results]),
            "loss": torch.stack([result.loss.detach() for result in results]).mean(),
            "grad_norm": norm.detach(),
            "lr": torch.tensor(rate),
            "recentred_share": recentred_share(batches),
        }

    def _no_sync(self) -> AbstractContextManager[None]:
        """Accumulates gradients in each process alone until the block ends."""
        network: Any = self.task.wrapped
        return no_sync(network) if self.is_sharded else self.accelerator.no_sync(network)

    def _skip(self, batches: list[ClipBatch | LatentBatch], results: list[StepResult], norm: float) -> None:
        """Counts a skipped step and logs which of this process's batches may have caused it.

        Raises:
            UserError: if too many steps in a row were skipped; a checkpoint is saved first.
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
                f"(--max_bad_steps); the weights before it are saved in {checkpoint}; lower --lr, or check the "
                "clips named above"
            )

    def _agreed(self, received: signal.Signals | None) -> signal.Signals | None:
        """Returns the signal that any process has received, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return received
        number = torch.tensor(int(received or 0), device=self.accelerator.device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return signal.Signals(int(number)) if int(number) else None

    def _log(self, means: RunningMeans) -> dict[str, float]:
        """Takes the means over all processes; the main process appends them to ``metrics.jsonl``."""
        record: dict[str, float] = {"step": self.step, **means.take(self.accelerator)}
        if torch.cuda.is_available():
            record["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if self.accelerator.is_main_process:
            with (self.run_dir / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=self.step)
        return record

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Writes ``step_<n>/``. Every process must call it; all return once it is complete."""
        is_main = self.accelerator.is_main_process
        saved = saved_parameters(self.task.network)
        with self._staged(checkpoint_name(self.step)) as staging:
            self._write_weights(saved, staging / self.task.network_name)
            self._write_weights(saved | self.ema.tensors, staging / ema_name(self.task.network_name))
            optimizer_state = self._optimizer_state()
            if is_main:
                torch.save(optimizer_state, staging / OPTIMIZER_FILE)
                torch.save(
                    {**self._start, "step": self.step, "num_samples": self.num_samples,
                     "ema_steps": self.ema.num_steps},
                    staging / STATE_FILE,
                )  # fmt: skip
            self.accelerator.wait_for_everyone()
            if is_main:
                commit_checkpoint(self.run_dir, self.step, staging, self.options.keep_last)
        self.accelerator.wait_for_everyone()
        return self.run_dir / checkpoint_name(self.step)

    def load(self, checkpoint: Path) -> None:
        """Loads a checkpoint: weights, EMA weights, optimizer state, step, and position in the data.

        Raises:
            UserError: if the checkpoint is damaged, of another network or task, or of another seed or optimizer.
        """
        state = read_state(checkpoint, self._start)
        saved = saved_parameters(self.task.network)
        read_network(checkpoint, self.task.network_name, saved)
        read_network(checkpoint, ema_name(self.task.network_name), saved | self.ema.tensors)
        self._load_optimizer_state(checkpoint)
        self.ema.num_steps = state["ema_steps"]
        self.step = state["step"]
        self.num_samples = state["num_samples"]
        if self.accelerator.is_main_process:
            cut_records(self.run_dir / METRICS_FILE, self.step)

    def _write_weights(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Gathers one network's weights on the main process, which writes them; every process must call it."""
        is_main = self.accelerator.is_main_process
        gathered = dict(gather(tensors.items(), keep=is_main))
        if is_main:
            write_network(self.task.network, gathered, folder)

    def _optimizer_state(self) -> dict[str, Any]:
        """Returns the optimizer's state as a checkpoint holds it; ``{}`` on processes that only help to gather it."""
        if self.is_sharded:
            return whole_optimizer_state(self.task.network, self.optimizer)
        return self.optimizer.state_dict()

    def _load_optimizer_state(self, checkpoint: Path) -> None:
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        file = find_optimizer_file(checkpoint, rank, num_processes if self.is_sharded else None)
        source = f"--resume {checkpoint}"
        if not self.is_sharded:
            self.optimizer.load_state_dict(load_plain(file, source))
        elif file.name == OPTIMIZER_FILE:
            state = load_plain(file, source) if self.accelerator.is_main_process else {}
            load_whole_optimizer_state(self.task.network, self.optimizer, state)
        else:
            load_slices(self.optimizer, load_plain(file, source))

    @contextmanager
    def _staged(self, name: str) -> Iterator[Path]:
        """Yields the main process's staging folder to all processes; it is removed unless it was moved away."""
        with ExitStack() as stack:
            own = (
                [str(stack.enter_context(staged_folder(self.run_dir, name)))]
                if self.accelerator.is_main_process
                else [""]
            )
            yield Path(broadcast_object_list(own)[0])
