"""Work on threads, in order, in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PENDING = 4  # items taken from the input whose results were not taken yet


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], max_pending: int = MAX_PENDING
) -> Iterator[Result]:
    """``map`` on as many threads: results in the order of the items, at most ``max_pending`` items alive.

    For functions that spend their time outside of Python (images, arrays, files). ``items`` is gone through on the
    caller's thread; what a function raises, the caller meets at its place.
    """
    with ThreadPoolExecutor(max_pending) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == max_pending:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
