"""Work on processes, in any order."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2

from util.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_work: list[Callable[[Any], Any]] = []  # in a worker: the function that it was started with


def process_map(function: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """The results of ``function``, as they come.

    Args:
        function: is sent to each worker once, with all it holds.
        num_workers: processes; 0 works in this one.

    Raises:
        UserError: if a worker was killed.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    # Spawned: a fork of a process whose OpenCV has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start, (function,)) as pool:
        try:
            for future in as_completed([pool.submit(_run, item) for item in items]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                f"--num_workers {num_workers}: a worker was killed, as happens when memory runs out; use fewer"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered once, by the parent
    cv2.setNumThreads(1)
    _work[:] = [function]


def _run(item: Any) -> Any:
    return _work[0](item)
