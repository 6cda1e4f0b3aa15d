"""Errors that a user can fix, and how a program reports them: one line, no traceback."""

import contextlib
import difflib
import signal
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Bad input. The message names the argument or file, the rule, the value and the remedy."""


class TooLittleMemoryError(UserError):
    """The memory of the GPU or the machine is too small for this run; smaller settings may fit."""


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
    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that context managers clean up
    try:
        yield
    except (UserError, OSError) as error:
        sys.exit(f"{program}: error: {_one_line(error)}")
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    if any(
        line.startswith("Original Traceback") for line in lines
    ):  # torch passes errors of loader workers on like this
        lines = [lines[-1].partition(": ")[2]]
    return " ".join(" ".join(lines).split())
