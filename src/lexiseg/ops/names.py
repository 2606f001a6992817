"""Names of files: those that come out of data never leave their folder, and those that are made never meet.

A data set's own files (JSON, lists, pickles) are written by others, and what they call a file is a name, not a path:
`relative_name` is asked when such a name is read, `below` wherever one is joined to a folder, to read and to write.
"""

from __future__ import annotations

import os
import re
import unicodedata
from hashlib import sha256
from pathlib import Path

from lexiseg.errors import DataError

PART_BYTES, NAME_BYTES = 240, 1000  # file systems bear 255 a part, and an ending has to fit in; macOS 1024 a path
SHOWN_BYTES = 100  # of a picture's name in that of its results; the rest is in the digest
DIGITS = 12  # of the digest: 48 bits, for pictures of one name in different folders

_FAULTS = (  # looked for in this order, in a name with "/" between its parts
    (re.compile(r"[\x00-\x1f\x7f-\x9f]"), "has a control character in it"),
    (re.compile(r"\A/."), "is absolute"),
    (re.compile(r"(\A|/)[A-Za-z]:"), "names a drive"),
    (re.compile(r"(\A|/)(/|\Z)"), "has an empty part"),
    (re.compile(r"(\A|/)[. ]+(/|\Z)"), "has a part of dots or spaces alone, such as '..'"),
    (re.compile(r"(\A|/)(con|prn|aux|nul|com\d|lpt\d)(\.[^/]*)?(/|\Z)", re.IGNORECASE), "is a device on Windows"),
)
_RESULT = re.compile(rf"(-[0-9a-f]{{{DIGITS}}}|\Astdin)\.(overlay|labels|panoptic)\.png\Z")
_UNFIT = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"/\\|?*]')  # what some file system does not take


def relative_name(name: object, place: str) -> str:
    r"""A name out of a file, as a path below a folder that cannot leave it.

    ``\`` is read as ``/``, for much is written on Windows, and parts that are ``.`` are left out.

    Args:
        name: what stands in the file.
        place: where it stands, for the message: the file and the entry.

    Returns:
        The name with ``/`` between its parts.

    Raises:
        DataError: if it is no text, absolute, with ``..``, a drive, an empty part, a control character, a device of Windows,
            too long, or not to be encoded.
    """
    if not isinstance(name, str):
        raise DataError(f"{place}: {name!r:.60} stands where the name of a file should")
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
            f"{place}: the name {name[:80]!a} {fault}; a file is named by its path below its folder, such as 'a/0001.png'"
        )
    return plain


def below(folder: Path, name: object, place: str) -> Path:
    """The file of a name in a folder or below it. Links that lie there are followed: they are the user's own.

    Raises:
        DataError: as `relative_name`.
    """
    return folder / relative_name(name, place)


def same_on_some_disk(name: str) -> str:
    """What names have in common that are one file where upper and lower case, or forms of Unicode, are not told apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def located(path: str | Path) -> Path:
    """A path by which a file is known wherever it is named from: its folder resolved, its own name as given."""
    path = Path(path)
    return Path(os.path.realpath(path.parent)) / path.name


def is_file_of(path: str | Path, other: str | Path) -> bool:
    """Whether two paths are one place, or the first is what the second, a link, points to."""
    return located(path) in (located(other), Path(os.path.realpath(other)))


def result_name(picture: str | Path) -> str:
    """What the files about a picture are called, before their endings: ``photo.jpg-0f3a5c7e9b1d``.

    The name of the picture, and a digest of where it lies: another picture, be it of the same name in another folder, with
    another ending or in other letters only, has another name; and the name depends on nothing else. [decided] A picture on
    standard input (``-``) is ``stdin``. Signs that not every file system takes become ``_``, long names are cut.
    """
    if str(picture) == "-":
        return "stdin"
    place = located(picture)
    return file_name(place.name, str(place))


def file_name(shown: str, identity: str) -> str:
    """A name that any file system takes: what can be shown of ``shown``, and a digest of ``identity``, what it stands for."""
    plain = unicodedata.normalize("NFC", _UNFIT.sub("_", shown)).encode()[:SHOWN_BYTES].decode(errors="ignore")
    return f"{plain}-{sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:DIGITS]}"


def is_result(file: str) -> bool:
    """Whether a file's name is that of a picture which lexiseg wrote about another one, or about one on standard input."""
    return _RESULT.search(file) is not None
