"""What malloc keeps and gives back; in a process of its own, for it cannot be undone."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import threading
from pathlib import Path
import numpy as np
from util.memory import keep_freed_memory, return_freed_memory

def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

def use(_=None):
    arrays = [np.ones(2 << 20, np.uint8) for _ in range(20)]
    kept.append(arrays[3])  # its neighbours become holes

kept = []
keep_freed_memory()
before = resident()
np.ones(100 << 20, np.uint8)
held = resident() - before
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
return_freed_memory()
print(held, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_for_the_next_and_returned_whichever_thread_used_it():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    held, after = map(int, done.stdout.split())  # MiB
    assert held > 90
    assert after < 4 * 2 + 10
