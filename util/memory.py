"""Memory of the process: keeps or returns freed blocks (glibc only), explains out-of-memory errors."""

import contextlib
import ctypes
import errno
import platform
from collections.abc import Iterator

import torch

from util.errors import TooLittleMemoryError, TooLittleToLoadError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # values of glibc's malloc.h
LARGEST = 2**31 - 1  # bytes; mallopt takes an int
LARGEST_BEFORE_2_35 = 32 << 20  # largest M_MMAP_THRESHOLD of older versions
# In errors of torch on a CPU, of CUDA, MPS and their libraries, of C++, Rust and mmap, which have no class for it.
MEMORY_WORDS = ("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed", "std::bad_alloc")


def keep_freed_memory() -> None:
    """Makes malloc keep freed blocks for later allocations, until ``return_freed_memory``.

    Call it before threads start. By default malloc returns blocks from 32 MiB on to the system at once; the next
    block comes as new pages, each zeroed at its first use. On a CPU that takes up to a fifth of the VAE's time at
    240 x 416.
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


def return_gpu_memory(device: torch.device) -> None:
    """Returns the blocks that torch keeps of a GPU, for other processes and libraries; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that memory of the machine or of a GPU ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if any(words in str(error).lower() for words in MEMORY_WORDS):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def too_little_to_load(error: BaseException, source: str) -> TooLittleToLoadError:
    """Returns the error for weights that do not fit into the machine's memory.

    Args:
        error: for which ``is_out_of_memory`` holds.
        source: argument and file or network.
    """
    return TooLittleToLoadError(
        f"{source}: the memory of the machine is too small to load it ({str(error)[:100]}); free memory, raise the "
        "limit if one is set (ulimit -v), or halve the weights with --dtype bf16 (main.py: --weights_dtype bf16); "
        "--text_on does not change this, it says where the text encoder runs once loaded"
    )


@contextlib.contextmanager
def naming_what_saves_memory() -> Iterator[None]:
    """Turns out-of-memory errors, of a GPU or the machine, into an error that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLittleMemoryError(
            f"out of memory ({str(error)[:100]}); lower prompt_batch (--prompt_batch), window (--window) or the box "
            "(--reso_h, --reso_w)"
        ) from error
