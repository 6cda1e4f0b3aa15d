"""Hashes of files and of values."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from util.hash_store import remembered

SAMPLE_EVERY, SAMPLE_BYTES = 8 << 20, 64 << 10


def sha256_of(files: tuple[Path, ...], stop: threading.Event | None = None) -> str:
    """Returns the hexadecimal SHA-256 of the bytes of the files, in this order; of large ones it is remembered.

    Args:
        stop: ends the work early once it is set; the result is then an empty string.

    Raises:
        OSError: if a file cannot be read.
    """
    return remembered(files, lambda: _sha256(files, stop)) or ""


def _sha256(files: tuple[Path, ...], stop: threading.Event | None) -> str | None:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                if stop is not None and stop.is_set():
                    return None
                digest.update(block)
    return digest.hexdigest()


def fingerprint(files: tuple[Path, ...]) -> str:
    """Identifies weight files without reading them whole, which would take a minute for gigabytes.

    Hashes of each file its size, its first and last 8 MiB, and 64 KiB every 8 MiB between. A block of the DiT, 90 MB,
    is
    sampled a dozen times, so training changes some of it.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size};".encode())
        with file.open("rb") as stream:
            for start in range(0, size, SAMPLE_EVERY):
                is_end = start == 0 or start + SAMPLE_EVERY >= size
                stream.seek(start)
                digest.update(stream.read(SAMPLE_EVERY if is_end else SAMPLE_BYTES))
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    """Hashes a JSON value; values of other types by their text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
