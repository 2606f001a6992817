"""Reading and validation of COCO files: instances (also LVIS's), panoptic segments, and lists of results.

The tables below are the schema: the fields of an entry, the check of each, and the default of a field that is missing or null.
An invalid entry is a `DataError` that names the file, the entry and the field:

    truth.json, annotations[3], id 17: category_id must be a whole number, not 'x'

Errors in the entries of one picture are collected (`CocoTruth.faults`), so that the picture can be skipped; errors of the whole
document are raised.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from lexiseg.errors import DataError, UsageError
from lexiseg.ops.colours import ids_of_picture
from lexiseg.ops.pictures import opened_picture
from lexiseg.ops.polygons import CORNERS, polygons_counts
from lexiseg.ops.rle import Counts, area_of_counts, check_counts, compress, decompress
from lexiseg.structures import Instance, Size

Entry = Mapping[str, Any]
ImageId = int | str
Box = tuple[float, float, float, float]

LARGEST_NUMBER = 2**53  # integers up to this are exact in any JSON reader
LARGEST_SIDE = 65_535  # of a picture, in pixels: JPEG's limit
LARGEST_SEGMENT = 2**24 - 1  # maximum of R + 256 G + 65536 B
REQUIRED = object()


# --- the schema -------------------------------------------------------------------------------------------------------


def whole(value: Any) -> int:
    """Check an integer; 5.0 is accepted as 5."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise _must("be a whole number", value)
    return value


def identity(value: Any) -> ImageId:
    """Check an id: an integer or a string."""
    return value if isinstance(value, str) else whole(value)


def side(value: Any) -> int:
    """Check the side of a picture in pixels."""
    if not 1 <= whole(value) <= LARGEST_SIDE:
        raise _must(f"be 1 to {LARGEST_SIDE} pixels", value)
    return whole(value)


def segment_id(value: Any) -> int:
    """Check a segment id, which is stored as a colour; 0 (black) is void."""
    if not 1 <= whole(value) <= LARGEST_SEGMENT:
        raise _must(f"be 1 to {LARGEST_SEGMENT} (0 is void)", value)
    return whole(value)


def finite(value: Any) -> float:
    """Check a finite number."""
    if type(value) not in (int, float) or not abs(value) <= LARGEST_NUMBER:
        raise _must("be a finite number", value)
    return float(value)


def area(value: Any) -> float:
    """Check an area in pixels, which may be fractional."""
    if finite(value) < 0:
        raise _must("be 0 or more", value)
    return float(value)


def flag(value: Any) -> bool:
    """Check 0 or 1."""
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise _must("be 0 or 1", value)
    return bool(value)


