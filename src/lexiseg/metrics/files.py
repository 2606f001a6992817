"""Score files: predictions of any tool against a ground truth in the same format.

    task        ground truth                                        predictions
    instance    COCO instances JSON, or LVIS's                      COCO results JSON (a list of scored masks)
    panoptic    COCO panoptic JSON, its PNGs in a folder beside it  the same
    semantic    a folder of label maps (PNG, TIFF)                  the same, files of the same names

Faults raise a `DataError` that names file and image. With ``keep_going`` a faulty image is skipped, and its fault is listed in
`Score.problems`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import DataError, RunError, explained
from lexiseg.metrics.base import Metric, absence
from lexiseg.metrics.instance import AveragePrecision
from lexiseg.metrics.panoptic import PanopticQuality
from lexiseg.metrics.semantic import AbsentClasses, SemanticScores
from lexiseg.ops.coco import (
    CocoTruth,
    Entry,
    ImageId,
    instance_of,
    label_of,
    place_of,
    png_folder,
    read_coco,
    read_ids,
    read_panoptic_results,
    read_results,
)
from lexiseg.ops.files import find_files
from lexiseg.ops.label_table import LabelTable
from lexiseg.ops.names import below
from lexiseg.ops.pictures import read_values
from lexiseg.structures import Instances, PanopticMap, PanopticSegment, Size

Groups = Mapping[str, Collection[int]]
Item = TypeVar("Item")
Pair = TypeVar("Pair", bound=tuple[Any, Any])

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # LVIS
LABEL_MAPS = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class Score:
    """Score of a set of files.

    Attributes:
        metric: the metric with its sums.
        names: the class names.
        problems: the faults of skipped images; empty without ``keep_going``.
    """

    metric: Metric[Any, Any]
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return ``result``, ``classes`` (a row each), ``absent`` (not in the truth) and ``problems``, ready for JSON."""
        return {
            "result": self.metric.result(),
            "classes": self.metric.table(self.names),
            "absent": absence(self.metric, self.names),
            "problems": list(self.problems),
        }


class _Problems:
    """Raise the fault of an image, or collect it with ``keep_going``."""

    def __init__(self, keep_going: bool) -> None:
        self.keep_going = keep_going
        self.messages: list[str] = []

    def add(self, error: DataError) -> None:
        if not self.keep_going:
            raise error
        self.messages.append(str(error))

    @contextmanager
    def of(self, image: str) -> Iterator[None]:
        """Treat any exception in the block, lack of memory included, as a fault of ``image`` (its name in messages)."""
        try:
            yield
        except DataError as error:
            self.add(error)
        except Exception as error:
            if not self.keep_going:
                raise RunError(f"{image}: {explained(error)}") from error
            self.messages.append(f"{image}: {explained(error)}")


# --- instances --------------------------------------------------------------------------------------------------------


def score_instances(
    predictions: str | Path, truth: str | Path, *, groups: Groups | None = None, keep_going: bool = False
) -> Score:
    """Compute the average precision of a COCO results file; a truth with ``neg_category_ids`` follows LVIS's rules.

    Args:
        predictions: JSON, a list of ``{image_id, category_id, segmentation, score}``. Boxes are ignored (pycocotools
            would use their areas in place of the masks').
        truth: JSON with ``images``, ``annotations``, ``categories``; masks are polygons or run lengths.
        groups: named sets of labels (indices of the categories sorted by id) that are also scored on their own; LVIS's
            rare, common and frequent classes are added.
        keep_going: skip faulty images.

    Raises:
        DataError: a file is missing, is not such a JSON, or has invalid entries.
    """
    document, (results, faults) = read_coco(truth, panoptic=False), read_results(predictions)
    labels, names = _categories(document)
    images, problems = {entry["id"]: entry for entry in document.images}, _Problems(keep_going)
    rarity = {
        name: [labels[entry["id"]] for entry in document.categories if entry["frequency"] == letter]
        for letter, name in FREQUENCIES.items()
    }
    federated = document.federated
    metric = AveragePrecision(len(names), {**(rarity if federated else {}), **(groups or {})}, federated=federated)
    known = {*images, *document.faults}
    _report_strangers(document.annotations, known, Path(truth), "annotation", problems)
    _report_strangers(results, known, Path(predictions), "prediction", problems)
    if not any(image in known for image in document.annotations):
        raise DataError(f"{truth}: has no annotation of any of its images; nothing can be measured")
    for order, image in enumerate(_in_order(known)):
        with problems.of(where := f"{predictions}, image {image}"):
            _refuse_faults(image, document.faults, faults)
            entry = images[image]
            size, checked, partly = (entry["height"], entry["width"]), None, frozenset[int]()
            if federated:
                checked = _labels(entry, "neg_category_ids", labels, document.source)
                partly = _labels(entry, "not_exhaustive_category_ids", labels, document.source)
            instances = _instances(document.annotations.get(image, ()), size, labels, document.source, checked, partly)
            metric.update(order, instances, _instances(results.get(image, ()), size, labels, Path(predictions)), name=where)
    return Score(metric, names, tuple(problems.messages))


