"""Work in processes of their own, beside this one, in bounded memory.

``multiprocessing`` would do, but for two things. A process that it starts afresh (a fork does not survive CUDA) runs
the imports of the main script first: torch and diffusers, seconds and half a gigabyte each. And if the main process is
killed, its workers wait for ever; ours see the end of their input and go.
"""

import collections
import contextlib
import io
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import cv2

from util.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PENDING = 4  # items taken from the input whose results were not taken yet


_work: list[Callable[[Any], Any]] = []  # in a worker: the function that it was started with


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


Context = TypeVar("Context")
Task = TypeVar("Task")

ROOT = Path(__file__).parents[1]
TASKS_PER_PROCESS = 2  # one that runs, one that waits


class WorkerPool(Generic[Context, Task]):
    """Calls ``function(context, task)`` in processes that import the function's module and no more.

    Use it in a ``with`` block: at its end all tasks are done, or, where the block fails, those that had begun.

    Args:
        function: of a module's top level.
        context: sent to each process once; like the tasks anything that pickles.
        num_processes: from 1 on.
    """

    def __init__(self, function: Callable[[Context, Task], None], context: Context, num_processes: int) -> None:
        self._workers = [_Worker(function, context) for _ in range(num_processes)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_processes)
        self._pending: collections.deque[Future[None]] = collections.deque()
        self._max_pending = TASKS_PER_PROCESS * num_processes

    def submit(self, task: Task) -> None:
        """Gives a task to whichever process is free; waits while too many are waiting.

        Raises:
            Exception: what an earlier task raised.
        """
        while len(self._pending) >= self._max_pending:
            self._pending.popleft().result()
        for done in [future for future in self._pending if future.done()]:
            self._pending.remove(done)
            done.result()
        self._pending.append(self._threads.submit(self._run, task))

    def __enter__(self) -> "WorkerPool[Context, Task]":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            self._threads.shutdown(cancel_futures=True)
            for worker in self._workers:
                worker.close()

    def _run(self, task: Task) -> None:
        worker = self._idle.get()
        try:
            worker.call(task)
        finally:
            self._idle.put(worker)


class _Worker:
    """One process; its standard input takes pickled tasks, its standard output gives what they raised, or None."""

    def __init__(self, function: Callable[[Any, Any], None], context: Any) -> None:
        self._first: tuple[Any, Any] | None = (function, context)
        paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "util.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def call(self, task: Any) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._first is not None:  # not at the start: a large one waits until the process reads
                _send(self._first, self._process.stdin)
                self._first = None
            _send(task, self._process.stdin)
            error = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            code = self._process.wait()
            raise ChildProcessError(
                f"a worker process ended by itself (exit code {code}; -9 is often too little memory); start again "
                "with fewer --num_workers: what is done stays"
            ) from None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits until the process has ended, of which it hears by the end of its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it may have gone before
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _send(message: Any, stream: Any) -> None:
    pickle.dump(message, stream, protocol=5)
    stream.flush()


def _serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """What a worker process does: tasks until the input ends, as it does too when the main process is killed."""
    messages = _received(tasks)
    function, context = next(messages, (_nothing, None))
    for task in messages:
        try:
            function(context, task)
            answer = None
        except Exception as error:
            answer = _picklable(error)
        try:
            _send(answer, answers)
        except BrokenPipeError:
            return


def _nothing(_context: Any, _task: Any) -> None:
    """Stands for the function of a pool that had no task."""


def _received(stream: BinaryIO) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(stream)
        except (EOFError, pickle.UnpicklingError):  # the end, perhaps in the middle of a message
            return


def _picklable(error: Exception) -> Exception:
    """The error itself, with its traceback as a note; in words where it cannot be sent."""
    error.add_note(f"In the worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return error


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process too, which ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a task prints must not mix with the answers
    sys.stdout = io.TextIOWrapper(os.fdopen(os.dup(2), "wb"), line_buffering=True)
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()


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
