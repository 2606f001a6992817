"""What no input may do, whatever comes of it: run code, take much memory, or be refused in more than a line."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

from lexiseg.errors import LexisegError

MARKER = "lexiseg-fuzz-was-run"  # a file that inputs with code in them would make in the current folder
MOST_MEMORY = 2**30  # bytes that an input may add to the most that the process held


def watched(reading: Callable[[], object]) -> None:
    """Do something with an input, and hold what it did against the above."""
    before = _peak()
    try:
        reading()
    except LexisegError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise AssertionError("an error is one short line") from error
        raise
    finally:
        ran, grown = Path(MARKER).exists(), _peak() - before
        Path(MARKER).unlink(missing_ok=True)
        if ran:
            raise AssertionError("the file ran code")
        if grown > MOST_MEMORY:
            raise AssertionError(f"it took {grown >> 20} MiB")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
