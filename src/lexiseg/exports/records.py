"""Results as their JSON files hold them: regions as run lengths, with the classes they were chosen from.

Files of a whole folder are written from the records in it: a second call adds its results to them, and what an interrupted
call has finished is not lost.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError, UsageError
from lexiseg.ops.files import find_files
from lexiseg.ops.pictures import MAX_SIDE, MAX_TILED_PIXELS
from lexiseg.ops.rle import Counts, check_counts, compress, decode_counts, decompress, encode_mask
from lexiseg.structures import Segment, Size, Task

ENDING = ".json"
_KEYS = {"source", "task", "height", "width", "classes", "things", "segments"}


@dataclass(frozen=True)
class ResultRecord:
    """Result of one picture.

    Attributes:
        stem: prefix of the names of its files, with "/" between folders.
        source: the file of the picture, as it was named; "-" for standard input, None for a picture without a file.
        task: "panoptic", "semantic" or "instance".
        size: (height, width) in pixels.
        names: the K class names.
        things: K flags, True for things.
        segments: the N regions.
        counts: N masks as run lengths, see `lexiseg.ops.rle`.
    """

    stem: str
    source: str | None
    task: Task
    size: Size
    names: tuple[str, ...]
    things: tuple[bool, ...]
    segments: tuple[Segment, ...]
    counts: tuple[Counts, ...]

    @property
    def has_file(self) -> bool:
        """Whether the picture has a file of its own."""
        return self.source not in (None, "-")

    def masks(self) -> Iterator[NDArray[np.bool_]]:
        """Decode the masks [H, W], one at a time."""
        return (decode_counts(counts, self.size).numpy() for counts in self.counts)


def encoded(
    stem: str,
    source: str | None,
    task: Task,
    size: Size,
    names: tuple[str, ...],
    things: tuple[bool, ...],
    segments: tuple[Segment, ...],
    masks: Iterable[NDArray[np.bool_]],
) -> ResultRecord:
    """Return the record of a result with masks [H, W], one at a time."""
    return ResultRecord(stem, source, task, size, names, things, segments, tuple(map(encode_mask, masks)))


def document(record: ResultRecord, void: float) -> dict[str, Any]:
    """Return the content of a record's JSON file.

    Args:
        record: the result.
        void: fraction of the pixels in no region.
    """
    plain = summary(record.source, record.task, record.size, void, record.segments)
    masks = ({"size": list(record.size), "counts": compress(counts)} for counts in record.counts)
    segments = [{**segment, "segmentation": mask} for segment, mask in zip(plain["segments"], masks, strict=True)]
    return {**plain, "segments": segments, "classes": list(record.names), "things": list(record.things)}


def summary(source: str | None, task: Task, size: Size, void: float, segments: Iterable[Segment]) -> dict[str, Any]:
    """Return a result as plain values, without masks; scores are rounded to four digits."""
    return {
        "source": source,
        "task": task,
        "height": size[0],
        "width": size[1],
        "void": void,
        "segments": [{**asdict(segment), "score": round(segment.score, 4), "box": list(segment.box)} for segment in segments],
    }


def read_records(folder: Path) -> list[ResultRecord]:
    """Read the results in a folder and below it, by the order of their names. Other JSON files are ignored.

    Raises:
        DataError: the JSON of a result is damaged.
    """
    records = (_read(path, path.relative_to(folder).as_posix().removesuffix(ENDING)) for path in find_files(folder, ENDING))
    return [record for record in records if record is not None]


def _read(path: Path, stem: str) -> ResultRecord | None:
    """Read a record; None if the file is the JSON of something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        return None
    try:
        return record_of(content, stem)
    except UsageError as error:
        raise DataError(f"{path}: is no result of lexiseg ({error}); delete it, or segment its picture again") from None


def record_of(content: dict[str, Any], stem: str) -> ResultRecord:
    """Return the record of a result's JSON `document`; ``stem`` is the prefix of its files.

    Raises:
        UsageError: the document is not one of a result.
    """
    try:
        return _record(content, stem)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UsageError(f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)) from None


def _record(content: dict[str, Any], stem: str) -> ResultRecord:
    size = int(content["height"]), int(content["width"])
    names, things = tuple(map(str, content["classes"])), tuple(map(bool, content["things"]))
    if content["task"] not in get_args(Task) or len(names) != len(things) or not _is_picture(size):
        raise UsageError("its task, size or classes are wrong")
    segments, counts = [], []
    for row in content["segments"]:
        label, (left, top, wide, high) = int(row["label"]), map(int, row["box"])
        if not 0 <= label < len(names):
            raise UsageError(f"label {label} is none of {len(names)} classes")
        segments.append(
            Segment(
                int(row["id"]),
                label,
                names[label],
                things[label],
                float(row["score"]),
                int(row["area"]),
                (left, top, wide, high),
            )
        )
        counts.append(check_counts(decompress(row["segmentation"]["counts"]), size))
    source = None if content["source"] is None else str(content["source"])
    return ResultRecord(stem, source, cast(Task, content["task"]), size, names, things, tuple(segments), tuple(counts))


def _is_picture(size: Size) -> bool:
    return min(size) >= 1 and max(size) <= MAX_SIDE and size[0] * size[1] <= MAX_TILED_PIXELS


@dataclass(frozen=True)
class Classes:
    """Classes of several results, each name once, in the order of the results. [decided] The first to have a name decides
    whether it is a thing."""

    names: tuple[str, ...]
    things: tuple[bool, ...]

    @classmethod
    def of(cls, records: Sequence[ResultRecord]) -> Classes:
        known: dict[str, bool] = {}
        for record in records:
            for name, thing in zip(record.names, record.things, strict=True):
                known.setdefault(name, thing)
        return cls(tuple(known), tuple(known.values()))

    def labels(self, record: ResultRecord) -> list[int]:
        """Position of each of the record's classes in these."""
        positions = {name: position for position, name in enumerate(self.names)}
        return [positions[name] for name in record.names]


def picture_names(records: Sequence[ResultRecord]) -> list[str]:
    """Return a different name for the picture of each result: its file's, with folders if several files have the same name."""
    paths = [PurePath(record.source).as_posix() if record.source and record.has_file else record.stem for record in records]
    names = [path.rpartition("/")[2] for path in paths]
    if len(set(names)) < len(names):
        try:
            root = os.path.commonpath(paths).replace(os.sep, "/")
        except ValueError:  # some absolute, some not
            root = ""
        names = [path.removeprefix(root).removeprefix("/") for path in paths]
    occurrences = Counter(names)
    return [name if occurrences[name] == 1 else record.stem for name, record in zip(names, records, strict=True)]
