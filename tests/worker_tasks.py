"""Functions that worker processes of tests run."""

import os
import signal
import sys
import time
from pathlib import Path

from util.errors import UserError


def append(folder, task):
    print("what a task prints goes to stderr")
    (Path(folder) / str(task)).write_text(str(os.getpid()))


def append_slowly(folder, task):
    time.sleep(0.05)
    append(folder, task)


def double(_context, task):
    return 2 * task


def signal_itself(folder, task):
    os.kill(os.getpid(), task)
    append(folder, int(task))


def fail_on_odd(folder, task):
    if task % 2:
        raise UserError(f"task {task} is odd; give an even one")
    append(folder, task)


def raise_what_cannot_be_sent(_folder, _task):
    class Local(Exception):
        pass

    raise Local("unsendable")


def die(_folder, _task):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(folder, task):
    append(folder, f"begun{task}")
    time.sleep(0.2)
    append(folder, task)


def write_imports(folder, task):
    import engine.inference.write_and_score  # noqa: F401, PLC0415

    (Path(folder) / "imports").write_text("\n".join(sys.modules))
