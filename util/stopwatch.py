"""Measures the seconds of each stage of a run."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Collects wall-clock seconds by stage name.

    With a GPU as ``device`` it waits for the GPU at the end of each stage, so that the time counts for that stage.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside the block to ``seconds[name]``."""
        start = time.perf_counter()
        yield
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device is not None and self.device.type == "mps":
            torch.mps.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
