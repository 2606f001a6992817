"""Freed memory is reused, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from lexiseg.ops.allocator import keep_freed_memory
print(keep_freed_memory())
for _ in range(10):
    torch.empty(2**25).fill_(1)  # 128 MB; some rounds until freed blocks lie together
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(2**25).fill_(1)
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
