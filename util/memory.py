"""Memory of the process: keeps or returns freed blocks (glibc only), explains out-of-memory errors."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

from util.errors import TooLittleMemoryError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # values of glibc's malloc.h
LARGEST = 2**31 - 1  # bytes; mallopt takes an int
LARGEST_BEFORE_2_35 = 32 << 20  # largest M_MMAP_THRESHOLD of older versions
# In errors of torch on a CPU, of CUDA and of its libraries, which have no class for it.
MEMORY_WORDS = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")


def keep_freed_memory() -> None:
    """Makes malloc keep freed blocks for later allocations, until ``return_freed_memory``.

    Call it before threads start. By default malloc returns blocks from 32 MiB on to the system at once; the next
    block
    comes as new pages, each zeroed at its first use. On a CPU that takes up to a fifth of the VAE's time at 240 x
    416.
    """
    if _is_glibc():
        libc = ctypes.CDLL(None)
        # One heap for all threads: the free end of other heaps is never returned.
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST)
        if not libc.mallopt(M_MMAP_THRESHOLD, LARGEST):
            libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BEFORE_2_35)


def return_freed_memory() -> None:
    """Returns free pages to the system, also those between live blocks."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@contextlib.contextmanager
def naming_what_saves_memory() -> Iterator[None]:
    """Turns out-of-memory errors, of a GPU or the machine, into an error that says what to lower."""
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
