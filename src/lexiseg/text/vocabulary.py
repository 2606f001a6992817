"""The classes to look for: their names, synonyms, and whether they are things or stuff.

One class is written ``dog, puppy`` or ``grass, lawn | stuff``: commas between synonyms, the first being the name shown;
``| thing`` or ``| stuff`` if it is to be said. Classes stand one a line in a file (blank lines and lines that begin with
``#`` do not count), between semicolons in a string, or one an item in a list.

Where nobody says, a name is stuff if more of the large built-in lists (`VOTERS`) have it as stuff than as a thing (grass,
sky, road); every other name is a thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from unicodedata import normalize

from lexiseg.errors import UsageError

WORDS, CHARACTERS = 60, 500  # more is no name: CLIP reads 75 tokens and drops the rest
KINDS = {"thing": True, "stuff": False}
# The lists that say what is stuff where nobody else does: those whose data sets mark it.
VOTERS = ("ade150", "cityscapes", "coco", "coco-stuff-171", "emoji", "pascal-context-59")


@dataclass(frozen=True)
class ClassName:
    """One class: the name shown, other words for it, and whether it can be counted."""

    name: str
    synonyms: tuple[str, ...] = ()
    thing: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class Vocabulary:
    """K classes in order; the position of a class is its label.

    `parse`, `from_file` and `builtin` refuse what cannot be meant: an empty list or name, a sentence for a name, and a
    class whose name is also in another class. (A synonym may be in two: data sets have it so, and both classes profit.)
    The constructor itself takes any classes, for lists that a data set prescribes.
    """

    classes: tuple[ClassName, ...]

    @classmethod
    def parse(cls, value: Vocabulary | str | Path | Sequence[str] | Mapping[str, str | Sequence[str]]) -> Vocabulary:
        """The vocabulary a user wrote.

        Args:
            value: a list with one class an item; a string with ``;`` between classes, or exactly the name of a built-in
                list, or ending in ``.txt`` and so a file; a path; a dict from name to synonyms; or a vocabulary.

        Raises:
            UsageError: if ``value`` is none of these or is refused as said above.
        """
        if isinstance(value, Vocabulary):
            return value
        if isinstance(value, Path):
            return cls.from_file(value)
        if isinstance(value, str):
            if value in builtin_names():
                return cls.builtin(value)
            if value.endswith(".txt"):
                return cls.from_file(Path(value))
            return cls(_checked(_classes(value)))
        if isinstance(value, Mapping):
            return cls(_checked(_class_of(*item, f"class {number}") for number, item in enumerate(value.items(), start=1)))
        if isinstance(value, Sequence):
            return cls(_checked(_item(text, f"class {number}") for number, text in enumerate(value, start=1)))
        raise UsageError(f"classes given as {type(value).__name__}: give a list of names, or a string with ';' between them")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Vocabulary:
        """A built-in list by its name, or else the file at a path."""
        if str(name_or_path) in builtin_names():
            return cls.builtin(str(name_or_path))
        path = Path(name_or_path)
        if path.exists() or path.suffix or len(path.parts) > 1:
            return cls.from_file(path)
        return cls.builtin(str(name_or_path))

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """The vocabulary in a UTF-8 text file, one class a line.

        Raises:
            UsageError: if the file is missing, not text, without classes, or refused as said above.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise UsageError(f"vocabulary file {path} does not exist; the built-in lists are {_listed()}") from None
        except IsADirectoryError:
            raise UsageError(f"vocabulary {path} is a folder; give a text file with one class a line") from None
        except UnicodeDecodeError:
            raise UsageError(f"vocabulary file {path} is not UTF-8 text; save it as UTF-8, one class a line") from None
        except OSError as error:
            raise UsageError(f"vocabulary file {path} cannot be read ({error.strerror}); check its permissions") from None
        if "\0" in text:
            raise UsageError(f"vocabulary file {path} is not text; give a text file with one class a line")
        return cls(_checked(_lines(text, str(path)), f"vocabulary file {path}"))

    @classmethod
    def builtin(cls, name: str) -> Vocabulary:
        """A list that comes with lexiseg; see `builtin_names`.

        Raises:
            UsageError: if there is no list of that name.
        """
        if name not in builtin_names():
            close = get_close_matches(name.lower(), builtin_names(), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}" if close else f"choose {_listed()}"
            raise UsageError(f"no built-in vocabulary named {name!r}; {hint}, or give the path of a text file")
        return _builtin(name)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The K names shown."""
        return tuple(entry.name for entry in self.classes)

    @property
    def things(self) -> tuple[bool, ...]:
        """For each of the K classes: True for a thing, False for stuff."""
        return tuple(entry.thing for entry in self.classes)

    @property
    def class_names(self) -> tuple[tuple[str, ...], ...]:
        """The names of each class, its synonyms after the first."""
        return tuple(entry.names for entry in self.classes)

    @property
    def all_names(self) -> tuple[str, ...]:
        """The S names of all classes, synonyms counted, class by class."""
        return tuple(name for entry in self.classes for name in entry.names)

    @property
    def owner(self) -> tuple[int, ...]:
        """The label of the class each of the S names belongs to, ascending."""
        return tuple(label for label, entry in enumerate(self.classes) for _ in entry.names)

    def label(self, name: str) -> int:
        """The label of the class of that name, upper and lower case alike.

        Raises:
            UsageError: if no class has this name.
        """
        folded = [known.casefold() for known in self.names]
        if _clean(name).casefold() not in folded:
            close = get_close_matches(name.casefold(), folded, n=1)
            hint = f"did you mean {self.names[folded.index(close[0])]!r}?" if close else "add it to the classes"
            raise UsageError(f"no class is named {name!r}; {hint}")
        return folded.index(_clean(name).casefold())

    def select(self, labels: Sequence[int]) -> Vocabulary:
        """Some of the classes, in the order given."""
        return Vocabulary(tuple(self.classes[label] for label in labels))

    def with_background(self, name: str) -> Vocabulary:
        """The same with a class for all the rest: stuff ``name``, added last unless a class of that name is there."""
        entry = _item(name, "background")
        if entry.name.casefold() in (known.casefold() for known in self.names):
            return self
        return Vocabulary((*self.classes, replace(entry, thing=False)))


@lru_cache(maxsize=1)
def builtin_names() -> tuple[str, ...]:
    """The names of the lists that come with lexiseg, sorted."""
    return tuple(sorted(entry.name.removesuffix(".txt") for entry in _folder().iterdir() if entry.name.endswith(".txt")))


@cache
def _builtin(name: str) -> Vocabulary:
    return Vocabulary(_checked(_lines((_folder() / f"{name}.txt").read_text(encoding="utf-8"), name)))


def _folder() -> Traversable:
    return files("lexiseg") / "assets" / "vocabularies"


def _listed() -> str:
    return ", ".join(name for name in builtin_names() if not name.startswith("mess-")) + ", or one of mess-*"


@lru_cache(maxsize=1)
def _stuff() -> frozenset[str]:
    """Every name that more of the `VOTERS` have as stuff than as a thing, in lower case."""
    votes: Counter[str] = Counter()
    for name in VOTERS:
        for entry in _builtin(name).classes:
            votes.update({known.casefold(): -1 if entry.thing else 1 for known in entry.names})
    return frozenset(name for name, vote in votes.items() if vote > 0)


def _clean(name: str) -> str:
    return normalize("NFC", " ".join(name.split()))


def _lines(text: str, source: str) -> Iterable[ClassName]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield from _classes(line, f"{source}, line {number}")


def _classes(text: str, place: str | None = None) -> Iterable[ClassName]:
    """The classes between semicolons; one semicolon after the last class is fine, an empty class before it is not."""
    parts = text.split(";")
    while parts and not parts[-1].strip():
        parts.pop()
    for number, part in enumerate(parts, start=1):
        yield _item(part, place or f"class {number}")


def _item(text: object, place: str) -> ClassName:
    """One class as written: ``name, synonym, … | kind``; ``place`` says in errors where it stands."""
    if not isinstance(text, str):
        raise UsageError(f"{place} is {text!r}: a class is written as a string such as 'dog, puppy'")
    if ";" in text:
        raise UsageError(f"{place} is {_short(text)}: ';' separates classes; give each class an item of its own")
    names, bar, kind = text.partition("|")
    if bar and kind.strip() not in KINDS:
        raise UsageError(f"{place} ends in {_short('|' + kind)}: after '|' write thing or stuff")
    name, *synonyms = names.split(",")
    return _class_of(name, synonyms, place, KINDS[kind.strip()] if bar else None)


def _class_of(name: object, synonyms: object, place: str, thing: bool | None = None) -> ClassName:
    """A class with clean names, each once, and its kind decided; ``synonyms`` is a sequence or a comma list."""
    listed = synonyms.split(",") if isinstance(synonyms, str) else synonyms
    if not isinstance(listed, Sequence) or not all(isinstance(known, str) for known in (name, *listed)):
        raise UsageError(
            f"{place} is {_short(repr({name: synonyms}))}: names and synonyms are strings, as in {{'dog': ['puppy']}}"
        )
    unique: dict[str, str] = {}
    for known in (_clean(str(known)) for known in (name, *listed)):
        if not known:
            raise UsageError(f"{place} has an empty name; write a name there or take away the extra separator")
        if len(known) > CHARACTERS or len(known.split()) > WORDS:
            length = f"{len(known.split())} words, {len(known)} characters"
            raise UsageError(f"{place} is {_short(known)} of {length}: is this a sentence? Give a name of a few words")
        unique.setdefault(known.casefold(), known)
    shown, *others = unique.values()
    return ClassName(shown, tuple(others), shown.casefold() not in _stuff() if thing is None else thing)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _checked(classes: Iterable[ClassName], source: str = "the list of classes") -> tuple[ClassName, ...]:
    """The classes, if there is one and no class's name is in another class too."""
    kept = tuple(classes)
    if not kept:
        raise UsageError(f"{source} is empty: give at least one class, such as 'dog, puppy; grass; sky'")
    first: dict[str, int] = {}
    for number, entry in enumerate(kept, start=1):
        if entry.name.casefold() in first:
            raise UsageError(f"{entry.name!r} names classes {first[entry.name.casefold()]} and {number}; take one away")
        first[entry.name.casefold()] = number
    for number, entry in enumerate(kept, start=1):
        for synonym in entry.synonyms:
            if (other := first.get(synonym.casefold(), number)) != number:
                raise UsageError(
                    f"{synonym!r} is class {other} and a synonym in class {number} ({entry.name!r}); take one away"
                )
    return kept
