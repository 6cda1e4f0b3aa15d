"""Errors that a user can fix, and how a program reports them: one line, no traceback."""

import contextlib
import difflib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Bad input. The message names the argument or file, the rule, the value and the remedy."""


class TooLittleMemoryError(UserError):
    """The memory of the GPU or the machine is too small for this run; smaller settings may fit."""


class TooLittleToLoadError(TooLittleMemoryError):
    """The memory of the machine is too small to load the weights; no setting of the run changes that."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist that the user named, or that a named folder must hold."""

    # OSError formats its arguments as (errno, text); ours is one line.
    __str__ = Exception.__str__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'num_frames'?"`` with the nearest of ``known``, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""


@contextlib.contextmanager
def exit_on_user_error(program: str) -> Iterator[None]:
    """Ends the process with one line on stderr for errors that a user can fix; other errors keep their traceback.

    Exit codes: 1 for a ``UserError`` or an error of the operating system (disk full, permission), 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 must not end a finished run
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that context managers clean up
    try:
        yield
    except (UserError, OSError) as error:
        sys.exit(f"{program}: error: {_one_line(error)}")
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def interruptible_imports(program: str) -> Iterator[None]:
    """Ends the process with one line on Ctrl-C, at once, with exit code 130. For blocks that only import.

    A ``KeyboardInterrupt`` inside an import of numpy or torch may be swallowed, or come out as another error.
    """

    def end(*_: object) -> None:
        os.write(2, f"\n{program}: interrupted\n".encode())
        os._exit(130)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    previous = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    if any(
        line.startswith("Original Traceback") for line in lines
    ):  # torch passes errors of loader workers on like this
        lines = [lines[-1].partition(": ")[2]]
    return " ".join(" ".join(lines).split())