def _instances(
    entries: Iterable[Entry],
    size: Size,
    labels: Mapping[int, int],
    source: Path,
    checked: frozenset[int] | None = None,
    partly: frozenset[int] = frozenset(),
) -> Instances:
    located = [(entry, place_of(source, entry)) for entry in entries]
    things = tuple(instance_of(entry, label_of(entry, labels, where), size, where) for entry, where in located)
    return Instances(size, things, checked, partly)


def _labels(entry: Entry, key: str, labels: Mapping[int, int], source: Path) -> frozenset[int]:
    where = f"{place_of(source, entry)}, {key}"
    return frozenset(label_of({"category_id": category}, labels, where) for category in entry[key])


# --- panoptic ---------------------------------------------------------------------------------------------------------


def score_panoptic(
    predictions: str | Path, truth: str | Path, *, groups: Groups | None = None, keep_going: bool = False
) -> Score:
    """Compute the panoptic quality of files in COCO's panoptic format.

    Args:
        predictions, truth: JSON files. The PNGs of ``panoptic.json`` are in the folder ``panoptic``, or else beside it.
        groups: named sets of labels (indices of the categories sorted by id) that are also scored on their own.
        keep_going: skip faulty images, also those without a prediction.

    Raises:
        DataError: a file is missing, damaged or has invalid entries; an image has no prediction.
    """
    document, (results, faults) = read_coco(truth, panoptic=True), read_panoptic_results(predictions)
    labels, names = _categories(document)
    things, problems = dict(zip(_ids(document), document.things(), strict=True)), _Problems(keep_going)
    folders = png_folder(document.source), png_folder(Path(predictions))
    if not document.annotations:
        raise DataError(f"{truth}: has no annotations; nothing can be measured")
    metric = PanopticQuality(len(names), [things[category] for category in labels], groups)
    _report_strangers([*results, *faults], document.annotations, Path(predictions), "prediction", problems)

    def read(image: ImageId) -> tuple[PanopticMap, PanopticMap]:
        _refuse_faults(image, document.faults, faults)
        if image not in results:
            raise DataError(f"{predictions}: has no prediction for image {image}; every image of the truth needs one")
        (annotation,) = document.annotations[image]
        return (
            _panoptic(annotation, folders[0], labels, document.source),
            _panoptic(results[image], folders[1], labels, Path(predictions)),
        )

    for order, (image, pair) in enumerate(_read_ahead(read, _in_order(document.annotations))):
        with problems.of(where := f"{predictions}, image {image}"):
            metric.update(order, *pair.result(), name=where)
    return Score(metric, names, tuple(problems.messages))


def _panoptic(entry: Entry, folder: Path, labels: Mapping[int, int], source: Path) -> PanopticMap:
    ids = read_ids(below(folder, entry["file_name"], place_of(source, entry)))
    segments = tuple(
        PanopticSegment(
            segment["id"], label_of(segment, labels, place_of(source, segment)), segment["iscrowd"], segment["area"]
        )
        for segment in entry["segments_info"]
    )
    return PanopticMap(ids, segments)


