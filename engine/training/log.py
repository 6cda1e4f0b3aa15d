"""Logs a run: means over the steps between two log lines, ``metrics.jsonl``, curves and images."""

import argparse
import json
import math
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from datasets.clip import ClipBatch
from engine.training.latent_cache import LatentBatch
from util.errors import UserError
from util.files import read_text, write_text_whole
from util.images import Frame

FOLDER = "tensorboard"  # inside the run folder


def cut_records(file: Path, step: int) -> None:
    """Removes the lines of later steps than ``step``, which a resumed run does again."""
    if file.is_file():
        lines = read_text(file).splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text_whole(file, "".join(kept))


def mean_over_batches(numbers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean of each number over the batches that have it; NaN marks a batch that does not."""
    return {name: torch.stack([entry[name] for entry in numbers]).nanmean() for name in numbers[0]}


def recentred_share(batches: list[ClipBatch | LatentBatch]) -> Tensor:
    """Returns the share of crops that had lost their object; NaN for cached latents, which are never cropped."""
    clips = [batch for batch in batches if isinstance(batch, ClipBatch)]
    if not clips:
        return torch.tensor(math.nan)
    return torch.tensor(sum(b.num_recentred for b in clips) / sum(len(b.captions) for b in clips))


class RunningMeans:
    """Collects the numbers of the steps since the last log line; tensors stay on their device until ``take``."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[Tensor]] = defaultdict(list)
        self.num_clips = 0
        self.seconds_waited = 0.0
        self.started = time.perf_counter()

    def add(self, numbers: dict[str, Tensor], num_clips: int) -> None:
        for name, value in numbers.items():
            self.numbers[name].append(value)
        self.num_clips += num_clips

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the mean of each number over the steps and all processes, without numbers that no step had."""
        elapsed = time.perf_counter() - self.started
        names = sorted(self.numbers)
        own = torch.stack([torch.stack([v.float().to(accelerator.device) for v in self.numbers[n]]) for n in names])
        everyone = accelerator.gather(own[None])  # [processes, numbers, steps]
        # A NaN loss must be seen; in the other numbers NaN means that a batch had none.
        means = {
            name: (values.mean() if name == "loss" else values.nanmean()).item()
            for name, values in zip(names, everyone.unbind(1), strict=True)
        }
        return {
            **{name: value for name, value in means.items() if name == "loss" or not math.isnan(value)},
            "clips_per_second": self.num_clips * accelerator.num_processes / elapsed,
            "data_wait_share": self.seconds_waited / elapsed,
        }


def check_tracker(name: str) -> None:
    """Checks that a tracker's package is installed.

    Raises:
        UserError: if it is not.
    """
    if name != "none" and find_spec(name) is None:
        raise UserError(
            f"--report_to {name}: its package is not installed; pip install {name}, or use --report_to none"
        )


def start_tracker(accelerator: Accelerator, name: str, run_dir: Path, options: argparse.Namespace, step: int) -> None:
    """Starts the tracker; a resumed run drops its curves beyond ``step``, since it does those steps again.

    Args:
        accelerator: built with this tracker and the run folder.
    """
    if name == "tensorboard":
        accelerator.init_trackers(FOLDER, init_kwargs={name: {"purge_step": step + 1}})
    elif name == "wandb":
        accelerator.init_trackers("flowrvs", vars(options), {name: {"name": run_dir.name, "resume": "allow"}})


def log_images(accelerator: Accelerator, images: dict[str, Frame], step: int) -> None:
    """Logs images [H, W, 3] under their names; only the main process has any."""
    for tracker in accelerator.trackers:
        for name, image in images.items():
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, image, global_step=step, dataformats="HWC")
            else:
                tracker.log_images({name: [image]}, step=step)
