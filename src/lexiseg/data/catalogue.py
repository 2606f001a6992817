"""All data sets lexiseg knows by name, and what of them lies on this machine.

A data set is added by a row in a module of `lexiseg.data.sets`, and by that module's name in `_FAMILIES`.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from lexiseg.data.dataset import Dataset
from lexiseg.data.own import open_own
from lexiseg.data.row import Row, missing
from lexiseg.data.sets import (
    ade20k,
    ade20k_847,
    bdd100k,
    camvid,
    cityscapes,
    coco,
    lvis,
    mapillary,
    mess,
    pascal,
    refcoco,
    world,
)
from lexiseg.errors import DataError, RunError, UsageError

ROOT_VARIABLE, DEFAULT_ROOT = "DETECTRON2_DATASETS", "datasets"

_FAMILIES = (coco, ade20k, ade20k_847, cityscapes, mapillary, bdd100k, pascal, lvis, refcoco, camvid, mess, world)


@dataclass(frozen=True)
class Part:
    """A path or glob of a row, and how many files fit it (of a folder: lie below it); ``task`` if only one needs it."""

    pattern: str
    files: int
    task: str = ""


@dataclass(frozen=True)
class Report:
    """What of a data set is there.

    Attributes:
        row: the data set.
        root: where it was looked for.
        parts: each path or glob it is read from.
        tasks: what can be measured now.
        pictures: how many were found with their truths; 0 if it could not be opened.
        problem: what is wrong although all parts are there, or empty.
        step: what is to be done: "download" as ``row.get`` says, "prepare", "repair" what ``problem`` names; else "ready".
        command: what to run for that step, or after it.
    """

    row: Row
    root: Path
    parts: tuple[Part, ...]
    tasks: tuple[str, ...]
    pictures: int
    problem: str
    step: Literal["download", "prepare", "repair", "ready"]
    command: str


def rows() -> tuple[Row, ...]:
    """All data sets and splits."""
    return tuple(row for family in _FAMILIES for row in family.ROWS)


def row_named(name: str) -> Row:
    """The data set of a name.

    Raises:
        UsageError: if there is none; it says what comes close.
    """
    known = {row.name: row for row in rows()}
    if name not in known:
        close = get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(f"no data set named {name!r}; {hint}`lexiseg data list` shows all")
    return known[name]


def root_folder(root: str | Path | None = None) -> Path:
    """The folder of the data sets: as given, or else $DETECTRON2_DATASETS, or else ./datasets."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def open_dataset(
    name_or_path: str | Path,
    root: str | Path | None = None,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    vocabulary: str | Path | None = None,
) -> Dataset:
    """A data set of the catalogue, or else the user's own at a path.

    Args:
        name_or_path: a row's name (``./name`` is a path), or a path for `lexiseg.data.own.open_own`.
        root: of the catalogue's data sets, see `root_folder`.
        images, labels, vocabulary: of the user's own, see there.

    Raises:
        DataError: if files are missing or damaged.
        UsageError: if there is neither a data set of that name nor anything at that path.
    """
    name = str(name_or_path)
    if name not in {row.name for row in rows()} and Path(name_or_path).exists():
        return open_own(name_or_path, images=images, labels=labels, vocabulary=vocabulary)
    row, folder = row_named(name), root_folder(root)
    if any(given is not None for given in (images, labels, vocabulary)):
        raise UsageError(f"{name} knows its folders and classes; leave images, labels and vocabulary away")
    if absent := missing(folder, row.needs):
        raise DataError(f"{folder}: {absent[0]} of {name} is not there; see `{_command('check', row, folder)}`")
    return row.open(folder)


def check(row: Row, root: str | Path | None = None) -> Report:
    """What of a data set is there, and what to do next; opens it if it can be opened, writes nothing."""
    folder = root_folder(root)
    wanted = [
        *((pattern, "") for pattern in row.needs),
        *((need, task) for task in row.for_task for need in row.for_task[task]),
    ]
    parts = tuple(Part(pattern, _files(folder, pattern), task) for pattern, task in wanted)
    tasks, pictures, problem = _opened(row, folder) if all(part.files for part in parts if not part.task) else ((), 0, "")
    step: Literal["download", "prepare", "repair", "ready"]
    if all(part.files for part in parts):
        step = "repair" if problem else "ready"
    else:
        step = "download" if row.prepare is None or missing(folder, row.raw) else "prepare"
    if step == "ready":
        command = f"lexiseg evaluate --data {row.name} {_root_option(folder)} --output {row.name}"
    else:
        command = _command("prepare" if step == "prepare" else "check", row, folder)
    return Report(row, folder, parts, tasks, pictures, problem, step, command)


def prepare(row: Row, root: str | Path | None = None) -> None:
    """Turn the download of a data set into what is read; goes on where it was interrupted.

    Raises:
        UsageError: if it needs no preparation.
        DataError: if the download is not there, or files of it are damaged.
        OutputError: if a file cannot be written.
    """
    folder = root_folder(root)
    if row.prepare is None:
        raise UsageError(f"{row.name} is read as it is downloaded; see `{_command('check', row, folder)}`")
    if absent := missing(folder, row.raw):
        raise DataError(f"{folder}: {absent[0]} of {row.name}'s download is not there; see `{_command('check', row, folder)}`")
    row.prepare(folder)


def _opened(row: Row, root: Path) -> tuple[tuple[str, ...], int, str]:
    """The tasks and the number of pictures of a data set, and what is wrong with it."""
    try:
        dataset = row.open(root)
    except RunError as error:
        return (), 0, str(error)
    pictures = len(dataset.samples)
    few = f"only {pictures} of the split's {row.images} pictures are there; fetch the rest" if pictures < row.images else ""
    return dataset.tasks, pictures, few


def _files(root: Path, pattern: str) -> int:
    """How many files a path or glob names, those below it if it names folders."""
    found = 0
    for path in root.glob(pattern):
        inside = path.rglob("*") if path.is_dir() else [path]
        found += sum(file.is_file() and not file.name.startswith(".") for file in inside)
    return found


def _command(action: str, row: Row, root: Path) -> str:
    return f"lexiseg data {action} {row.name} {_root_option(root)}"


def _root_option(root: Path) -> str:
    return f"--root {shlex.quote(str(root))}"