# --- semantic ---------------------------------------------------------------------------------------------------------


def score_semantic(
    predictions: str | Path,
    truth: str | Path,
    names: Sequence[str],
    *,
    table: LabelTable | None = None,
    absent: AbsentClasses = "official",
    groups: Groups | None = None,
    keep_going: bool = False,
) -> Score:
    """Compute mIoU, FWIoU and accuracies of label maps.

    Args:
        predictions, truth: folders of PNGs or TIFFs with grey values or palette indices; a truth and its prediction have the
            same name but for the suffix, in the same subfolder.
        names: the K class names.
        table: the class of each value, and the values that are ignored in a truth and void in predictions; None: 0 to
            K - 1, and 255 (65535 for more than 255 classes) is ignored.
        absent: see `SemanticScores`.
        groups: named sets of labels that are also scored on their own.
        keep_going: skip faulty images, also those without a prediction.

    Raises:
        DataError: a folder or file is missing or damaged, sizes differ, or a value has no class.
    """
    meaning = table or LabelTable.of_ids(range(len(names)))
    files, results = _label_files(truth), _label_files(predictions)
    if not files:
        raise DataError(f"{truth}: has no PNG or TIFF in it; nothing can be measured")
    metric, problems = SemanticScores(len(names), groups, absent), _Problems(keep_going)
    _report_strangers(results, files, Path(predictions), "prediction", problems)

    def labels_of(path: Path) -> NDArray[np.int32]:
        return meaning.map(read_values(path), str(path))  # IGNORED, -1, is void in a result

    def read(name: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if name not in results:
            raise DataError(f"{predictions}: has no prediction {name}; every image of the truth needs one")
        return labels_of(files[name]), labels_of(results[name])

    for order, (name, pair) in enumerate(_read_ahead(read, files)):
        with problems.of(where := str(results.get(name, name))):
            metric.update(order, *pair.result(), name=where)
    return Score(metric, tuple(names), tuple(problems.messages))


def _label_files(folder: str | Path) -> dict[str, Path]:
    """Return the label maps below a folder, by relative name without suffix."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; give the folder with the label maps")
    files: dict[str, Path] = {}
    for path in find_files(folder, LABEL_MAPS):
        other = files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other is not path:
            raise DataError(f"{other} and {path.name} are label maps with the same name; keep one of them")
    return files


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_ahead(read: Callable[[Item], Pair], items: Iterable[Item]) -> Iterator[tuple[Item, Future[Pair]]]:
    """Yield items in order with the future of ``read(item)``; threads read a few items ahead of the one in use."""
    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Item, Future[Pair]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # stopping early does not wait for the rest
            for _, left in waiting:
                left.cancel()


def _ids(document: CocoTruth) -> list[int]:
    return [entry["id"] for entry in document.categories]


def _categories(document: CocoTruth) -> tuple[dict[int, int], tuple[str, ...]]:
    """Return the label of each category id, and the names; labels are indices of the categories sorted by id."""
    if not document.categories:
        raise DataError(f"{document.source}: has no categories; nothing can be measured")
    categories = sorted(document.categories, key=lambda entry: entry["id"])
    names = tuple(str(entry["id"]) if entry["name"] is None else entry["name"] for entry in categories)
    return {entry["id"]: label for label, entry in enumerate(categories)}, names


def _in_order(images: Iterable[ImageId]) -> list[ImageId]:
    """Sort images by id, numbers before names; equal scores are ordered by it."""
    return sorted(images, key=lambda image: (isinstance(image, str), image))


def _refuse_faults(image: ImageId, *faults: Mapping[ImageId, str]) -> None:
    for messages in faults:
        if image in messages:
            raise DataError(messages[image])


def _report_strangers(given: Iterable[ImageId], known: Collection[ImageId], path: Path, what: str, problems: _Problems) -> None:
    for image in given:
        if image not in known:
            problems.add(DataError(f"{path}: has {what}s of image {image}, which the truth does not list"))
