"""File names: validation of names in data sets, and unique names for results.

A data set's own files (JSON, lists, pickles) are untrusted. `relative_name` validates a file name in them, and `below` joins it
to a folder, for reading and writing, so that no file outside that folder is reached.
"""

from __future__ import annotations

import os
import re
import unicodedata
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from lexiseg.errors import DataError

PART_BYTES, NAME_BYTES = 240, 1000  # file systems allow 255 per part, of which an ending needs some; macOS 1024 per path
SHOWN_BYTES = 100  # of a picture's name in that of its results
DIGITS = 12  # of the digest: 48 bits, for pictures of the same name in different folders

_FAULTS = (  # checked in this order, in a name with "/" between its parts
    (re.compile(r"[\x00-\x1f\x7f-\x9f]"), "has a control character in it"),
    (re.compile(r"\A/."), "is absolute"),
    (re.compile(r"(\A|/)[A-Za-z]:"), "names a drive"),
    (re.compile(r"(\A|/)(/|\Z)"), "has an empty part"),
    (re.compile(r"(\A|/)[. ]+(/|\Z)"), "has a part of dots or spaces alone, such as '..'"),
    (re.compile(r"(\A|/)(con|prn|aux|nul|com\d|lpt\d)(\.[^/]*)?(/|\Z)", re.IGNORECASE), "is a device on Windows"),
)
_RESULT = re.compile(
    rf"(-[0-9a-f]{{{DIGITS}}}|\Astdin)\.((overlay|labels|panoptic|palette|confidence|yolo)\.png|(labels|panoptic)\.tif)\Z"
)
_UNFIT = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"/\\|?*]')  # not allowed on some file system


def relative_name(name: object, where: str) -> str:
    r"""Validate a file name from a data set's file as a relative path that stays below its folder.

    ``\`` is read as ``/``, as Windows programs write it, and parts that are ``.`` are removed.

    Args:
        name: value in the file.
        where: its location for messages: the file and the entry.

    Returns:
        The name with ``/`` between its parts.

    Raises:
        DataError: not a string, absolute, with ``..``, a drive, an empty part, a control character or a Windows device, too
            long, or not encodable.
    """
    if not isinstance(name, str):
        raise DataError(f"{where}: {name!r:.60} stands where the name of a file should")
    plain = "/".join(part for part in name.replace("\\", "/").split("/") if part != ".")
    fault = next((fault for pattern, fault in _FAULTS if pattern.search(plain)), None)
    try:
        lengths = [len(part.encode("utf-8", "surrogateescape")) for part in plain.split("/")]
        if fault is None and (max(lengths) > PART_BYTES or sum(lengths) + len(lengths) > NAME_BYTES):
            fault = f"is longer than {PART_BYTES} bytes a part or {NAME_BYTES} in all"
    except UnicodeEncodeError:
        fault = fault or "is no Unicode text"
    if fault is not None:
        raise DataError(
            f"{where}: the name {name[:80]!a} {fault}; a file is named by its path below its folder, such as 'a/0001.png'"
        )
    return plain


def below(folder: Path, name: object, where: str) -> Path:
    """Join a validated name to a folder. Links in the folder are followed: they are the user's own.

    Raises:
        DataError: as `relative_name`.
    """
    return folder / relative_name(name, where)


def same_on_some_disk(name: str) -> str:
    """Normalise case and Unicode: names with the same result are the same file on some file systems."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def located(path: str | Path) -> Path:
    """Return the path with its folder resolved and its own name unchanged."""
    path = Path(path)
    return Path(os.path.realpath(path.parent)) / path.name


def is_file_of(path: str | Path, other: str | Path) -> bool:
    """Whether two paths are the same, or ``path`` is the target of the link ``other``."""
    return located(path) in (located(other), Path(os.path.realpath(other)))


def is_url(text: str) -> bool:
    """Whether a text is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def result_name(picture: str | Path) -> str:
    """Return the stem of result files of a picture: ``photo.jpg-0f3a5c7e9b1d``.

    It consists of the picture's name and a digest of its path, so pictures with the same name in different folders, with other
    suffixes or other case have different results. [decided] A picture on standard input (``-``) is ``stdin``, one at an http(s)
    address is named by the end of that. Characters that some file system does not allow become ``_``; long names are truncated.
    """
    if str(picture) == "-":
        return "stdin"
    if is_url(str(picture)):
        return file_name(urlsplit(str(picture)).path.rpartition("/")[2] or "picture", str(picture))
    path = located(picture)
    return file_name(path.name, str(path))


def file_name(shown: str, identity: str) -> str:
    """Build a name valid on any file system from the text ``shown`` and a digest of ``identity``."""
    plain = unicodedata.normalize("NFC", _UNFIT.sub("_", shown)).encode()[:SHOWN_BYTES].decode(errors="ignore")
    return f"{plain}-{sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:DIGITS]}"


def is_result(file: str) -> bool:
    """Whether a file's name is that of a picture that lexiseg wrote as a result."""
    return _RESULT.search(file) is not None
