"""Which classes of an evaluation a model was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def seen_classes(names: Sequence[Sequence[str]], training: Iterable[Sequence[str]]) -> NDArray[np.bool_]:
    """Which classes are seen: those that share any name, synonyms counted, with any class of the training.

    The rule of FC-CLIP and FrozenSeg, whose names are compared letter by letter. [decided] Upper and lower case, and spaces
    around a name, make no difference here, which changes nothing on the official lists; and all classes of the training count,
    while on instance data sets the official program looks at its things only.

    Args:
        names: the names of each of K classes.
        training: the names of each class of the training vocabulary.

    Returns:
        [K], True where seen.
    """
    known = {_plain(name) for synonyms in training for name in synonyms}
    return np.array([any(_plain(name) in known for name in synonyms) for synonyms in names], bool)


def seen_groups(names: Sequence[Sequence[str]], training: Iterable[Sequence[str]]) -> dict[str, frozenset[int]]:
    """The labels of the "seen" and of the "unseen" classes, as groups of a metric."""
    seen = seen_classes(names, training)
    return {"seen": frozenset(np.flatnonzero(seen).tolist()), "unseen": frozenset(np.flatnonzero(~seen).tolist())}


def _plain(name: str) -> str:
    return name.strip().casefold()
