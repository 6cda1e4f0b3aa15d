"""Measures seconds of steps, peak memory and matrix products of a device; runs rows in fresh processes."""

import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from tqdm import tqdm

from util.device import select_dtype
from util.workers import num_cores

Measured = TypeVar("Measured")
Rows: TypeAlias = dict[str, list[Measured | None]]


def timed(steps: Iterator[object], num_steps: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Returns the seconds of each step: wall-clock time, and processor time of all threads of this process.

    On a GPU, events mark the times, so no step waits for the measurement.
    """
    processor = [time.process_time()]
    if device.type == "cuda":
        torch.cuda.synchronize()
        events: list[Any] = [_event()]
        for _ in range(num_steps):
            next(steps)
            events.append(_event())
            processor.append(time.process_time())
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in pairwise(events)], [b - a for a, b in pairwise(processor)]
    wall = [time.perf_counter()]
    for _ in range(num_steps):
        next(steps)
        wall.append(time.perf_counter())
        processor.append(time.process_time())
    return [b - a for a, b in pairwise(wall)], [b - a for a, b in pairwise(processor)]


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def matmul_rate(side: int, device: torch.device) -> float:
    """Returns FLOP/s of a product of square matrices, median of ten: bf16 on CUDA, float32 on a CPU.

    An idle GPU has low clocks, so it runs a thousand products first.
    """
    matrix = torch.randn(side, side, device=device, dtype=select_dtype("auto", device))

    def products() -> Iterator[object]:
        while True:
            yield matrix @ matrix

    num_warm_ups = 1000 if device.type == "cuda" else 3
    seconds, _ = timed(products(), num_warm_ups + 10, device)
    return 2 * side**3 / statistics.median(seconds[num_warm_ups:])


class PeakMemory:
    """Measures peak bytes since ``reset``: allocated memory on CUDA, growth of resident memory on a CPU.

    On a CPU only Linux counts resident memory as this needs.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.before = 0 if self.is_cuda else _resident("VmRSS")

    def reset(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> int:
        return torch.cuda.max_memory_allocated() if self.is_cuda else _resident("VmHWM") - self.before


def _resident(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def machine(device: torch.device) -> str:
    """Returns the name of the machine for a table."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {num_cores()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def in_fresh_processes(measure: Callable[[str], Measured | None], names: list[str], rounds: int) -> Rows[Measured]:
    """Measures each row in new processes, rows alternating, so that all see the same machine.

    Args:
        measure: measures a row by name; must pickle.

    Returns:
        For each row its measurements per round; None if memory was too small.
    """
    results: Rows[Measured] = {name: [] for name in names}
    for name in (bar := tqdm(names * rounds, desc="measure", unit="row")):
        bar.set_postfix_str(name)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            try:
                done = pool.submit(measure, name).result()
            except BrokenProcessPool:  # killed, probably out of memory
                done = None
        results[name].append(done)
    return results
