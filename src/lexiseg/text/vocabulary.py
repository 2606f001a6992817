"""Vocabularies: classes with names, synonyms, and their kind, thing or stuff.

`lexiseg.text.class_lists` defines how lists of classes are written, in strings and in files.

Without a stated kind, a name is stuff if more of the large built-in lists (`VOTERS`) have it as stuff than as a thing (grass,
sky, road); every other name is a thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from lexiseg.errors import UsageError
from lexiseg.ops.files import path_exists
from lexiseg.ops.markup import html_table
from lexiseg.text.class_lists import (
    LARGEST_ID,
    ClassEntry,
    clean,
    entries_of_items,
    entries_of_lines,
    entries_of_mapping,
    entries_of_string,
    entry_of_item,
    read_entries,
)

VOID = (("void",), ("invalid_class_id",))  # names of an id that is not a class; the second is from FC-CLIP's lists
# Lists that vote on the kind of names without one: those whose data sets state it.
VOTERS = ("ade150", "cityscapes", "coco", "coco-stuff-171", "emoji", "pascal-context-59")


@dataclass(frozen=True)
class ClassName:
    """One class: the name shown, its synonyms, and whether it is a thing (countable) or stuff."""

    name: str
    synonyms: tuple[str, ...] = ()
    thing: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class Vocabulary:
    """K classes in order; the index of a class is its label.

    `parse`, `from_file` and `builtin` refuse an empty list or name, a sentence as a name, and a class name that another class
    also has. (Two classes may have a synonym in common, as in data sets.) The constructor takes any classes, for lists that a
    data set prescribes.
    """

    classes: tuple[ClassName, ...]

    @classmethod
    def parse(cls, value: Classes) -> Vocabulary:
        """Parse a vocabulary.

        Args:
            value: a sequence with one class per item; a string: the name of a built-in list, a file name ending in ``.txt`` or
                ``.json``, or classes separated by ``;``; a path; a dict from name to synonyms; or a vocabulary.

        Raises:
            UsageError: if ``value`` is none of these, or its classes are refused (see `Vocabulary`).
        """
        if isinstance(value, Vocabulary):
            return value
        if isinstance(value, Path):
            return cls.from_file(value)
        if isinstance(value, str):
            if value in builtin_names():
                return cls.builtin(value)
            if value.endswith((".txt", ".json")):
                return cls.from_file(Path(value))
            return ClassList.of(entries_of_string(value)).vocabulary
        if isinstance(value, Mapping):
            return ClassList.of(entries_of_mapping(value)).vocabulary
        if isinstance(value, Sequence):
            return ClassList.of(entries_of_items(value)).vocabulary
        raise UsageError(f"classes given as {type(value).__name__}: give a list of names, or a string with ';' between them")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Vocabulary:
        """Load a built-in list by name, or else a file. Raises as `from_file` and `builtin`."""
        return ClassList.load(name_or_path).vocabulary

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary from a UTF-8 file, one class per line or JSON; ids and void entries are dropped.

        Raises:
            UsageError: if the file is missing, not text, without classes, or refused (see `Vocabulary`).
        """
        return ClassList.from_file(path).vocabulary

    @classmethod
    def builtin(cls, name: str) -> Vocabulary:
        """Return a built-in list, one of `builtin_names`.

        Raises:
            UsageError: if there is no list of that name.
        """
        if name not in builtin_names():
            close = get_close_matches(name.lower(), builtin_names(), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}" if close else f"choose {_listed()}"
            raise UsageError(f"no built-in vocabulary named {name[:60]!r}; {hint}, or give the path of a text file")
        return _builtin(name)

    def __len__(self) -> int:
        return len(self.classes)

    def _repr_html_(self) -> str:
        """The vocabulary in a notebook: a table."""
        rows = [
            (label, entry.name, ", ".join(entry.synonyms), "thing" if entry.thing else "stuff")
            for label, entry in enumerate(self.classes)
        ]
        return html_table(("label", "name", "synonyms", "kind"), rows, f"{len(self)} classes")

    @property
    def names(self) -> tuple[str, ...]:
        """K names shown, one per class."""
        return tuple(entry.name for entry in self.classes)

    @property
    def things(self) -> tuple[bool, ...]:
        """K flags: True for a thing, False for stuff."""
        return tuple(entry.thing for entry in self.classes)

    @property
    def class_names(self) -> tuple[tuple[str, ...], ...]:
        """Names of each class: the name shown, then its synonyms."""
        return tuple(entry.names for entry in self.classes)

    @property
    def all_names(self) -> tuple[str, ...]:
        """S names of all classes, synonyms included, class by class."""
        return tuple(name for entry in self.classes for name in entry.names)

    @property
    def class_index(self) -> tuple[int, ...]:
        """Label of the class of each of the S names, ascending."""
        return tuple(label for label, entry in enumerate(self.classes) for _ in entry.names)

    def label(self, name: str) -> int:
        """Return the label of the class shown as ``name``, ignoring case.

        Raises:
            UsageError: if no class has this name.
        """
        folded = [known.casefold() for known in self.names]
        if clean(name).casefold() not in folded:
            close = get_close_matches(name.casefold(), folded, n=1)
            hint = f"did you mean {self.names[folded.index(close[0])]!r}?" if close else "add it to the classes"
            raise UsageError(f"no class is named {name!r}; {hint}")
        return folded.index(clean(name).casefold())

    def select(self, labels: Sequence[int]) -> Vocabulary:
        """Return the classes of ``labels``, in that order."""
        return Vocabulary(tuple(self.classes[label] for label in labels))

    def with_background(self, name: str) -> Vocabulary:
        """Append a background class, stuff called ``name``, unless a class of that name exists."""
        entry = _named(entry_of_item(name, "background"))
        if entry.name.casefold() in (known.casefold() for known in self.names):
            return self
        return Vocabulary((*self.classes, replace(entry, thing=False)))


