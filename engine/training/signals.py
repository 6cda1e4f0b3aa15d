"""Handles the signals that end a run early: from a scheduler, torchrun or the keyboard."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """Remembers a signal until the step has ended; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Catches the signals until the block ends; they no longer end the process."""
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
    """Makes a loader's worker ignore the signals, which torchrun sends to it too: the trainer decides when to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def batches_of(loader: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Yields an iterator over a loader's batches; its workers end with the block, also after an error.

    Without this the process could not exit: it would send SIGTERM to the workers, which ignore it, and wait for them.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        shut_down = getattr(batches, "_shutdown_workers", None)  # only loaders with workers have it
        if shut_down is not None:
            shut_down()
