"""One process at a time in a folder of results."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from lexiseg.errors import OutputError
from lexiseg.ops.files import make_writable

LOCK = ".lexiseg.lock"
_MOST = 200  # characters of what a lock file says that are shown


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Make a folder, and refuse it to other processes while this lasts.

    The lock belongs to the operating system, which takes it back when the process ends, however it ends; the file `LOCK`, which
    says who holds it, stays and blocks nobody. A folder that was made for this is removed if an error leaves nothing in it.

    Args:
        folder: where the results of one command go.

    Raises:
        OutputError: another process is at work in the folder, or it cannot be written.
    """
    from filelock import FileLock, Timeout  # slow to import

    is_new = not Path(folder).exists()
    make_writable(folder)
    path = Path(folder) / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(f"{folder} is in use by {_holder(path)}; wait for its end, or choose another folder") from None
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error.strerror or error}; choose another folder") from error
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        with suppress(OSError):  # a full disk
            path.write_text(f"process {os.getpid()} on {platform.node()} since {now}\n")
        yield
    except BaseException:
        if is_new:
            _remove_if_empty(path)
        raise
    finally:
        lock.release()


def _remove_if_empty(path: Path) -> None:
    """Remove the lock file and its folder if there is nothing else in it; the lock is still held."""
    with suppress(OSError):
        if [entry.name for entry in path.parent.iterdir()] == [path.name]:
            path.unlink()
            path.parent.rmdir()


def _holder(path: Path) -> str:
    with suppress(OSError):
        if line := path.read_bytes()[:_MOST].decode(errors="replace").split("\n")[0].strip():
            return line
    return "another process"
