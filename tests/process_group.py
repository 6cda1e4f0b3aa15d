"""Forks processes that form a torch process group, on a port that nobody else can take.

Faster than torchrun: the children have the parent's imports. The parent must not have run a backward pass, which torch
refuses in a fork.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import TCPStore


@contextmanager
def group_environments(num_processes: int) -> Iterator[list[dict[str, str]]]:
    """Yields each process's environment variables, by which it joins the group; none if it is alone.

    The store in which the processes find each other is opened here. Were its port only looked up, to be opened later by
    the first process, another program could take it in between.
    """
    if num_processes == 1:
        yield [{}]
        return
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }  # fmt: skip
    yield [
        {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for rank in range(num_processes)
    ]
    del store  # must live until the processes have ended


def run_in_group(num_processes: int, function: Callable[..., Any], *arguments: object) -> None:
    """Calls a function in each of the forked processes and asserts that none raises."""
    with group_environments(num_processes) as environments:
        children = [fork(environment, function, *arguments) for environment in environments]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * num_processes


def fork(environment: dict[str, str], function: Callable[..., Any], *arguments: object) -> int:
    """Calls a function in a forked process, which leads a process group of its own; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
