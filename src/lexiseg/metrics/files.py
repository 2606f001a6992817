"""Scores of files: predictions of any tool against a ground truth in the same format.

    task        ground truth                                        predictions
    instance    COCO instances JSON, or LVIS's                      COCO results JSON (a list of scored masks)
    panoptic    COCO panoptic JSON, its PNGs in a folder beside it  the same
    semantic    a folder of label maps (PNG, TIFF)                  the same, files of the same names

Anything wrong is a `DataError` that names file and image. With ``keep_going`` an image with something wrong is left out of
the measurement, and what was wrong is in `Score.problems`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from lexiseg.errors import DataError, UsageError
from lexiseg.metrics.base import Metric
from lexiseg.metrics.instance import AveragePrecision
from lexiseg.metrics.panoptic import PanopticQuality
from lexiseg.metrics.semantic import AbsentClasses, SemanticScores
from lexiseg.ops.colours import ids_of_picture
from lexiseg.ops.files import find_files
from lexiseg.ops.names import below
from lexiseg.ops.rle import area_of_counts, decompress
from lexiseg.structures import IGNORED, Instance, Instances, PanopticMap, PanopticSegment, Size

Record = Mapping[str, Any]
Groups = Mapping[str, Collection[int]]
ImageId = int | str
Document = TypeVar("Document", dict[str, Any], list[Any])
Item = TypeVar("Item")
Pair = TypeVar("Pair", bound=tuple[Any, Any])

FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # LVIS
LABEL_MAPS = (".png", ".tif", ".tiff")
VOID_OF_BYTES, VOID_OF_WORDS = 255, 65535


@dataclass(frozen=True)
class Score:
    """What a metric says of some files.

    Attributes:
        metric: with everything it has measured.
        names: its classes.
        problems: what was wrong with the images left out; empty unless told to keep going.
    """

    metric: Metric[Any, Any]
    names: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """``result``, ``classes`` (one row each) and ``problems``, ready for JSON."""
        return {"result": self.metric.result(), "classes": self.metric.table(self.names), "problems": list(self.problems)}


class _Problems:
    """Raises what is wrong at once, or collects it."""

    def __init__(self, keep_going: bool) -> None:
        self.keep_going = keep_going
        self.found: list[str] = []

    def add(self, error: DataError) -> None:
        if not self.keep_going:
            raise error
        self.found.append(str(error))


# --- instances --------------------------------------------------------------------------------------------------------


def score_instances(
    predictions: str | Path, truth: str | Path, *, groups: Groups | None = None, keep_going: bool = False
) -> Score:
    """Average precision of a COCO results file. A truth whose images have ``neg_category_ids`` is measured by LVIS's rules.

    Args:
        predictions: JSON, a list of ``{image_id, category_id, segmentation, score}``. Boxes are not looked at (pycocotools
            would take their areas for those of the masks).
        truth: JSON with ``images``, ``annotations``, ``categories``; masks are polygons or runs.
        groups: sets of labels (places among the categories in the order of their ids) with numbers of their own; LVIS's
            rare, common and frequent classes are such without saying.
        keep_going: leave out images with something wrong.

    Raises:
        DataError: a file is missing, is no such JSON, or holds what it must not.
    """
    path, document = Path(truth), _read_json(truth, dict)
    images, labels, names = _images(document, path), *_categories(document, path)
    annotations, problems = _grouped(document, "annotations", path), _Problems(keep_going)
    results = _group(_read_json(predictions, list), Path(predictions))
    federated = any("neg_category_ids" in record for record in images.values())
    frequencies = {category["id"]: category.get("frequency") for category in document["categories"]}
    rarity = {
        name: [labels[category] for category, frequency in frequencies.items() if frequency == letter]
        for letter, name in FREQUENCIES.items()
    }
    metric = AveragePrecision(len(names), {**(rarity if federated else {}), **(groups or {})}, federated=federated)
    _report_strangers(annotations, images, path, "annotation", problems)
    _report_strangers(results, images, Path(predictions), "prediction", problems)
    if not any(image in images for image in annotations):
        raise DataError(f"{path}: has no annotation of any of its images; nothing can be measured")
    for order, (image, record) in enumerate(images.items()):
        place = f"{path}, image {image}"
        try:
            size = (_whole(record, "height", place), _whole(record, "width", place))
            checked, partly = None, frozenset[int]()
            if federated:
                checked = _labels(record, "neg_category_ids", labels, place)
                partly = _labels(record, "not_exhaustive_category_ids", labels, place)
            there = Instances(size, tuple(_instances(annotations.get(image, []), size, labels, place)), checked, partly)
            place = f"{predictions}, image {image}"
            found = tuple(_instances(results.get(image, []), size, labels, place, scored=True))
            metric.update(order, there, Instances(size, found), name=place)
        except DataError as error:
            problems.add(error)
    return Score(metric, names, tuple(problems.found))


def _instances(
    records: Iterable[Record], size: Size, labels: Mapping[int, int], place: str, *, scored: bool = False
) -> Iterator[Instance]:
    for record in records:
        counts = _counts(_field(record, "segmentation", place), size, place)
        area = area_of_counts(counts)
        yield Instance(
            _label(record, labels, place),
            counts,
            area if scored else float(record.get("area", area)),
            (0.0, 0.0, 0.0, 0.0),  # nothing here is measured by boxes
            bool(record.get("iscrowd", 0)) and not scored,
            _real(record, "score", place) if scored else 1.0,
        )


def _counts(segmentation: Any, size: Size, place: str) -> NDArray[np.int64]:
    """The runs of a mask in any of COCO's three forms."""
    try:
        if isinstance(segmentation, Mapping):
            if tuple(segmentation["size"]) != size:
                raise DataError(f"{place}: a mask of {segmentation['size']} pixels in an image of {list(size)}")
            counts = segmentation["counts"]
            runs = decompress(counts) if isinstance(counts, str) else np.array(counts, np.int64)
        else:
            polygons = coco_mask.frPyObjects(segmentation, *size)
            runs = decompress(coco_mask.merge(polygons)["counts"].decode("ascii"))
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: a segmentation is neither polygons nor COCO's runs ({error})") from None
    if (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        raise DataError(f"{place}: the runs of a mask sum to {int(runs.sum())}, not {size[0]} × {size[1]} pixels")
    return runs


# --- panoptic ---------------------------------------------------------------------------------------------------------


def score_panoptic(
    predictions: str | Path, truth: str | Path, *, groups: Groups | None = None, keep_going: bool = False
) -> Score:
    """Panoptic quality of files in COCO's panoptic format.

    Args:
        predictions, truth: JSON files. The PNGs of ``panoptic.json`` are in the folder ``panoptic``, or else beside it.
        groups: sets of labels (places among the categories in the order of their ids) with numbers of their own.
        keep_going: leave out images with something wrong, also those without a prediction.

    Raises:
        DataError: a file is missing or damaged, or holds what it must not; an image has no prediction.
    """
    path, document = Path(truth), _read_json(truth, dict)
    labels, names = _categories(document, path)
    things = {category["id"]: bool(_field(category, "isthing", f"{path}, categories")) for category in document["categories"]}
    annotations, problems = _once(_grouped(document, "annotations", path), path), _Problems(keep_going)
    results = _once(_grouped(_read_json(predictions, dict), "annotations", Path(predictions)), Path(predictions))
    if not annotations:
        raise DataError(f"{path}: has no annotations; nothing can be measured")
    metric = PanopticQuality(len(names), [things[category] for category in labels], groups)
    _report_strangers(results, annotations, Path(predictions), "prediction", problems)

    def read(image: ImageId) -> tuple[PanopticMap, PanopticMap]:
        if image not in results:
            raise DataError(f"{predictions}: has no prediction for image {image}; every image of the truth needs one")
        there = _panoptic(annotations[image], _png_folder(path), labels, f"{path}, image {image}")
        return there, _panoptic(results[image], _png_folder(Path(predictions)), labels, f"{predictions}, image {image}")

    for order, (image, pair) in enumerate(_read_ahead(read, annotations)):
        try:
            metric.update(order, *pair.result(), name=f"{predictions}, image {image}")
        except DataError as error:
            problems.add(error)
    return Score(metric, names, tuple(problems.found))


def _panoptic(record: Record, folder: Path, labels: Mapping[int, int], place: str) -> PanopticMap:
    path = below(folder, _field(record, "file_name", place), place)
    with _picture(path) as picture:
        if picture.mode not in ("RGB", "RGBA"):
            raise DataError(f"{path}: is not in colour; a panoptic PNG holds ids as R + 256 G + 65536 B")
        ids = ids_of_picture(picture)
    segments = tuple(
        PanopticSegment(
            _whole(segment, "id", place),
            _label(segment, labels, place),
            bool(segment.get("iscrowd", 0)),
            _whole(segment, "area", place) if "area" in segment else None,
        )
        for segment in _list(record, "segments_info", place)
    )
    return PanopticMap(ids, segments)


def _png_folder(path: Path) -> Path:
    beside = path.with_suffix("")
    return beside if beside.is_dir() else path.parent


# --- semantic ---------------------------------------------------------------------------------------------------------


def score_semantic(
    predictions: str | Path,
    truth: str | Path,
    names: Sequence[str],
    *,
    ignored: int | None = None,
    absent: AbsentClasses = "official",
    groups: Groups | None = None,
    keep_going: bool = False,
) -> Score:
    """mIoU and its relatives of label maps.

    Args:
        predictions, truth: folders of PNGs or TIFFs with grey values or palette indices 0 to K - 1; a truth has the
            prediction of the same name, whatever its ending, in the same sub-folder.
        names: the K classes.
        ignored: the value of pixels that are not measured, and of void in predictions; None: 255, or 65535 where there are
            more than 255 classes.
        absent: see `SemanticScores`.
        groups: sets of labels with numbers of their own.
        keep_going: leave out images with something wrong, also those without a prediction.

    Raises:
        DataError: a folder or file is missing or damaged, sizes differ, or a value is no class.
    """
    void = ignored if ignored is not None else VOID_OF_BYTES if len(names) <= VOID_OF_BYTES else VOID_OF_WORDS
    files, results = _label_files(truth), _label_files(predictions)
    if not files:
        raise DataError(f"{truth}: has no PNG or TIFF in it; nothing can be measured")
    metric, problems = SemanticScores(len(names), groups, absent), _Problems(keep_going)
    _report_strangers(results, files, Path(predictions), "prediction", problems)

    def read(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if name not in results:
            raise DataError(f"{predictions}: has no prediction {name}; every image of the truth needs one")
        return _labels_of(files[name], void, IGNORED), _labels_of(results[name], void, -1)

    for order, (name, pair) in enumerate(_read_ahead(read, files)):
        try:
            metric.update(order, *pair.result(), name=str(results.get(name, name)))
        except DataError as error:
            problems.add(error)
    return Score(metric, tuple(names), tuple(problems.found))


def _label_files(folder: str | Path) -> dict[str, Path]:
    """The label maps below a folder, by their names without ending."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; give the folder with the label maps")
    files: dict[str, Path] = {}
    for path in find_files(folder, LABEL_MAPS):
        other = files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other is not path:
            raise DataError(f"{other} and {path.name} are label maps of one name; keep one of them")
    return files


def _labels_of(path: Path, void: int, value: int) -> NDArray[np.int32]:
    with _picture(path) as picture:
        labels = np.asarray(picture)
    if labels.ndim != 2:
        raise DataError(f"{path}: is in colour; a label map has grey values or palette indices")
    return np.where(labels == void, value, labels.astype(np.int32))


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_ahead(read: Callable[[Item], Pair], items: Iterable[Item]) -> Iterator[tuple[Item, Future[Pair]]]:
    """Items in their order, and what is read of each: threads decode pictures while others are measured, a few ahead."""
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
        finally:  # whoever stops early does not wait for the rest
            for _, left in waiting:
                left.cancel()


def _read_json(path: str | Path, kind: type[Document]) -> Document:
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(document, kind):
        wanted = "a document with categories and annotations" if kind is dict else "a list of predictions"
        raise DataError(f"{path}: holds a JSON {type(document).__name__}; expected {wanted}")
    return document


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as opened:
            yield opened
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on damaged data
        raise DataError(f"{path}: cannot be read as a picture ({error}); fetch or export it again") from None


def _images(document: Record, path: Path) -> dict[ImageId, Record]:
    """The images in the order of their ids, which is that of ties."""
    return _once(_group(_list(document, "images", path), path, key="id"), path)


def _categories(document: Record, path: Path) -> tuple[dict[int, int], tuple[str, ...]]:
    """The label of each category id, and the names; labels are places in the order of the ids."""
    categories = _once(_group(_list(document, "categories", path), path, key="id"), path, what="category")
    if not categories:
        raise DataError(f"{path}: has no categories; nothing can be measured")
    if not all(isinstance(identity, int) for identity in categories):
        raise DataError(f"{path}: has a category whose id is not a number")
    names = tuple(str(category.get("name", identity)) for identity, category in categories.items())
    return {int(identity): label for label, identity in enumerate(categories)}, names


def _list(record: Record, key: str, place: str | Path) -> list[Any]:
    entries = _field(record, key, str(place))
    if not isinstance(entries, list):
        raise DataError(f"{place}: {key!r} is not a list")
    return entries


def _grouped(document: Record, key: str, path: Path) -> dict[ImageId, list[Record]]:
    return _group(_list(document, key, path), path)


def _group(records: Iterable[Any], path: Path, key: str = "image_id") -> dict[ImageId, list[Record]]:
    """Records by a number or name they have, in its order; those of one in the order of the file."""
    groups: dict[ImageId, list[Record]] = {}
    for number, record in enumerate(records):
        place = f"{path}, entry {number}"
        identity = _field(record, key, place)
        if not isinstance(identity, int | str):
            raise DataError(f"{place}: {key} {identity!r} is neither a number nor a name")
        groups.setdefault(identity, []).append(record)
    return {
        identity: groups[identity] for identity in sorted(groups, key=lambda identity: (isinstance(identity, str), identity))
    }


def _once(groups: Mapping[ImageId, list[Record]], path: Path, what: str = "image") -> dict[ImageId, Record]:
    for identity, records in groups.items():
        if len(records) > 1:
            raise DataError(f"{path}: {what} {identity} is there {len(records)} times; once is right")
    return {identity: record for identity, (record,) in groups.items()}


def _report_strangers(given: Iterable[ImageId], known: Collection[ImageId], path: Path, what: str, problems: _Problems) -> None:
    for image in given:
        if image not in known:
            problems.add(DataError(f"{path}: has {what}s of image {image}, which is none of the truth's"))


def _field(record: Record, key: str, place: str) -> Any:
    if not isinstance(record, dict):
        raise DataError(f"{place}: an entry is no JSON object")
    if key not in record:
        raise DataError(f"{place}: lacks {key!r}")
    return record[key]


def _whole(record: Record, key: str, place: str) -> int:
    value = _field(record, key, place)
    if not isinstance(value, int):
        raise DataError(f"{place}: {key} {value!r} is not a whole number")
    return value


def _real(record: Record, key: str, place: str) -> float:
    value = _field(record, key, place)
    if not isinstance(value, int | float):
        raise DataError(f"{place}: {key} {value!r} is not a number")
    return float(value)


def _label(record: Record, labels: Mapping[int, int], place: str) -> int:
    category = _whole(record, "category_id", place)
    if category not in labels:
        raise DataError(f"{place}: category {category} is not in the categories of the truth")
    return labels[category]


def _labels(record: Record, key: str, labels: Mapping[int, int], place: str) -> frozenset[int]:
    return frozenset(_label({"category_id": category}, labels, place) for category in _list(record, key, place))
