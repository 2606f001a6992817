"""Freed memory is reused, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource
from lexiseg.ops.allocator import keep_freed_memory
libc, size = ctypes.CDLL(None), 2**27
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def used_and_freed():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)

print(keep_freed_memory())
used_and_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    used_and_freed()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, True),
        ({"LEXISEG_KEEP_FREED_MEMORY": "0"}, False),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_freed_memory_is_reused(environment: dict[str, str], kept: bool) -> None:
    settings = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=settings, check=True)
    answer, megabytes = done.stdout.split()
    assert answer == str(kept)
    assert (int(megabytes) < 100) == kept, "of 1280 MB, pages that were mapped anew"
