"""Finding files, and writing them so that a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.errors import OutputError


def find_files(folder: Path, endings: str | Iterable[str]) -> list[Path]:
    """The files below a folder whose names end so, in upper or lower case, sorted.

    What is hidden is left out, and what lies in hidden folders: the ``._1.png`` that macOS puts beside ``1.png``, too.
    """
    wanted = tuple(ending.lower() for ending in ([endings] if isinstance(endings, str) else endings))
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(wanted)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to be written, which then takes the place of ``path``; folders on the way are made.

    Raises:
        OutputError: if it cannot be done (no permission, no space, …); nothing is left behind then.
    """
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}.part"  # the same folder, for a rename does not cross disks
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:  # Ctrl-C too must leave no litter
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}; choose another folder or free some space") from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, replacing what is there; folders on the way are made.

    Raises:
        OutputError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def removed(path: str | Path) -> None:
    """Make sure that a file is not there.

    Raises:
        OutputError: if it cannot be removed.
    """
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}; choose another folder") from None


def write_json(path: str | Path, document: object, indent: int | None = None) -> None:
    """Write a JSON document in UTF-8, names as they are typed.

    A file's name that is not in UTF-8 has surrogates in Python: they are written as JSON's ``\\udce9``, and read back the same.

    Raises:
        OutputError: as `write_atomically`.
    """
    write_atomically(path, json.dumps(document, ensure_ascii=False, indent=indent).encode(errors="backslashreplace"))


def write_png(path: str | Path, values: NDArray[Any]) -> None:
    """Write a picture [H, W, 3] uint8, or one channel [H, W] uint8 or uint16.

    Raises:
        OutputError: as `write_atomically`.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
