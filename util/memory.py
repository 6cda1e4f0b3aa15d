"""Memory of the process: keeps or returns freed blocks (glibc only), explains out-of-memory errors."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from util.errors import TooLittleMemoryError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h
LARGEST = 2**31 - 1  # bytes; mallopt takes an int
LARGEST_BEFORE_2_35 = 32 << 20  # of M_MMAP_THRESHOLD; older versions refuse more
# Of torch on a CPU, of CUDA and of its libraries, which have no class of error for it.
MEMORY_WORDS = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")


def keep_freed_memory() -> None:
    """Has malloc keep freed blocks of whatever size for those who ask next, until ``return_freed_memory``.

    By itself it gives blocks from 32 MiB on back to the system at once, and the next comes as new pages, each zeroed
    at its first touch: on a CPU up to a fifth of the VAE's time at 240 x 416. To be called before there are threads.
    """
    if _is_glibc():
        libc = ctypes.CDLL(None)
        # All threads share one heap: of those that others have of their own, the free end is never returned.
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
        if not libc.mallopt(M_MMAP_THRESHOLD, LARGEST):
            libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE_2_35)


def return_freed_memory() -> None:
    """Hands the pages that are free back to the system, the holes between what lives on too."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@contextlib.contextmanager
def naming_what_saves_memory() -> Iterator[None]:
    """Out of memory, of a GPU or the machine, becomes an error that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
            words in str(error) for words in MEMORY_WORDS
        ):
            raise
        raise TooLittleMemoryError(
            f"out of memory ({str(error)[:100]}); lower prompt_batch (--prompt_batch), window (--window) or the box "
            "(--reso_h, --reso_w)"
        ) from error
