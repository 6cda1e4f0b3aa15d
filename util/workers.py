"""Runs work on threads, in order, and on worker processes; both in bounded memory."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, resource_tracker
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Context = TypeVar("Context")
Job = TypeVar("Job")

MAX_PENDING = 4  # most items of ordered_map in work, or with results that were not taken yet
JOBS_PER_WORKER = 2  # one runs, one waits
IGNORED_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


def num_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], max_pending: int = MAX_PENDING
) -> Iterator[Result]:
    """Maps items on ``max_pending`` threads; yields results in the order of the items.

    For functions that spend their time outside Python: images, arrays, files. At most ``max_pending`` items are alive.
    ``items`` is iterated on the caller's thread. An error is raised in place of the result.
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


class WorkerPool(Generic[Context, Job, Result]):
    """Calls ``function(context, job)`` in worker processes, with the standard library's pool.

    It adds four things. Workers do not import the main script: they start fast and without torch, and the pool works
    from a
    notebook, from standard input and from a script without a main guard. Workers ignore Ctrl-C and the signals that
    stop a
    run; the main process handles those. Workers end when the main process is killed. Only a few jobs wait, so memory
    is
    bounded.

    Use it in a ``with`` block. At its end all jobs are done; if the block fails, only those that had begun.

    Args:
        function: defined at the top level of a module.
        context: sent to each worker once. Like jobs and results it must pickle.
        num_workers: from 1.
    """

    def __init__(self, function: Callable[[Context, Job], Result], context: Context, num_workers: int) -> None:
        self._num_workers = num_workers
        self._pending: set[Future[Result]] = set()
        # Workers wait on the reading end. It reports end of file once this process closes the other end, or dies.
        reader, self._lifeline = multiprocessing.Pipe(duplex=False)
        self._reader = reader
        self._processes: set[Any] = set()
        self._pool = ProcessPoolExecutor(
            num_workers,
            multiprocessing.get_context("spawn"),  # a fork does not survive CUDA, nor OpenCV's threads
            _start_worker,
            (reader, function, context),
        )

    def submit(self, job: Job) -> None:
        """Gives a job to a worker; waits while too many jobs are waiting. For functions that return nothing.

        Raises:
            Exception: what an earlier job raised.
        """
        while len(self._pending) >= JOBS_PER_WORKER * self._num_workers:
            self._take_finished()
        for future in [future for future in self._pending if future.done()]:
            self._pending.remove(future)
            self._result_of(future)
        self._start(job)

    def map(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Yields the results of jobs as they come, in any order.

        Raises:
            Exception: what a job raised.
        """
        for job in jobs:
            while len(self._pending) >= JOBS_PER_WORKER * self._num_workers:
                yield from self._take_finished()
            self._start(job)
        while self._pending:
            yield from self._take_finished()

    def __enter__(self) -> "WorkerPool[Context, Job, Result]":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._take_finished()
        finally:
            if kind is not None and issubclass(kind, ChildProcessError):
                self._lifeline.close()  # ends the other workers, which ignore the library's SIGTERM
            self._pool.shutdown(cancel_futures=True)
            self._lifeline.close()
            self._reader.close()

    def _start(self, job: Job) -> None:
        resource_tracker.ensure_running()  # started by the pool, it would unblock the signals
        before = set(multiprocessing.active_children())
        with _as_workers_start():
            try:
                self._pending.add(self._pool.submit(_run, job))
            except BrokenProcessPool:
                raise self._killed() from None
        self._processes |= set(multiprocessing.active_children()) - before

    def _take_finished(self) -> list[Result]:
        finished, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
        return [self._result_of(future) for future in finished]

    def _result_of(self, future: Future[Result]) -> Result:
        try:
            return future.result()
        except BrokenProcessPool:
            raise self._killed() from None

    def _killed(self) -> ChildProcessError:
        self._lifeline.close()
        # The pool's own thread waits for the processes too; whoever loses that race sees the exit code a little later.
        for _ in range(100):
            if all(process.exitcode is not None for process in self._processes):
                break
            time.sleep(0.02)
        codes = {process.exitcode for process in self._processes} - {0, LEFT_ALONE, None}
        code = min(codes) if codes else "unknown"
        return ChildProcessError(
            f"a worker process ended by itself (exit code {code}; -9 is often too little memory); start again with "
            "fewer --num_workers: what is done stays"
        )


@contextlib.contextmanager
def _as_workers_start() -> Iterator[None]:
    """Sets the state that a process inherits if it starts inside the block."""
    main = sys.modules["__main__"]
    threads = os.environ.get("OMP_NUM_THREADS")
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)  # until _start_worker ignores them
    # A new process runs the file of the main module; this one has none.
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ["OMP_NUM_THREADS"] = "1"  # several workers share the cores
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


# -- in a worker -------------------------------------------------------------------------------------------------

LEFT_ALONE = 3  # exit code of a worker that ends because its main process died or closed the pool
_work: list[Any] = []  # function and context of this worker


def _start_worker(lifeline: connection.Connection, function: Callable[[Any, Any], Any], context: Any) -> None:
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    if "cv2" in sys.modules:  # several workers share the cores
        sys.modules["cv2"].setNumThreads(1)
    _work[:] = [function, context]


def _end_with(lifeline: connection.Connection) -> None:
    connection.wait([lifeline])  # nothing is ever sent
    os._exit(LEFT_ALONE)


def _run(job: Any) -> Any:
    function, context = _work
    try:
        return function(context, job)
    except Exception as error:
        raise _picklable(error) from None


def _picklable(error: Exception) -> Exception:
    """Returns the error with its traceback as a note, or its text in a ``RuntimeError`` if it cannot be sent."""
    error.add_note(f"In the worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return error
