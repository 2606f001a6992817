"""Settings of glibc's allocator.

By default glibc maps large blocks and returns them to the system when they are freed. Tensors are large blocks, so most of them
are mapped again, page by page, which can take longer than the arithmetic on them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

SWITCH = "LEXISEG_KEEP_FREED_MEMORY"  # "0" turns it off
KEPT = 10**9  # bytes: blocks below are reused; more than this, free at the end of the heap, is returned
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for reuse, up to about 1 GB.

    The command line does this when it starts. It does nothing on systems without glibc, if the user has configured the
    allocator (``MALLOC_*``, ``GLIBC_TUNABLES``), and if the environment variable ``LEXISEG_KEEP_FREED_MEMORY`` is 0.

    Returns:
        Whether it was set.
    """
    configured = any(name.startswith("MALLOC_") and name.endswith("_THRESHOLD_") for name in os.environ)
    if os.environ.get(SWITCH) == "0" or configured or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = _glibc()
    return libc is not None and all(libc.mallopt(option, KEPT) for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))


def return_freed_memory() -> None:
    """Return freed memory to the system."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> Any:
    """Return the C library if it is glibc, else None."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
