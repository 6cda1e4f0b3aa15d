"""The record of a result, ``result.json``, and the hashes of the weights in it."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.demo.names import RECORD
from util.hashes import sha256_of


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes ``result.json`` into ``folder``."""
    (folder / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def hashing(files: dict[str, tuple[Path, ...]]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Hashes weight files on a thread while the block runs; yields a function that returns the hashes.

    The text encoder alone is 11 GB: a block that fails does not wait for its hash.

    Args:
        files: the weight files of each network, by its name.

    Yields:
        A function that waits for, and returns, ``{network: {"files": [...], "sha256": ...}}``.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        digests = {network: pool.submit(sha256_of, paths, stop) for network, paths in files.items()}
        try:
            yield lambda: {
                network: {"files": [str(path) for path in files[network]], "sha256": digest.result()}
                for network, digest in digests.items()
            }
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
