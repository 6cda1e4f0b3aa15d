"""What a run records of its steps: means over a window of them, and the file ``metrics.jsonl``."""

import json
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from datasets.clip import ClipBatch
from engine.latents import LatentBatch
from util.files import write_text_whole


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
