"""Starts processes that form a torch process group, as torchrun does, but within a tenth of a second.

They are forked from a server that has imported the libraries and done nothing else.
"""

import importlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main", "inference_mevis", "engine.training.run", "engine.inference.run"])


class ProcessGroup:
    """Calls a function in several processes at once; each leads an operating system's process group of its own.

    Args:
        num_processes: 1 starts a process that is alone, without a process group of torch.
        function: found by its name in a module, as ``pickle`` does.
    """

    def __init__(self, num_processes: int, function: Callable[..., Any], *arguments: object) -> None:
        self._errors = tempfile.NamedTemporaryFile("r", encoding="utf-8")  # noqa: SIM115, lives as long as this
        environments: list[dict[str, object]] = [{}]
        if num_processes > 1:
            # The store in which the processes find each other stays open from here on. Were its port only looked up,
            # for the first process to open it later, another program could take it in between.
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            shared = {
                "WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True,
            }  # fmt: skip
            environments = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in range(num_processes)]
        self.processes = [
            SERVER.Process(target=_call, args=(environment, self._errors.name, function, arguments))
            for environment in environments
        ]
        with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}):  # as the server starts
            for process in self.processes:
                process.start()

    @property
    def is_alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    @property
    def errors(self) -> str:
        """What all of them have written to stderr."""
        return Path(self._errors.name).read_text(encoding="utf-8", errors="replace")

    def wait(self) -> list[int | None]:
        """Waits until all have ended; returns their exit codes."""
        for process in self.processes:
            process.join(600)
        return [process.exitcode for process in self.processes]

    def kill(self, with_workers: bool = True) -> None:
        """Kills the processes at once, and waits for them.

        Args:
            with_workers: kill the processes that they started, too.
        """
        for process in self.processes:
            with suppress(ProcessLookupError):  # it may have ended already
                (os.killpg if with_workers else os.kill)(process.pid, signal.SIGKILL)
        self.wait()


def run_in_group(num_processes: int, function: Callable[..., Any], *arguments: object) -> None:
    """Calls a function in several processes and asserts that it succeeds in all."""
    group = ProcessGroup(num_processes, function, *arguments)
    assert group.wait() == [0] * num_processes, group.errors[-3000:]


def run_script(name: str, arguments: list[str]) -> None:
    """Runs a script of the project, such as ``main``."""
    importlib.import_module(name).main(arguments)


def _call(
    environment: dict[str, object], errors: str, function: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    os.setsid()
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a script; the children of a server inherit its method
    function(*arguments)
