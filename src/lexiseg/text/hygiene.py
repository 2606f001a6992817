"""Check a vocabulary for duplicate names, near-duplicates, and classes that contain others.

SAM-MI ("A Mask-Injected Framework for Enhancing Open-Vocabulary Semantic Segmentation with SAM", end of section 4 and
limitations in section 5) names the problem: classes of benchmarks are not independent. ADE20K's 847 have "animal" beside "dog",
"cat" and "bird", so that a right answer counts as wrong. `check` reports such pairs; `forgiving` returns the labels that a
lenient score accepts.

Hypernyms are declared in lists, one per line::

    animal > bird, cat, dog
    bird > duck, goose          # so a duck is an animal too
    dog !> hot dog              # denied: a hot dog is not a dog

A declaration applies to the names shown: a class "deciduous tree, tree" is not above "palm tree" because of its synonym.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from unicodedata import normalize

from lexiseg.errors import UsageError
from lexiseg.text.class_lists import read_text
from lexiseg.text.vocabulary import ClassList, Vocabulary

IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "glasses": "glasses",  # spectacles, not several glasses
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "scarves": "scarf",
    "shelves": "shelf",
    "teeth": "tooth",
    "wolves": "wolf",
    "women": "woman",
}


@dataclass(frozen=True)
class Hypernyms:
    """Relation of hypernyms to hyponyms.

    Attributes:
        declared: (hypernym, hyponym) pairs of names in `plain` form; the transitive closure is implied.
        denied: pairs that do not hold, even if implied by declarations or suggested by the words.

    Raises:
        UsageError: if a name is its own hypernym, directly or transitively.
    """

    declared: frozenset[tuple[str, str]] = frozenset()
    denied: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        for name in sorted(self._parents):
            if name in self.above(name):
                raise UsageError(f"hypernyms: {name!r} is declared above itself, directly or through others; remove a line")

    @classmethod
    def builtin(cls) -> Hypernyms:
        """Return the declarations shipped with lexiseg, for the built-in vocabularies and data sets."""
        return cls.parse((files("lexiseg") / "assets" / "hypernyms.txt").read_text(encoding="utf-8"), "hypernyms.txt")

    @classmethod
    def from_file(cls, path: str | Path) -> Hypernyms:
        """Read declarations from a UTF-8 text file, one hypernym per line.

        Raises:
            UsageError: if the file cannot be read, or a line is not ``name > name, name`` or ``name !> name, name``.
        """
        text = read_text(path, "hypernym file")
        return cls.parse(text, f"hypernym file {path}")

    @classmethod
    def parse(cls, text: str, source: str = "hypernyms") -> Hypernyms:
        """Parse the declarations in ``text``; ``source`` names its origin in errors. Raises as `from_file`."""
        pairs: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
        for number, line in enumerate(text.splitlines(), start=1):
            statement = line.partition("#")[0].strip()
            if not statement:
                continue
            upper, bar, lowers = statement.partition(">")
            holds = not upper.endswith("!")
            names = [plain(name) for name in (upper.removesuffix("!"), *lowers.split(","))]
            if not bar or not all(names):
                raise UsageError(f"{source}, line {number} is {statement!r}: write 'animal > cat, dog' or 'dog !> hot dog'")
            pairs[holds].update((names[0], name) for name in names[1:])
        return cls(frozenset(pairs[True]), frozenset(pairs[False]))

    def joined(self, other: Hypernyms) -> Hypernyms:
        """Return the union; where they contradict each other, ``other`` prevails."""
        return Hypernyms((self.declared - other.denied) | other.declared, (self.denied - other.declared) | other.denied)

    def above(self, name: str) -> frozenset[str]:
        """Return all direct and transitive hypernyms of a name; all in `plain` form."""
        uppers: set[str] = set()
        waiting = [name]
        while waiting:
            fresh = self._parents.get(waiting.pop(), set()) - uppers
            uppers |= fresh
            waiting += fresh
        return frozenset(upper for upper in uppers if (upper, name) not in self.denied)

    @cached_property
    def _parents(self) -> dict[str, set[str]]:
        parents: dict[str, set[str]] = defaultdict(set)
        for upper, lower in self.declared:
            parents[lower].add(upper)
        return dict(parents)


@dataclass(frozen=True)
class SharedName:
    """A name that several classes have."""

    name: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class NearNames:
    """Names of two classes that differ only in plural, hyphens or spaces."""

    names: tuple[str, str]
    labels: tuple[int, int]


@dataclass(frozen=True)
class HypernymPair:
    """Two classes of which one contains the other."""

    hypernym: int
    hyponym: int


@dataclass(frozen=True)
class Report:
    """Result of `check`; all lists are in label order.

    Attributes:
        duplicates: names of classes that another class also has, as name or synonym.
        shared: synonyms that several classes have.
        near: names that differ only in plural, hyphens or spaces; case is ignored.
        hypernyms: pairs declared or implied by declarations.
        candidates: pairs neither declared nor denied that the words suggest: "pool table" beside "table".
    """

    duplicates: tuple[SharedName, ...]
    shared: tuple[SharedName, ...]
    near: tuple[NearNames, ...]
    hypernyms: tuple[HypernymPair, ...]
    candidates: tuple[HypernymPair, ...]


def check(vocabulary: Vocabulary, hypernyms: Hypernyms) -> Report:
    """Check a vocabulary for duplicates, near-duplicates and hypernyms.

    Args:
        vocabulary: any, also one that `Vocabulary.parse` would refuse for a name in two classes (see `load`).
        hypernyms: the declarations: `Hypernyms.builtin`, optionally joined with the user's own.
    """
    owners: dict[str, list[int]] = defaultdict(list)
    spelled: dict[str, str] = {}
    for name, label in zip(vocabulary.all_names, vocabulary.class_index, strict=True):
        owners[name.casefold()].append(label)
        spelled.setdefault(name.casefold(), name)
    shown = {name.casefold() for name in vocabulary.names}
    twice = {name: SharedName(spelled[name], tuple(labels)) for name, labels in owners.items() if len(labels) > 1}

    declared = tuple(_declared(vocabulary, hypernyms))
    return Report(
        duplicates=tuple(entry for name, entry in twice.items() if name in shown),
        shared=tuple(entry for name, entry in twice.items() if name not in shown),
        near=tuple(_near(vocabulary)),
        hypernyms=declared,
        candidates=tuple(pair for pair in _suggested(vocabulary, hypernyms) if pair not in declared),
    )


def forgiving(vocabulary: Vocabulary, hypernyms: Hypernyms) -> tuple[frozenset[int], ...]:
    """Return, for each truth label, the predicted labels that a lenient score accepts.

    These are the label itself and its declared hypernyms: "animal" on a dog is vague but true. Hyponyms are not accepted: "dog"
    on an animal may be a cat. Candidates are not accepted either. Since the vaguest answer always passes, report such a score
    beside the official one, never in its place.

    Args:
        vocabulary: K classes.
        hypernyms: the declarations.

    Returns:
        K sets of labels.
    """
    allowed = [{label} for label in range(len(vocabulary))]
    for pair in _declared(vocabulary, hypernyms):
        allowed[pair.hyponym].add(pair.hypernym)
    return tuple(frozenset(labels) for labels in allowed)


def load(name_or_path: str | Path) -> Vocabulary:
    """Load a vocabulary as `Vocabulary.load` does, but allow duplicate names, for `check` to report.

    Raises:
        UsageError: if there is no such list or file, or a line of the file is not a class.
    """
    return ClassList.load(name_or_path, unique=False).vocabulary


def plain(name: str) -> str:
    """Normalise a name to lower case with single spaces: "T-shirt" and "t_shirt" become "t shirt"."""
    return " ".join(normalize("NFC", name).casefold().replace("-", " ").replace("_", " ").split())


def singulars(name: str) -> frozenset[str]:
    """Return the name in `plain` form and its possible singulars: "knives" and "knife", "boxes" and "box" (and "boxe")."""
    whole = plain(name)
    start, last = whole[: whole.rfind(" ") + 1], whole[whole.rfind(" ") + 1 :]
    if last in IRREGULAR:
        return frozenset((whole, start + IRREGULAR[last]))
    words = {last}
    if last.endswith("s") and not last.endswith(("ss", "us", "is")) and len(last) > 3:
        words.add(last[:-1])
    if last.endswith(("ses", "xes", "zes", "ches", "shes")):
        words.add(last[:-2])
    if last.endswith("ies"):
        words.add(last[:-3] + "y")
    return frozenset(start + word for word in words)


def _near(vocabulary: Vocabulary) -> Iterator[NearNames]:
    """Yield pairs of names that are equal, or singular and plural, apart from spaces."""
    named = list(zip(vocabulary.all_names, vocabulary.class_index, strict=True))
    joined: dict[str, list[int]] = defaultdict(list)
    for position, (name, _) in enumerate(named):
        joined[_joined(plain(name))].append(position)
    pairs = {
        (min(position, other), max(position, other))
        for position, (name, _) in enumerate(named)
        for singular in singulars(name)
        for other in joined.get(_joined(singular), [])
    }
    for first, second in sorted(pairs):
        (name, label), (other_name, other_label) = named[first], named[second]
        if label != other_label and name.casefold() != other_name.casefold():
            yield NearNames((name, other_name), (label, other_label))


def _joined(name: str) -> str:
    return name.replace(" ", "")


def _by_name(vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Return the labels of the classes by shown name, as written and in singular."""
    labels: dict[str, list[int]] = defaultdict(list)
    for label, name in enumerate(vocabulary.names):
        for singular in singulars(name):
            labels[singular].append(label)
    return labels


def _declared(vocabulary: Vocabulary, hypernyms: Hypernyms) -> Iterable[HypernymPair]:
    by_name = _by_name(vocabulary)
    pairs = {
        (upper, label)
        for label, name in enumerate(vocabulary.names)
        for singular in singulars(name)
        for above in hypernyms.above(singular)
        for upper in by_name.get(above, [])
        if upper != label
    }
    return (HypernymPair(*pair) for pair in sorted(pairs))


def _suggested(vocabulary: Vocabulary, hypernyms: Hypernyms) -> Iterable[HypernymPair]:
    """Return pairs, not denied, where a name ends in the whole name of another class."""
    by_name = _by_name(vocabulary)
    pairs = set()
    for label, name in enumerate(vocabulary.names):
        words = plain(name).split()
        for start in range(1, len(words)):
            heads = singulars(" ".join(words[start:]))
            if not any((head, whole) in hypernyms.denied for head in heads for whole in singulars(name)):
                pairs |= {(upper, label) for head in heads for upper in by_name.get(head, []) if upper != label}
    return (HypernymPair(*pair) for pair in sorted(pairs))
