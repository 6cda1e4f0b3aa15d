"""Remembers the hashes of large files between runs: 13 GiB of weights take half a minute to hash.

``$XDG_CACHE_HOME/flowrvs/hashes.json``, by default in ``~/.cache``: one entry for each list of files, with their
sizes and times of last change. A file that changed is hashed again. Whatever is wrong with the store, hashing works
without it.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from util.errors import UserError
from util.files import read_json, write_text_whole

STORED_FROM = 64 << 20  # bytes in all; smaller files take no time
MAX_ENTRIES = 200
# A file written again within the tick of the disk's clock keeps its time; 2 seconds is the longest tick, of FAT.
SETTLED_AFTER = 2 * 10**9  # nanoseconds

_State: TypeAlias = list[list[Any]]  # [absolute path, bytes, time of last change in nanoseconds] of each file


def remembered(files: tuple[Path, ...], compute: Callable[[], str | None]) -> str | None:
    """Returns the hash of files that have not changed since it was stored, else computes and stores it.

    Args:
        compute: hashes the files; None, which is not stored, if it was stopped.

    Raises:
        OSError: if a file cannot be read.
    """
    state = _state_of(files)
    if sum(size for _, size, _ in state) < STORED_FROM:
        return compute()
    known = _entries().get(_key(files))
    if isinstance(known, dict) and known.get("files") == state and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    started = time.time_ns()
    digest = compute()
    is_settled = all(changed + SETTLED_AFTER < started for _, _, changed in state)
    if digest is not None and is_settled and _state_of(files) == state:
        _store(_key(files), {"files": state, "sha256": digest})
    return digest


def _state_of(files: tuple[Path, ...]) -> _State:
    states = ((file, file.stat()) for file in files)
    return [[str(file.absolute()), state.st_size, state.st_mtime_ns] for file, state in states]


def _key(files: tuple[Path, ...]) -> str:
    return os.pathsep.join(str(file.absolute()) for file in files)


def _place() -> Path:
    # A relative XDG_CACHE_HOME is to be ignored, says the XDG Base Directory Specification.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "flowrvs" / "hashes.json"


def _entries() -> dict[str, Any]:
    try:
        return read_json(_place())
    except (UserError, OSError, RuntimeError, RecursionError):  # RuntimeError: the user has no home
        return {}


def _store(key: str, entry: dict[str, Any]) -> None:
    """Adds an entry. Of two processes that store at once, one entry may be lost, and is computed again."""
    entries = {name: value for name, value in _entries().items() if name != key} | {key: entry}
    newest = dict(list(entries.items())[-MAX_ENTRIES:])
    with contextlib.suppress(OSError, RuntimeError):
        _place().parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(_place(), json.dumps(newest, indent=1) + "\n")
