"""What a run records of its steps: means over a window of them, and the file ``metrics.jsonl``."""

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
from util.files import write_text_whole
from util.images import Frame

TRACKERS = ("tensorboard", "wandb", "none")
FOLDER = "tensorboard"  # in the run's


def cut_records(file: Path, step: int) -> None:
    """Leaves out lines beyond ``step``: those steps come again."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_text_whole(file, "".join(kept))


def means_of(numbers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each number over the batches that have it; NaN says that one has none."""
    return {name: torch.stack([entry[name] for entry in numbers]).nanmean() for name in numbers[0]}


def recentred_share(batches: list[ClipBatch | LatentBatch]) -> Tensor:
    clips = [batch for batch in batches if isinstance(batch, ClipBatch)]
    if not clips:
        return torch.tensor(math.nan)
    return torch.tensor(sum(b.num_recentred for b in clips) / sum(len(b.captions) for b in clips))


class Window:
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


def check_tracker(name: str) -> None:
    """Refuses a tracker whose package is absent, before any work.

    Raises:
        UserError: if it is.
    """
    if name != "none" and find_spec(name) is None:
        raise UserError(f"--report_to {name}: the package is not installed; pip install {name}, or --report_to none")


def start_tracker(accelerator: Accelerator, name: str, run_dir: Path, options: argparse.Namespace, step: int) -> None:
    """Begins to track; of a resumed run, curves beyond ``step`` are dropped, as those steps come again.

    Args:
        accelerator: made with this tracker and with the run's folder.
    """
    if name == "tensorboard":
        accelerator.init_trackers(FOLDER, init_kwargs={name: {"purge_step": step + 1}})
    elif name == "wandb":
        accelerator.init_trackers("flowrvs", vars(options), {name: {"name": run_dir.name, "resume": "allow"}})


def log_pictures(accelerator: Accelerator, pictures: dict[str, Frame], step: int) -> None:
    """Logs pictures [H, W, 3], each under its name; for the main process alone."""
    for tracker in accelerator.trackers:
        for name, picture in pictures.items():
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, picture, global_step=step, dataformats="HWC")
            else:
                tracker.log_images({name: [picture]}, step=step)
