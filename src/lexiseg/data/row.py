"""What the catalogue says of a data set: what must lie where, how to get it, and how to open it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lexiseg.data.dataset import Dataset


@dataclass(frozen=True)
class Row:
    """One data set and split, as `lexiseg data list` shows it.

    Attributes:
        name: what the user types: ``ade20k-150``, ``mess-floodnet``.
        title: its name in words, with the split.
        tasks: what there is a truth for.
        needs: paths or globs below the user's root that must exist before it can be opened (after preparation, if any).
        get: how a newcomer gets it: where to ask, which archives, where they are unpacked.
        open: from the user's root to the data set. Raises DataError if files are missing or damaged.
        raw: paths or globs below the root that ``prepare`` starts from; empty if nothing is to be prepared.
        prepare: turns the download into what ``open`` reads, below the same root; resumable; shows progress.
        images: how many pictures the split has when complete.
        training: whether models are trained on it.
        group: of a collection with scores of its own per group (MESS: the domain), else empty.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    needs: tuple[str, ...]
    get: str
    open: Callable[[Path], Dataset]
    raw: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    images: int = 0
    training: bool = False
    group: str = ""
