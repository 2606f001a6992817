"""Digests of downloaded weights: files are verified after the download, and again when they have changed.

    is_whole(path, "<SHA-256>")                     compares, unless it is recorded that this very file has been compared
    check_unchanged("owner/name/file", "<SHA-256>") compares with the user's table, see `add_digest`

The **user's table** ``$LEXISEG_CACHE/weights/digests.json`` maps a file's origin to its size in bytes and SHA-256. An entry is
added after the first verified download, and later downloads must agree with it. Entries written by hand hold as well: an
organisation may so fix the weights that its machines take.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lexiseg.errors import OutputError, WeightsError
from lexiseg.ops.files import write_json
from lexiseg.ops.locks import locked
from lexiseg.text.embed import cache_folder

TABLE = "digests.json"
BLOCK, PATIENCE = 2**22, 1.0  # bytes read at a time; seconds before a bar is shown
WAIT = 30.0  # seconds for another process that adds an entry
SHA256 = re.compile("[0-9a-f]{64}")
GIT_SHA1 = re.compile("[0-9a-f]{40}")


def is_whole(path: Path, expected: str | None = None) -> bool:
    """Whether a file has the expected digest; True if none is known.

    It is computed once: records in ``$LEXISEG_CACHE/hub`` hold the digest with size and times of the file.

    Args:
        path: the file. In the cache of the hub's client it is a link to a file that is named by its digest.
        expected: SHA-256, or SHA-1 of a Git blob; defaults to the name of the link's target, or to the record.
    """
    real = path.resolve()
    stat, folder = real.stat(), cache_folder("hub")
    record = None if folder is None else folder / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
    recorded = _read(record)
    if expected is None:
        expected = path.readlink().name if path.is_symlink() else str(recorded[0]) if recorded else None
    current = [expected, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    if expected is None or recorded == current:
        return True
    if not has_digest(path, expected, stat.st_size):
        return False
    if record is not None:
        with suppress(OutputError):  # the digest is then computed again next time
            write_json(record, current)
    return True


def has_digest(file: Path, expected: str, size: int) -> bool:
    """Whether a file of ``size`` bytes has a digest; True for digests of other kinds (some mirrors have them)."""
    if SHA256.fullmatch(expected):
        digest = hashlib.sha256()
    elif GIT_SHA1.fullmatch(expected):
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        return True
    _add_content(digest, file)
    return digest.hexdigest() == expected


def digest_of(file: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    _add_content(digest, Path(file))
    return digest.hexdigest()


def _add_content(digest: hashlib._Hash, file: Path) -> None:
    """Add the content of a file to a digest; on a terminal with a bar, if that takes long."""
    units: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    with (
        file.open("rb") as opened,
        tqdm(
            desc=f"checking {file.name}", total=file.stat().st_size, delay=PATIENCE, leave=False, disable=None, **units
        ) as bar,
    ):
        while block := opened.read(BLOCK):
            digest.update(block)
            bar.update(len(block))


def recorded_digest(origin: str) -> str | None:
    """SHA-256 of a file in the user's table; None if it has no entry.

    Args:
        origin: repository and name of the file, or its address.

    Raises:
        WeightsError: the table is damaged.
    """
    entry = _table().get(origin)
    return None if entry is None else str(entry["sha256"])


def check_unchanged(origin: str, sha256: str) -> None:
    """Compare a file with the user's table, if that has an entry.

    Args:
        origin: repository and name of the file, or its address.
        sha256: its digest.

    Raises:
        WeightsError: the table has another digest for it, or is damaged.
    """
    before = recorded_digest(origin)
    if before not in (None, sha256):
        raise WeightsError(
            f"{origin} is not the file of its first download here: its SHA-256 is {sha256[:12]}…, not {before[:12]}…; if you "
            f"trust the new file, delete the entry in {_table_path()}"
        )


def add_digest(origin: str, sha256: str, size: int) -> None:
    """Add a verified file to the user's table. Where that cannot be written, later downloads are not compared.

    Args:
        origin, sha256: as for `check_unchanged`.
        size: in bytes.
    """
    folder = cache_folder("weights")
    if folder is None or recorded_digest(origin) == sha256:
        return
    with suppress(OutputError), locked(folder, WAIT):
        write_json(folder / TABLE, {**_table(), origin: {"size": size, "sha256": sha256}}, indent=1)


def _table_path() -> Path | None:
    folder = cache_folder("weights")
    return None if folder is None else folder / TABLE


def _table() -> dict[str, dict[str, Any]]:
    path = _table_path()
    try:
        content = {} if path is None else json.loads(path.read_bytes())
        for entry in content.values():
            if not SHA256.fullmatch(entry["sha256"]):
                raise ValueError("a digest is no SHA-256")
    except OSError:  # there is none
        return {}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} is no table of digests ({error}); repair or delete it") from None
    table: dict[str, dict[str, Any]] = content
    return table


def _read(record: Path | None) -> list[str | int]:
    """Read the record of a file: digest, size in bytes, times of change; empty if there is none."""
    if record is not None:
        with suppress(OSError, ValueError, RecursionError):
            values = json.loads(record.read_bytes())
            if isinstance(values, list) and len(values) == 4 and isinstance(values[0], str):
                return values
    return []
