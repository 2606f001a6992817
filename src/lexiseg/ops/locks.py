"""Locks on result folders, for one process at a time."""

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
_MOST = 200  # characters of a lock file shown in messages


@contextmanager
def locked(folder: str | Path, wait: float = 0) -> Iterator[None]:
    """Create a folder and lock it against other processes within the block.

    The operating system releases the lock when the process ends for any reason; the file `LOCK`, which names the holder, is
    kept and does not block by itself. A newly created folder is removed if an error leaves it empty.

    Args:
        folder: folder of the results of a command.
        wait: seconds to wait for another process.

    Raises:
        OutputError: another process holds the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # slow to import

    is_new = not Path(folder).exists()
    make_writable(folder)
    path = Path(folder) / LOCK
    lock = FileLock(path, timeout=wait)
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
    """Remove the lock file and its folder if that contains nothing else; the lock is still held."""
    with suppress(OSError):
        if [entry.name for entry in path.parent.iterdir()] == [path.name]:
            path.unlink()
            path.parent.rmdir()


def _holder(path: Path) -> str:
    with suppress(OSError):
        if line := path.read_bytes()[:_MOST].decode(errors="replace").split("\n")[0].strip():
            return line
    return "another process"