Classes = Vocabulary | str | Path | Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class ClassList:
    """Classes of a list, and their values in label maps.

    Attributes:
        vocabulary: the K classes.
        ids: the id of each class: as stated, or else its label.
        void: ids of entries called ``void`` (`VOID`), whose pixels are ignored.
        numbered: whether the ids are stated.
    """

    vocabulary: Vocabulary
    ids: tuple[int, ...]
    void: frozenset[int] = frozenset()
    numbered: bool = False

    @classmethod
    def of(cls, entries: Sequence[ClassEntry], source: str = "", *, unique: bool = True) -> ClassList:
        """Build a list from entries.

        Args:
            entries: as returned by `lexiseg.text.class_lists`.
            source: the file, for messages.
            unique: refuse a class name that another class also has.

        Raises:
            UsageError: if there is no class, only some have an id, or two have an id or name in common.
        """
        prefix = f"{source}: " if source else ""
        numbered = [entry for entry in entries if entry.id is not None]
        if numbered and len(numbered) < len(entries):
            bare = next(entry for entry in entries if entry.id is None)
            raise UsageError(
                f"{prefix}{bare.position} ({bare.names[0]!r}) has no id while {numbered[0].position} has; write '7: dog' for"
                " every class or for none"
            )
        positions: dict[int | None, str] = {}
        for entry in numbered:
            if entry.id in positions:
                raise UsageError(
                    f"{prefix}id {entry.id} is in {positions[entry.id]} and {entry.position}; write all names of a class in"
                    " one entry, separated by commas"
                )
            positions[entry.id] = entry.position
        void = frozenset(entry.id for entry in entries if entry.id is not None and entry.names in VOID)
        classes = [entry for entry in entries if entry.id not in void]
        if not classes:
            raise UsageError(
                f"{source or 'the list of classes'} is empty: give at least one class, such as 'dog, puppy; grass; sky'"
            )
        ids = tuple(label if entry.id is None else entry.id for label, entry in enumerate(classes))
        if max(ids) >= LARGEST_ID:
            position = classes[ids.index(max(ids))].position
            raise UsageError(f"{prefix}{position} has the id {max(ids)}; {LARGEST_ID} is void, ids of classes are smaller")
        if unique:
            _refuse_shared_names(classes, prefix)
        return cls(Vocabulary(tuple(_named(entry) for entry in classes)), ids, void, bool(numbered))

    @classmethod
    def from_file(cls, path: str | Path, *, unique: bool = True) -> ClassList:
        """Read the list in a file, see `lexiseg.text.class_lists.read_entries`; ``unique`` as in `of`.

        Raises:
            UsageError: if the file is missing or cannot be read, or as in `read_entries` and `of`.
        """
        if not path_exists(Path(path)):
            raise UsageError(f"vocabulary file {path} does not exist; the built-in lists are {_listed()}")
        return cls.of(read_entries(path), f"vocabulary file {path}", unique=unique)

    @classmethod
    def load(cls, name_or_path: str | Path, *, unique: bool = True) -> ClassList:
        """Load a built-in list by name, or else a file; ``unique`` as in `of`.

        Raises:
            UsageError: as `from_file` and `Vocabulary.builtin`.
        """
        name, path = str(name_or_path), Path(name_or_path)
        if name not in builtin_names() and (path_exists(path) or path.suffix or len(path.parts) > 1):
            return cls.from_file(path, unique=unique)
        vocabulary = Vocabulary.builtin(name)
        return cls(vocabulary, tuple(range(len(vocabulary))))


@lru_cache(maxsize=1)
def builtin_names() -> tuple[str, ...]:
    """Return the names of the built-in lists, sorted."""
    return tuple(sorted(entry.name.removesuffix(".txt") for entry in _folder().iterdir() if entry.name.endswith(".txt")))


@cache
def _builtin(name: str) -> Vocabulary:
    text = (_folder() / f"{name}.txt").read_text(encoding="utf-8")
    return ClassList.of(entries_of_lines(text, name), name).vocabulary


def _folder() -> Traversable:
    return files("lexiseg") / "assets" / "vocabularies"


def _listed() -> str:
    return ", ".join(name for name in builtin_names() if not name.startswith("mess-")) + ", or one of mess-*"


@lru_cache(maxsize=1)
def _stuff() -> frozenset[str]:
    """Return the names, in lower case, that more of the `VOTERS` have as stuff than as a thing."""
    votes: Counter[str] = Counter()
    for name in VOTERS:
        for entry in _builtin(name).classes:
            votes.update({known.casefold(): -1 if entry.thing else 1 for known in entry.names})
    return frozenset(name for name, vote in votes.items() if vote > 0)


def _named(entry: ClassEntry) -> ClassName:
    """Return the class of an entry, with its kind decided."""
    name, *synonyms = entry.names
    return ClassName(name, tuple(synonyms), name.casefold() not in _stuff() if entry.thing is None else entry.thing)


def _refuse_shared_names(entries: Sequence[ClassEntry], prefix: str) -> None:
    """Raise UsageError if another class also has the name of a class."""
    first: dict[str, str] = {}
    for entry in entries:
        name = entry.names[0]
        if name.casefold() in first:
            raise UsageError(f"{prefix}{name!r} names {first[name.casefold()]} and {entry.position}; remove one of them")
        first[name.casefold()] = entry.position
    for entry in entries:
        for synonym in entry.names[1:]:
            other = first.get(synonym.casefold(), entry.position)
            if other != entry.position:
                raise UsageError(
                    f"{prefix}{synonym!r} is {other} and a synonym in {entry.position} ({entry.names[0]!r}); remove one of them"
                )
