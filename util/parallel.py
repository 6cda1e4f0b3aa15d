"""Work on threads, in order, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PENDING = 4  # items taken from the input whose results were not taken yet


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map`` on threads: results in the order of the items, at most ``MAX_PENDING`` items alive.

    For functions that spend their time outside of Python (images, arrays, files). ``items`` is gone through on the
    caller's thread; what a function raises, the caller meets at its place.
    """
    with ThreadPoolExecutor(MAX_PENDING) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == MAX_PENDING:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
