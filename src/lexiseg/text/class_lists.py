"""Parse lists of classes from strings, sequences, text files and JSON files.

A class is written::

    dog, puppy            the name shown, then its synonyms
    grass, lawn | stuff   with its kind, thing or stuff
    7: dog, puppy         with its id, the value that stands for it in label maps

A list has one class per line in a text file (blank lines and lines that begin with ``#`` are skipped), per item in a sequence,
or classes separated by semicolons in a string. In a file ``;`` separates synonyms, as ``,`` does, since the published lists of
ADE20K have ``building;edifice``. A JSON file holds one of `JSON_FORMS`.

This module parses; `lexiseg.text.vocabulary` validates the list as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from lexiseg.errors import UsageError
from lexiseg.ops.coco import flag, whole

WORDS, CHARACTERS = 60, 500  # limits of a name: CLIP truncates to 75 tokens
KINDS = {"thing": True, "stuff": False}
LARGEST_ID = 65_535  # the highest value of a 16-bit label map
JSON_FORMS = (
    'a list of strings, a list of objects {"name", "synonyms", "id", "isthing"}, an object whose "categories" are such a list'
    ' (COCO), or an object from id to name, {"1": "dog"}'
)

_NUMBERED = re.compile(r"\s*([+-]?[0-9]+)\s*:")
_NEWLINE = re.compile(r"\r\n|\r|\n")
# Control characters except tabs and newlines, line separators, direction marks, byte order marks, and lone surrogates.
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class ClassEntry:
    """One class of a list.

    Attributes:
        names: the name shown and its synonyms, without duplicates (ignoring case).
        thing: whether it is a thing; None if not stated.
        id: its value in label maps; None if not stated.
        position: its position in the list, for messages: "line 3".
    """

    names: tuple[str, ...]
    thing: bool | None
    id: int | None
    position: str


def read_entries(path: str | Path) -> list[ClassEntry]:
    """Read the classes of a UTF-8 file: JSON if it ends in ``.json`` or begins with ``[`` or ``{``, else one per line.

    Raises:
        UsageError: if the file cannot be read, or an entry is not a class; names the file and the line or entry.
    """
    source, text = f"vocabulary file {path}", read_text(path, "vocabulary file")
    if Path(path).suffix.lower() == ".json" or text.lstrip().startswith(("[", "{")):
        return list(entries_of_json(text, source))
    return entries_of_lines(text, source)


def entries_of_lines(text: str, source: str) -> list[ClassEntry]:
    """Parse the text of a file, one class per line; ``source`` names the file in errors. Raises as `read_entries`."""
    lines = [(f"line {number}", line) for number, line in enumerate(_NEWLINE.split(text), start=1)]
    lines = [(position, line.rstrip("; \t")) for position, line in lines if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) == 1 and ";" in lines[0][1]:
        raise UsageError(
            f"{source} has one line, {_short(lines[0][1])}: are these classes or synonyms? Write one class a line, and ','"
            " between synonyms"
        )
    return [_of_string(line, position, source) for position, line in lines]


def entries_of_string(text: str) -> list[ClassEntry]:
    """Parse classes separated by semicolons; trailing semicolons are allowed, empty classes before them are not.

    Raises:
        UsageError: if a part is not a class.
    """
    parts = text.split(";")
    while parts and not parts[-1].strip():
        parts.pop()
    return entries_of_items(parts)


def entries_of_items(items: Iterable[object]) -> list[ClassEntry]:
    """Parse a sequence with one class per item. Raises as `entries_of_string`."""
    return [entry_of_item(item, f"class {number}") for number, item in enumerate(items, start=1)]


def entry_of_item(item: object, position: str) -> ClassEntry:
    """Parse one class; ``position`` locates it in errors. Raises as `entries_of_string`."""
    if not isinstance(item, str):
        raise UsageError(f"{position} is {_short(item)}: a class is written as a string such as 'dog, puppy'")
    if ";" in item:
        raise UsageError(f"{position} is {_short(item)}: ';' separates classes; give each class an item of its own")
    return _of_string(item, position, separators=",")


def entries_of_mapping(mapping: Mapping[Any, Any]) -> list[ClassEntry]:
    """Parse a mapping from name to synonyms (a sequence or a string with commas). Raises as `entries_of_string`."""
    entries = []
    for number, (name, synonyms) in enumerate(mapping.items(), start=1):
        listed = synonyms.split(",") if isinstance(synonyms, str) else synonyms
        if not isinstance(listed, Sequence) or not all(isinstance(known, str) for known in (name, *listed)):
            raise UsageError(
                f"class {number} is {_short({name: synonyms})}: names and synonyms are strings, as in {{'dog': ['puppy']}}"
            )
        entries.append(ClassEntry(_names((name, *listed), f"class {number}"), None, None, f"class {number}"))
    return entries


def clean(name: str) -> str:
    """Normalise a name: single spaces between words, letters composed (Unicode NFC)."""
    return normalize("NFC", " ".join(name.split()))


def read_text(path: str | Path, what: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark.

    Args:
        path: the file.
        what: its kind, for messages: "vocabulary file".

    Raises:
        UsageError: if it cannot be read or is not UTF-8 text.
    """
    try:
        data = Path(path).read_bytes()
    except IsADirectoryError:
        raise UsageError(f"{what} {path} is a folder; give a file") from None
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read ({error.strerror}); check its path and permissions") from None
    except ValueError:  # an invalid path
        raise UsageError(f"{what} {str(path)[:80]!a} cannot be the path of a file; give another") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{what} {path} is UTF-16, not UTF-8 text; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise UsageError(f"{what} {path} is not text: it has zero bytes; give a text file in UTF-8")
    return text


def entries_of_json(text: str, source: str) -> Iterator[ClassEntry]:
    """Parse the text of a JSON file, one of `JSON_FORMS`; ``source`` names the file in errors. Raises as `read_entries`."""
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except ValueError as error:
        raise UsageError(f"{source} is not JSON ({error}); write it again") from None
    except RecursionError:
        raise UsageError(f"{source} is JSON nested too deep; accepted are {JSON_FORMS}") from None
    if isinstance(document, dict) and document and all(_NUMBERED.fullmatch(f"{key}:") for key in document):
        for key, name in document.items():
            position = f"id {_short(key)}"
            if not isinstance(name, str):
                raise UsageError(f"{source}, {position} is {_short(name)}; accepted are {JSON_FORMS}")
            entry = _of_string(name, position, source, numbered=False)
            yield ClassEntry(entry.names, entry.thing, _id(key, f"{source}, {position}"), position)
        return
    if isinstance(document, dict):
        document = document.get("categories", document.get("classes"))  # of COCO, and of the classes.json that lexiseg writes
    if not isinstance(document, list):
        raise UsageError(f"{source} is JSON of another form; accepted are {JSON_FORMS}")
    for number, item in enumerate(document, start=1):
        position = f"entry {number}"
        if isinstance(item, str):
            yield _of_string(item, position, source)
        elif isinstance(item, dict):
            yield _of_object(item, position, source)
        else:
            raise UsageError(f"{source}, {position} is {_short(item)}; accepted are {JSON_FORMS}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of a JSON object; refuse duplicate keys."""
    known = dict(pairs)
    if len(known) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {_short(next(key for key in keys if keys.count(key) > 1))} stands twice in an object")
    return known


def _of_object(item: dict[str, Any], position: str, source: str) -> ClassEntry:
    """Parse an object of a JSON list; other fields are ignored, null counts as missing."""
    where = f"{source}, {position}"
    name, synonyms = item.get("name"), item.get("synonyms")
    listed = [] if synonyms is None else synonyms
    if not isinstance(name, str) or not isinstance(listed, list) or not all(isinstance(known, str) for known in listed):
        raise UsageError(f"{where} is {_short(item)}: 'name' must be a string, and 'synonyms' a list of strings")
    number = item.get("id", item.get("label"))
    thing = item.get("isthing", item.get("thing"))
    try:
        kind = None if thing is None else flag(thing)
        label = None if number is None else _id(str(whole(number)), where)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{where} is {_short(item)}: its id must be a whole number, and 'isthing' 0 or 1 ({error})") from None
    return ClassEntry(_names([*_separated(name, ",;", where), *listed], where), kind, label, position)


def _of_string(text: str, position: str, source: str = "", *, separators: str = ",;", numbered: bool = True) -> ClassEntry:
    """Parse ``id: name, synonym | kind``, of which only the name is required."""
    where = f"{source}, {position}" if source else position
    number = _NUMBERED.match(text) if numbered else None
    label = _id(number[1], where) if number else None
    names, bar, kind = (text[number.end() :] if number else text).partition("|")
    if bar and kind.strip() not in KINDS:
        raise UsageError(f"{where} ends in {_short('|' + kind)}: after '|' write thing or stuff")
    return ClassEntry(
        _names(_separated(names, separators, where), where), KINDS[kind.strip()] if bar else None, label, position
    )


def _separated(names: str, separators: str, where: str) -> list[str]:
    used = [separator for separator in separators if separator in names]
    if len(used) > 1:
        raise UsageError(f"{where} is {_short(names)}: has both ',' and ';'; write one class a line, and ',' between synonyms")
    return names.split(used[0]) if used else [names]


def _names(written: Iterable[str], where: str) -> tuple[str, ...]:
    """Return the clean names without duplicates; ``where`` locates them in errors."""
    unique: dict[str, str] = {}
    for raw in written:
        if unfit := _UNFIT.search(raw):
            raise UsageError(f"{where} is {_short(raw)}: U+{ord(unfit[0]):04X} is a control character or not text; delete it")
        name = clean(raw)
        if not name:
            raise UsageError(f"{where} has an empty name; write a name, or remove the extra separator")
        if len(name) > CHARACTERS or len(name.split()) > WORDS:
            length = f"{len(name.split())} words, {len(name)} characters"
            raise UsageError(f"{where} is {_short(name)} of {length}: is this a sentence? Give a name of a few words")
        unique.setdefault(name.casefold(), name)
    return tuple(unique.values())


def _id(digits: str, where: str) -> int:
    significant = digits.lstrip("0") or "0"
    if not significant.isdecimal() or len(significant) > len(str(LARGEST_ID)) or int(significant) > LARGEST_ID:
        raise UsageError(f"{where} has the id {digits[:40]}: ids are values of label maps, 0 to {LARGEST_ID}")
    return int(significant)


def _short(value: object) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:39] + "…")
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
