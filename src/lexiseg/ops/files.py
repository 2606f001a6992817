"""Search for files, and atomic writes: readers see either the old or the new file, never a partial one."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.errors import OutputError


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False for a name that no disk takes."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether a path is a file; False for a name that no disk takes, where `Path.is_file` may raise."""
    return path_exists(path) and path.is_file()


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False for a name that no disk takes."""
    return path_exists(path) and path.is_dir()


def find_files(folder: Path, endings: str | Iterable[str]) -> list[Path]:
    """Find the files below a folder whose names have one of these endings, case-insensitively, sorted.

    Hidden files and folders are skipped, such as the ``._1.png`` that macOS writes beside ``1.png``.
    """
    suffixes = tuple(ending.lower() for ending in ([endings] if isinstance(endings, str) else endings))
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(suffixes)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


@contextmanager
def replacing(path: str | Path, *, apart: bool = False) -> Iterator[Path]:
    """Provide a temporary file that replaces ``path`` at the end of the block; missing folders are created.

    The temporary file of a killed process is removed when another process first writes to its folder, see `remove_litter`.

    Args:
        path: the file to be written.
        apart: use a temporary folder for the temporary file, for writers that create further files beside it.

    Raises:
        OutputError: the file cannot be written (no permission, no space, …); temporary files are removed.
    """
    path = Path(path)
    litter = path.parent / _temporary_name()  # in the same folder, since a rename cannot cross file systems
    temporary = litter / path.name if apart else litter
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean_once(path.parent.absolute())
        try:
            if apart:
                litter.mkdir()
            yield temporary
            temporary.replace(path)
        except BaseException:  # also Ctrl-C
            _remove(litter)
            raise
        if apart:
            _remove(litter)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "enforce fail" not in str(error):  # this is how torch.save reports a full disk
            raise
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (cause.strerror or str(cause)) if isinstance(cause, OSError) else "the disk did not take all of it"
        raise OutputError(f"cannot write {path}: {reason}; choose another folder or free some space") from error


def make_writable(folder: str | Path) -> None:
    """Create a folder for results and check that files can be written there.

    Raises:
        OutputError: the folder cannot be created or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean_once(folder.absolute())
        probe = folder / _temporary_name()
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}; choose another folder") from error


def remove_litter(folder: str | Path) -> None:
    """Remove the temporary files of dead processes in a folder, as far as possible; sub-folders are skipped.

    A writer on this machine is dead if its process has ended. Files of writers that this process cannot see (another machine or
    container that shares the folder, a system without ``/proc``) are removed if they have not changed for a day.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            if _is_litter(path):
                _remove(path)


# Name of a temporary file: digest of kernel and container, the writer's process id and start time, random digits.
_UNKNOWN = "unknown"
_TEMPORARY = re.compile(r"\.([0-9a-f]{12}|unknown)-(\d{1,7})-(\d+)-[0-9a-f]{16}\.part")
_DAY = 24 * 60 * 60  # seconds


def _temporary_name() -> str:
    process, machine = os.getpid(), _machine()
    began = "0" if machine == _UNKNOWN else _process(process)[1]
    return f".{machine}-{process}-{began}-{secrets.token_hex(8)}.part"


@cache
def _machine() -> str:
    """Return a digest of the boot and the container that process ids belong to; "unknown" without ``/proc``."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        return sha256(boot + str(Path("/proc/self/ns/pid").readlink()).encode()).hexdigest()[:12]
    except OSError:
        return _UNKNOWN


def _process(number: int) -> tuple[str, str]:
    """Return state and start time of a process from the kernel's ``stat``; OSError if it does not exist or is hidden."""
    fields = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], fields[19]


def _is_litter(path: Path) -> bool:
    """Whether the writer of a temporary file is dead."""
    match = _TEMPORARY.fullmatch(path.name)
    assert match is not None
    if match[1] == _UNKNOWN or match[1] != _machine():
        with suppress(FileNotFoundError):
            return time.time() - path.lstat().st_mtime > _DAY
        return False
    with suppress(OSError):
        state, began = _process(int(match[2]))
        return began != match[3] or state in "XZ"
    try:
        os.kill(int(match[2]), 0)  # tests existence only: processes of other users may be hidden in /proc
    except ProcessLookupError:
        return True
    return False


def _remove(path: Path) -> None:
    """Remove a temporary file, or a temporary folder with its content; errors are ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


_clean_once = cache(remove_litter)  # a process cleans each folder when it first writes there


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically, replacing an existing file; missing folders are created.

    Raises:
        OutputError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def removed(path: str | Path) -> None:
    """Remove a file if it exists.

    Raises:
        OutputError: the file cannot be removed.
    """
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}; choose another folder") from None


def write_json(path: str | Path, document: object, indent: int | None = None) -> None:
    """Write a JSON document in UTF-8, without escapes of non-ASCII characters.

    File names that are not UTF-8 have surrogates in Python: they are written as JSON's ``\\udce9``, and read back unchanged.

    Raises:
        OutputError: as `write_atomically`.
    """
    write_atomically(path, json.dumps(document, ensure_ascii=False, indent=indent).encode(errors="backslashreplace"))


def write_png(path: str | Path, values: NDArray[Any], palette: NDArray[np.uint8] | None = None) -> None:
    """Write a picture [H, W, 3] uint8, or one channel [H, W] uint8 or uint16.

    Args:
        path: the file.
        values: the picture.
        palette: colours [N, 3] of the values 0 to N - 1 of one channel of uint8; without it they are greys.

    Raises:
        OutputError: as `write_atomically`.
    """
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(values))
    if palette is not None:
        picture.putpalette(palette.tobytes())
    picture.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
