"""Which classes of an evaluation a model was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def seen_classes(names: Sequence[Sequence[str]], training: Iterable[Sequence[str]]) -> NDArray[np.bool_]:
    """Return which classes are seen: those with any name or synonym in common with a training class.

    The rule of FC-CLIP and FrozenSeg, which compare names letter by letter. [decided] Here case and surrounding spaces are
    ignored, which changes nothing on the official lists; and all training classes count, where the official program takes
    only things on instance data sets.

    Args:
        names: the names of each of K classes.
        training: the names of each class of the training vocabulary.

    Returns:
        [K], True where seen.
    """
    known = {_plain(name) for synonyms in training for name in synonyms}
    return np.array([any(_plain(name) in known for name in synonyms) for synonyms in names], bool)


def seen_groups(names: Sequence[Sequence[str]], training: Iterable[Sequence[str]]) -> dict[str, frozenset[int]]:
    """Return the labels of the "seen" and "unseen" classes, as groups of a metric."""
    seen = seen_classes(names, training)
    return {"seen": frozenset(np.flatnonzero(seen).tolist()), "unseen": frozenset(np.flatnonzero(~seen).tolist())}


def _plain(name: str) -> str:
    return name.strip().casefold()
