"""Catalogue entry of a data set: the files it needs, how to get them, and how to open it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lexiseg.data.dataset import Dataset


@dataclass(frozen=True)
class Row:
    """One data set and split, as `lexiseg data list` shows it.

    Attributes:
        name: its name on the command line: ``ade20k-150``, ``mess-floodnet``.
        title: description, with the split.
        tasks: the tasks with a ground truth.
        needs: paths or globs below the user's root that must exist to open it (after preparation, if any).
        get: instructions to get it: the site, the archives, and where to unpack them.
        open: opens the data set below the user's root. Raises DataError if files are missing or damaged.
        raw: paths or globs below the root that ``prepare`` reads; empty if it needs no preparation.
        prepare: converts the download to what ``open`` reads, below the same root; resumable; shows progress.
        images: number of pictures in the complete split.
        training: whether models are trained on it.
        group: its group in a collection with a score per group (MESS: the domain), else empty.
        part_of: the set of which it is one of several parts, whose mean counts as one (PAXRay in MESS), else empty.
        for_task: paths or globs that one task needs beyond ``needs``; if they are missing, ``open`` omits the task.
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
    part_of: str = ""
    for_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def missing(root: Path, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the paths or globs that match nothing below ``root``; empty folders do not count."""
    return tuple(pattern for pattern in patterns if not any(map(_filled, root.glob(pattern))))


def _filled(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
