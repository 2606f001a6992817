"""Catalogue of the data sets lexiseg knows by name, and which of their files are present.

To add a data set, add a row to a module of `lexiseg.data.sets`, and that module to `_FAMILIES`.
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
from lexiseg.ops.files import path_exists

ROOT_VARIABLE, DEFAULT_ROOT = "DETECTRON2_DATASETS", "datasets"

_FAMILIES = (coco, ade20k, ade20k_847, cityscapes, mapillary, bdd100k, pascal, lvis, refcoco, camvid, mess, world)


@dataclass(frozen=True)
class Part:
    """A path or glob of a row, the number of files it matches (folders recursively), and the ``task`` if only one needs it."""

    pattern: str
    files: int
    task: str = ""


@dataclass(frozen=True)
class Report:
    """State of a data set on this machine.

    Attributes:
        row: the data set.
        root: the folder of the data sets.
        parts: each path or glob it is read from.
        tasks: the tasks that can be measured now.
        pictures: the number of pictures with truth; 0 if it could not be opened.
        problem: the fault if all parts are present but unusable, or empty.
        step: the next step: "download" (see ``row.get``), "prepare", "repair" (see ``problem``), or "ready".
        command: the command for that step, or after it.
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
    """Return all data sets and splits."""
    return tuple(row for family in _FAMILIES for row in family.ROWS)


def row_named(name: str) -> Row:
    """Return the data set called ``name``.

    Raises:
        UsageError: if there is none; suggests similar names.
    """
    known = {row.name: row for row in rows()}
    if name not in known:
        close = get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(f"no data set named {name!r}; {hint}`lexiseg data list` shows all")
    return known[name]


def root_folder(root: str | Path | None = None) -> Path:
    """Return the folder of the data sets: as given, or else $DETECTRON2_DATASETS, or else ./datasets."""
    return Path(root or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def open_dataset(
    name_or_path: str | Path,
    root: str | Path | None = None,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    vocabulary: str | Path | None = None,
) -> Dataset:
    """Open a data set of the catalogue, or else the user's own at a path.

    Args:
        name_or_path: a row's name (``./name`` is a path), or a path for `lexiseg.data.own.open_own`.
        root: the folder of the catalogue's data sets, see `root_folder`.
        images, labels, vocabulary: for the user's own data, see `lexiseg.data.own.open_own`.

    Raises:
        DataError: if files are missing or damaged.
        UsageError: if there is neither a data set of that name nor that path.
    """
    name = str(name_or_path)
    if name not in {row.name for row in rows()} and path_exists(Path(name_or_path)):
        return open_own(name_or_path, images=images, labels=labels, vocabulary=vocabulary)
    row, folder = row_named(name), root_folder(root)
    if any(given is not None for given in (images, labels, vocabulary)):
        raise UsageError(f"{name} has fixed folders and classes; omit images, labels and vocabulary")
    if lacking := lacks(name, root):
        raise DataError(lacking)
    return row.open(folder)


def lacks(name_or_path: str | Path, root: str | Path | None = None) -> str:
    """Say what a data set of the catalogue needs that is not on this machine; empty for nothing, and for the user's own."""
    row = next((row for row in rows() if row.name == str(name_or_path)), None)
    folder = root_folder(root)
    if row is None or not (absent := missing(folder, row.needs)):
        return ""
    return f"{folder}: {absent[0]} of {row.name} is missing; see `{_command('check', row, folder)}`"


def check(row: Row, root: str | Path | None = None) -> Report:
    """Report which files of a data set are present, and the next step; opens it if possible, writes nothing."""
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
    """Convert the download of a data set to the form that is read; resumes after an interruption.

    Raises:
        UsageError: if it needs no preparation.
        DataError: if the download is missing, or files of it are damaged.
        OutputError: if a file cannot be written.
    """
    folder = root_folder(root)
    if row.prepare is None:
        raise UsageError(f"{row.name} needs no preparation; see `{_command('check', row, folder)}`")
    if absent := missing(folder, row.raw):
        raise DataError(f"{folder}: {absent[0]} of {row.name}'s download is missing; see `{_command('check', row, folder)}`")
    row.prepare(folder)


def _opened(row: Row, root: Path) -> tuple[tuple[str, ...], int, str]:
    """Open a data set; return its tasks, its number of pictures, and its fault or an empty string."""
    try:
        dataset = row.open(root)
    except RunError as error:
        return (), 0, str(error)
    pictures = len(dataset.samples)
    few = f"only {pictures} of the split's {row.images} pictures are present; fetch the rest" if pictures < row.images else ""
    return dataset.tasks, pictures, few


def _files(root: Path, pattern: str) -> int:
    """Return the number of files that a path or glob matches, those below matching folders included."""
    count = 0
    for path in root.glob(pattern):
        inside = path.rglob("*") if path.is_dir() else [path]
        count += sum(file.is_file() and not file.name.startswith(".") for file in inside)
    return count


def _command(action: str, row: Row, root: Path) -> str:
    return f"lexiseg data {action} {row.name} {_root_option(root)}"


def _root_option(root: Path) -> str:
    return f"--root {shlex.quote(str(root))}"