def text(value: Any) -> str:
    """Check a string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise _must("be a text", value)
    return value


def texts(value: Any) -> list[str]:
    """Check a list of strings."""
    return [text(entry) for entry in _list(value)]


def numbers(value: Any) -> list[int]:
    """Check a list of integers."""
    return [whole(entry) for entry in _list(value)]


def box(value: Any) -> Box:
    """Check a box (left, top, width, height)."""
    if len(_list(value)) != 4:
        raise _must("be four numbers", value)
    left, top, wide, high = (finite(number) for number in value)
    return left, top, wide, high


def segmentation(value: Any) -> list[NDArray[np.float64]] | dict[str, Any]:
    """Check polygons (arrays of coordinates) or run lengths (``size`` and ``counts``, an array or COCO's string)."""
    if isinstance(value, dict):
        return _run_lengths(value)
    if not isinstance(value, list) or not value:
        raise _must("be polygons or run lengths", value)
    return [_polygon(part) for part in ([value] if isinstance(value[0], int | float) else value)]


@dataclass(frozen=True)
class Field:
    """Check of a field, and its default if it is missing or null."""

    check: Callable[[Any], Any]
    default: Any = REQUIRED


Schema = Mapping[str, Field]

IMAGE: Schema = {
    "id": Field(identity),
    "height": Field(side),
    "width": Field(side),
    "file_name": Field(text, None),
    "coco_url": Field(text, None),  # LVIS has no file_name
    "neg_category_ids": Field(numbers, None),  # LVIS: verified to be absent
    "not_exhaustive_category_ids": Field(numbers, None),  # LVIS: not all instances are annotated
}
PANOPTIC_IMAGE: Schema = {**IMAGE, "height": Field(side, None), "width": Field(side, None)}  # the PNG has its size
CATEGORY: Schema = {
    "id": Field(whole),
    "name": Field(text, None),
    "isthing": Field(flag, None),
    "frequency": Field(text, None),  # LVIS: r, c, f
    "synonyms": Field(texts, ()),
}
INSTANCE: Schema = {
    "id": Field(identity, None),
    "image_id": Field(identity),
    "category_id": Field(whole),
    "segmentation": Field(segmentation),
    "bbox": Field(box, None),  # else that of the mask
    "area": Field(area, None),  # else the pixels of the mask
    "iscrowd": Field(flag, False),
}
RESULT: Schema = {
    "image_id": Field(identity),
    "category_id": Field(whole),
    "segmentation": Field(segmentation),
    "score": Field(finite),
}
PANOPTIC: Schema = {
    "image_id": Field(identity),
    "segments_info": Field(lambda value: _list(value)),
    "file_name": Field(text),
}
SEGMENT: Schema = {
    "id": Field(segment_id),
    "category_id": Field(whole),
    "area": Field(area, None),  # else the pixels of the PNG
    "iscrowd": Field(flag, False),
}


# --- documents --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CocoTruth:
    """Validated COCO document of instances or panoptic segments.

    Attributes:
        source: the file.
        panoptic: whether its annotations are lists of segments.
        images: valid entries.
        annotations: image id -> its entries, including images that are not listed.
        categories: entries in the file's order.
        faults: image id -> first error in its entries.
    """

    source: Path
    panoptic: bool
    images: Sequence[Entry] = field(repr=False)
    annotations: Mapping[ImageId, Sequence[Entry]] = field(repr=False)
    categories: Sequence[Entry] = field(repr=False)
    faults: Mapping[ImageId, str] = field(default_factory=dict)

    @property
    def federated(self) -> bool:
        """Whether each image lists the categories that were verified in it (LVIS)."""
        return any(image["neg_category_ids"] is not None for image in self.images)

    def things(self) -> list[bool]:
        """Return whether each category is a thing.

        Raises:
            DataError: a category of a panoptic document has no ``isthing``.
        """
        for entry in self.categories if self.panoptic else ():
            if entry["isthing"] is None:
                raise DataError(f"{place_of(self.source, entry)}: lacks 'isthing'; write 1 for a thing, 0 for stuff")
        return [entry["isthing"] is not False for entry in self.categories]


def read_json(path: str | Path) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Raises:
        DataError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `lexiseg data check` says how to get those of known data sets") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); fetch or export it again") from None
    except RecursionError:
        raise DataError(f"{path}: is not the JSON of a data set, its lists are nested too deep; export it again") from None


def read_coco(path: str | Path, *, panoptic: bool | None = None) -> CocoTruth:
    """Read a COCO document of images, annotations and categories.

    Args:
        path: the JSON file.
        panoptic: whether the annotations must be lists of segments; None accepts both.

    Raises:
        DataError: the file is missing or not such a document; a category, an image's id or the image of an annotation is
            invalid; two images or two categories have the same id.
    """
    source, document = Path(path), read_json(path)
    annotations = _part(document, "annotations", source)
    if panoptic is None:
        panoptic = any(isinstance(entry, dict) and "segments_info" in entry for entry in annotations)
    listed = _part(document, "images", source) if "images" in document or not panoptic else []
    categories = [
        _entry(entry, CATEGORY, source, "categories", n) for n, entry in enumerate(_part(document, "categories", source))
    ]
    faults: dict[ImageId, str] = {}
    images = _by_image(listed, PANOPTIC_IMAGE if panoptic else IMAGE, source, "images", faults, key="id")
    by_image = _by_image(annotations, PANOPTIC if panoptic else INSTANCE, source, "annotations", faults)
    _refuse_twice((entry["id"] for entry in categories), source, "category")
    _refuse_twice((image for image, entries in images.items() for _ in entries), source, "image")
    if panoptic:
        _refuse_twice((image for image, entries in by_image.items() for _ in entries), source, "the annotation of image")
    truth = CocoTruth(source, panoptic, tuple(chain.from_iterable(images.values())), by_image, categories, faults)
    if truth.federated:
        for entry in truth.images:
            for name in ("neg_category_ids", "not_exhaustive_category_ids"):
                if entry[name] is None:
                    faults.setdefault(entry["id"], f"{place_of(source, entry)}: lacks '{name}'; others have it, as LVIS's")
    return truth


