"""Finished pictures of a folder of results, so that the same call continues where an earlier one ended.

``lexiseg-manifest.jsonl`` has a line for each: its path, size and date, the digest of the call, and the files of the result.
Lines are appended; of several lines for a picture the last holds. A line that a killed process left unfinished is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lexiseg.errors import OutputError
from lexiseg.ops.files import is_file, write_atomically
from lexiseg.ops.names import located

FILE = "lexiseg-manifest.jsonl"


class Manifest:
    """Manifest of a folder.

    Args:
        folder: folder of the results.
        call: digest of everything but the pictures that the results depend on.
    """

    def __init__(self, folder: Path, call: str) -> None:
        self.path, self.call = folder / FILE, call
        data = b""
        with suppress(OSError):
            data = self.path.read_bytes()
        self._entries = {entry["picture"]: entry for line in data.splitlines() if (entry := _entry(line))}
        lines = [_line(entry) for entry in self._entries.values()]
        if data != b"".join(lines):
            write_atomically(self.path, b"".join(lines))

    def has(self, picture: str, files: Sequence[Path]) -> bool:
        """Whether a picture has been finished by the same call, has not changed since, and its files are there."""
        entry = self._described(picture, files)
        return entry is not None and self._entries.get(entry["picture"]) == entry and all(is_file(file) for file in files)

    def add(self, picture: str, files: Sequence[Path]) -> None:
        """Add a finished picture; one without a file, as from standard input, is not added.

        Raises:
            OutputError: the manifest cannot be written.
        """
        entry = self._described(picture, files)
        if entry is None or self._entries.get(entry["picture"]) == entry:
            return
        self._entries[entry["picture"]] = entry
        try:
            with self.path.open("ab") as file:
                file.write(_line(entry))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}; free some space") from error

    def _described(self, picture: str, files: Sequence[Path]) -> dict[str, Any] | None:
        try:
            stat = Path(picture).stat()
        except (OSError, ValueError):
            return None
        names = [file.relative_to(self.path.parent).as_posix() for file in files]
        return {
            "picture": str(located(picture)),
            "bytes": stat.st_size,
            "modified": stat.st_mtime_ns,
            "call": self.call,
            "files": names,
        }


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _entry(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        entry = json.loads(line)
        if isinstance(entry, dict) and isinstance(entry.get("picture"), str):
            return entry
    return None
