"""Signals that end a run early, once its state is saved: from a scheduler, torchrun or the keyboard."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """Remembers the first signal; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block the signals are remembered instead of ending the process."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
            yield
            return
        before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)


def ignore_signals(_: int) -> None:
    """For a loader's workers: torchrun signals the whole process group, but the main process decides when to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def batches_of(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """A loader's batches; its workers end with the block, also after an error.

    They ignore the signal by which the end of the process would end them, and it would wait for them forever.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)  # of a loader with workers
        if shut_down is not None:
            shut_down()