def read_results(path: str | Path) -> tuple[Mapping[ImageId, Sequence[Entry]], Mapping[ImageId, str]]:
    """Read a list of COCO results.

    Returns:
        image id -> its entries, and image id -> first error in its entries.

    Raises:
        DataError: the file is missing or not a list; the image of an entry is invalid.
    """
    document = read_json(path)
    if not isinstance(document, list):
        raise DataError(f"{path}: holds a JSON {type(document).__name__}; expected a list of predictions")
    faults: dict[ImageId, str] = {}
    return _by_image(document, RESULT, Path(path), "", faults), faults


def read_panoptic_results(path: str | Path) -> tuple[Mapping[ImageId, Entry], Mapping[ImageId, str]]:
    """Read the annotations of a COCO panoptic document; all else is ignored in results.

    Returns:
        image id -> its entry, and image id -> first error in its entry.

    Raises:
        DataError: the file is missing or not such a document; the image of an entry is invalid or has two entries.
    """
    faults: dict[ImageId, str] = {}
    by_image = _by_image(_part(read_json(path), "annotations", Path(path)), PANOPTIC, Path(path), "annotations", faults)
    _refuse_twice((image for image, entries in by_image.items() for _ in entries), Path(path), "the annotation of image")
    return {image: entries[0] for image, entries in by_image.items() if entries}, faults


def place_of(source: str | Path, entry: Entry) -> str:
    """Describe the location of an entry for messages: file, list, index and id."""
    return _place(source, entry["list"], entry["number"], entry)


def label_of(entry: Entry, labels: Mapping[int, int], where: str) -> int:
    """Return the label of an entry's category.

    Args:
        entry: entry with a ``category_id``.
        labels: category id -> label.
        where: location of the entry for messages, see `place_of`.

    Raises:
        DataError: unknown category.
    """
    if entry["category_id"] not in labels:
        raise DataError(f"{where}: category {entry['category_id']} is not among the categories of the truth")
    return labels[entry["category_id"]]


# --- masks ------------------------------------------------------------------------------------------------------------


def instance_of(entry: Entry, label: int, size: Size, where: str) -> Instance:
    """Build the instance of an entry of `INSTANCE` or `RESULT`; a missing area or box is computed from the mask.

    Args:
        entry: validated entry.
        label: its label.
        size: (height, width) of the image.
        where: location of the entry for messages, see `place_of`.

    Raises:
        DataError: the mask does not fit an image of this size.
    """
    counts = mask_counts(entry["segmentation"], size, where)
    stated_area, stated_box = entry.get("area"), entry.get("bbox")
    if stated_box is None and "bbox" in entry:
        stated_box = tuple(coco_mask.toBbox({"size": list(size), "counts": compress(counts)}))
    return Instance(
        label,
        counts,
        float(area_of_counts(counts)) if stated_area is None else stated_area,
        (0.0, 0.0, 0.0, 0.0) if stated_box is None else stated_box,  # box of results, which is unused
        entry.get("iscrowd", False),
        entry.get("score", 1.0),
    )


def mask_counts(mask: Any, size: Size, where: str) -> Counts:
    """Convert a mask in the form of `segmentation` to run lengths.

    Args:
        mask: polygons or run lengths.
        size: (height, width) of the image.
        where: location of the entry for messages, see `place_of`.

    Raises:
        DataError: the mask does not fit an image of this size.
    """
    try:
        if isinstance(mask, list):
            return polygons_counts(mask, size)
        if mask["size"] != size:
            raise UsageError(f"it is of {list(mask['size'])} pixels, its image of {list(size)}")
        counts = mask["counts"]
        return check_counts(decompress(counts) if isinstance(counts, str) else counts, size)
    except UsageError as error:
        raise DataError(f"{where}: its mask cannot be read ({error}); repair or remove it") from None


def read_ids(path: Path) -> NDArray[np.int32]:
    """Read the segment ids [H, W] of a panoptic PNG, id = R + 256 G + 65536 B; the PNG may have a palette.

    Raises:
        DataError: the file is missing, damaged, or not in colour.
    """
    with opened_picture(path) as picture:
        if picture.mode not in ("RGB", "RGBA", "P", "PA"):
            raise DataError(f"{path}: is not in colour ({picture.mode}); a panoptic PNG holds ids as R + 256 G + 65536 B")
        return ids_of_picture(picture)


def png_folder(source: Path) -> Path:
    """Return the folder of a panoptic JSON's PNGs: the folder of the same name, or else the JSON's own."""
    beside = source.with_suffix("")
    return beside if beside.is_dir() else source.parent


# --- details ----------------------------------------------------------------------------------------------------------


