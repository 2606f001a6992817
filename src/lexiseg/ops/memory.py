"""Memory limits: chunk sizes, available memory, and an error before an allocation that exceeds it.

An operating system without memory kills the process without a message, so large allocations are checked beforehand.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from lexiseg.ops.allocator import return_freed_memory
from lexiseg.structures import Size

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
CELLS = 2**26  # pixels of masks processed at a time, so that memory does not depend on their number or size


def masks_at_once(size: Size, most: int | None = None) -> int:
    """Return the number of masks of ``size`` with `CELLS` pixels in total, at least 1 and at most ``most``."""
    count = max(1, CELLS // max(1, size[0] * size[1]))
    return count if most is None else min(count, most)


def require_memory(needed: int, what: str) -> None:
    """Raise MemoryError if ``what`` needs more bytes than are available; `lexiseg.errors.explained` adds the advice."""
    left = memory_left()
    if left is not None and needed > left:
        return_freed_memory()
        left = memory_left()
    if left is not None and needed > left:
        raise MemoryError(f"{what} need about {needed / 1e9:.1f} GB, and {left / 1e9:.1f} GB are left")


def memory_left() -> int | None:
    """Return the bytes that this process can still allocate: the minimum of the machine's free memory and the limits of its
    control groups (containers) and address space; None on systems other than Linux."""
    if sys.platform != "linux":
        return None
    limits = [*_of_machine(), *_of_groups(), *_of_process()]
    return max(0, min(limits)) if limits else None


def _of_machine() -> list[int]:
    with suppress(OSError, ValueError, IndexError, KeyError):
        lines = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
        amounts = {line[0]: 1024 * int(line[1]) for line in lines}
        return [amounts["MemAvailable:"] + amounts["SwapFree:"]]
    return []


def _of_process() -> list[int]:
    with suppress(OSError, ValueError, IndexError):
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int((PROC / "self/statm").read_text().split()[0])
        return [] if limit == resource.RLIM_INFINITY else [limit - pages * resource.getpagesize()]
    return []


def _of_groups() -> list[int]:
    """Return the memory left in this process's control group and its parents; cached pages of files count as free."""
    left: list[int] = []
    with suppress(OSError, ValueError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, names, cache = CGROUPS, ("memory.max", "memory.current"), "inactive_file"
            elif "memory" in controllers.split(","):
                root, names, cache = (
                    CGROUPS / "memory",
                    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
                    "total_inactive_file",
                )
            else:
                continue
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    left += _of_group(folder, names, cache)
    return left


def _of_group(folder: Path, names: tuple[str, str], cache: str) -> list[int]:
    with suppress(OSError, ValueError):  # "max", or no such file: no limit
        limit, used = (int((folder / name).read_text()) for name in names)
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return [limit - used + int(stat.get(cache, 0))]
    return []
