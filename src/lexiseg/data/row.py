"""What the catalogue says of a data set: what must lie where, how to get it, and how to open it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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
        for_task: paths or globs that one task needs beyond ``needs``; where they are missing, ``open`` leaves the task out.
        part_of: what it is one of several parts of, whose mean counts as one data set (PAXRay in MESS), else empty.
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
    part_of: str = ""
    for_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def missing(root: Path, patterns: Iterable[str]) -> tuple[str, ...]:
    """Those of the paths or globs that nothing below ``root`` fits; an empty folder fits none."""
    return tuple(pattern for pattern in patterns if not any(map(_filled, root.glob(pattern))))


def _filled(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