def _must(rule: str, value: Any) -> ValueError:
    return ValueError(f"must {rule}, not {reprlib.repr(value)}")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _must("be a list", value)
    return value


def _polygon(value: Any) -> NDArray[np.float64]:
    coordinates = _array(value, "have polygons that are lists of numbers")
    count = coordinates.size
    if count == 4:
        raise ValueError("has a polygon of 4 numbers, which could be a box: write its corners as x, y, x, y, …")
    if count < 2 * CORNERS or count % 2:
        raise ValueError(f"has a polygon of {count} numbers; it needs an even count, {2 * CORNERS} or more: x, y, x, y, …")
    if not (np.abs(coordinates) <= LARGEST_NUMBER).all():
        raise ValueError("has a polygon with a coordinate that is not finite")
    return coordinates.astype(np.float64, copy=False)


def _run_lengths(value: dict[str, Any]) -> dict[str, Any]:
    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        raise _must("have a size of height and width", size)
    if isinstance(counts, str):
        return {"size": (side(size[0]), side(size[1])), "counts": counts}
    runs = _array(counts, "have counts that are a text or a list of whole numbers")
    if not (np.abs(runs) <= LARGEST_NUMBER).all() or (runs % 1).any():
        raise _must("have counts that are whole numbers", counts)
    return {"size": (side(size[0]), side(size[1])), "counts": runs.astype(np.int64)}


def _array(value: Any, rule: str) -> NDArray[Any]:
    """Convert a list of numbers to an array."""
    try:
        array = np.array(value if isinstance(value, list) else None)
    except (ValueError, OverflowError):  # ragged or too deep lists, too large numbers
        raise _must(rule, value) from None
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise _must(rule, value)
    return array


def _place(source: str | Path, kind: str, number: int, entry: Any) -> str:
    known = entry.get("id", entry.get("image_id")) if isinstance(entry, Mapping) else None
    what = "id" if isinstance(entry, Mapping) and "id" in entry else "image"
    named = f", {what} {known!r:.40}" if isinstance(known, int | str | float) else ""
    return f"{source}, {kind}[{number}]{named}" if kind else f"{source}, entry {number}{named}"


def _entry(entry: Any, schema: Schema, source: Path, kind: str, number: int) -> Entry:
    """Validate an entry; adds its location as ``list`` and ``number``."""
    if not isinstance(entry, dict):
        raise DataError(f"{_place(source, kind, number, entry)}: is {reprlib.repr(entry)}, no JSON object")
    taken: dict[str, Any] = {"list": kind, "number": number}
    for name, rule in schema.items():
        value = entry.get(name)
        if value is not None:
            try:
                taken[name] = rule.check(value)
            except ValueError as error:
                raise DataError(f"{_place(source, kind, number, entry)}: {name} {error}") from None
        elif rule.default is REQUIRED:
            raise DataError(f"{_place(source, kind, number, entry)}: lacks '{name}'")
        else:
            taken[name] = rule.default
    if "segments_info" in schema:
        where = _place(source, kind, number, entry)
        taken["segments_info"] = tuple(
            _entry(segment, SEGMENT, source, f"{where.removeprefix(f'{source}, ')}, segments_info", n)
            for n, segment in enumerate(taken["segments_info"])
        )
        _refuse_twice((segment["id"] for segment in taken["segments_info"]), where, "segment")
    return taken


def _by_image(
    entries: Iterable[Any], schema: Schema, source: Path, kind: str, faults: dict[ImageId, str], key: str = "image_id"
) -> dict[ImageId, list[Entry]]:
    """Validate entries and group them by image; the first error of each image is added to ``faults``."""
    by_image: dict[ImageId, list[Entry]] = {}
    for number, entry in enumerate(entries):
        try:
            taken = _entry(entry, schema, source, kind, number)
        except DataError as error:
            image = _entry(entry, {key: schema[key]}, source, kind, number)[key]
            by_image.setdefault(image, [])
            faults.setdefault(image, str(error))
        else:
            by_image.setdefault(taken[key], []).append(taken)
    return by_image


def _part(document: Any, name: str, source: Path) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get(name), list):
        raise DataError(f"{source}: has no list '{name}'; expected a COCO document of images, annotations and categories")
    part: list[Any] = document[name]
    return part


def _refuse_twice(identities: Iterable[ImageId], source: Path | str, what: str) -> None:
    seen: set[ImageId] = set()
    for entry_id in identities:
        if entry_id in seen:
            raise DataError(f"{source}: {what} {entry_id!r:.60} is there more than once; remove the duplicates")
        seen.add(entry_id)
