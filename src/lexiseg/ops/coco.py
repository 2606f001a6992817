"""COCO's files, read by one schema for all commands: instances (LVIS's too), panoptic segments, and lists of results.

The tables below are the schema: which fields of an entry are read, what each must be, and what stands for one that is missing
or null. An entry that does not fit is a `DataError` that names the file, the entry and the field:

    truth.json, annotations[3], id 17: category_id must be a whole number, not 'x'

What is wrong with one picture's entries is that picture's fault (`CocoTruth.faults`), so that it can be left out and the rest
be measured; what is wrong with the whole is raised at once.
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

LARGEST_NUMBER = 2**53  # up to here every whole number is one in JSON, whatever reads it
LARGEST_SIDE = 65_535  # of a picture, in pixels: JPEG's limit
LARGEST_SEGMENT = 2**24 - 1  # what R + 256 G + 65536 B can be
REQUIRED = object()


# --- the schema -------------------------------------------------------------------------------------------------------


def whole(value: Any) -> int:
    """5, and 5.0, which some programs write for it."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise _must("be a whole number", value)
    return value


def identity(value: Any) -> ImageId:
    """A whole number or a name."""
    return value if isinstance(value, str) else whole(value)


def side(value: Any) -> int:
    """Pixels along a side of a picture."""
    if not 1 <= whole(value) <= LARGEST_SIDE:
        raise _must(f"be 1 to {LARGEST_SIDE} pixels", value)
    return whole(value)


def segment_id(value: Any) -> int:
    """A number that a colour can be; black is void."""
    if not 1 <= whole(value) <= LARGEST_SEGMENT:
        raise _must(f"be 1 to {LARGEST_SEGMENT} (0 is void)", value)
    return whole(value)


def finite(value: Any) -> float:
    """A number that is neither NaN nor infinite."""
    if type(value) not in (int, float) or not abs(value) <= LARGEST_NUMBER:
        raise _must("be a finite number", value)
    return float(value)


def area(value: Any) -> float:
    """A number of pixels; that of a polygon is no whole one."""
    if finite(value) < 0:
        raise _must("be 0 or more", value)
    return float(value)


def flag(value: Any) -> bool:
    """0 or 1."""
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise _must("be 0 or 1", value)
    return bool(value)


def text(value: Any) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise _must("be a text", value)
    return value


def texts(value: Any) -> list[str]:
    """A list of texts."""
    return [text(item) for item in _list(value)]


def numbers(value: Any) -> list[int]:
    """A list of whole numbers."""
    return [whole(item) for item in _list(value)]


def box(value: Any) -> Box:
    """Left, top, width, height."""
    if len(_list(value)) != 4:
        raise _must("be four numbers", value)
    left, top, wide, high = (finite(number) for number in value)
    return left, top, wide, high


def segmentation(value: Any) -> list[NDArray[np.float64]] | dict[str, Any]:
    """Polygons as arrays of coordinates, or run lengths as ``size`` and ``counts``, an array or COCO's string."""
    if isinstance(value, dict):
        return _run_lengths(value)
    if not isinstance(value, list) or not value:
        raise _must("be polygons or run lengths", value)
    return [_polygon(part) for part in ([value] if isinstance(value[0], int | float) else value)]


@dataclass(frozen=True)
class Field:
    """What a field must be, and what stands for one that is missing or null."""

    check: Callable[[Any], Any]
    default: Any = REQUIRED


Schema = Mapping[str, Field]

IMAGE: Schema = {
    "id": Field(identity),
    "height": Field(side),
    "width": Field(side),
    "file_name": Field(text, None),
    "coco_url": Field(text, None),  # LVIS has no file_name
    "neg_category_ids": Field(numbers, None),  # LVIS: what was looked for and is not there,
    "not_exhaustive_category_ids": Field(numbers, None),  # and what is not marked everywhere
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
    """A COCO document of instances or panoptic segments, as the schema gives it.

    Attributes:
        source: the file.
        panoptic: whether its annotations are lists of segments.
        images: the entries that are in order.
        annotations: of each image's id its entries, those of images that are not listed too.
        categories: in the file's order.
        faults: of each image's id the first thing that is wrong with it.
    """

    source: Path
    panoptic: bool
    images: Sequence[Entry] = field(repr=False)
    annotations: Mapping[ImageId, Sequence[Entry]] = field(repr=False)
    categories: Sequence[Entry] = field(repr=False)
    faults: Mapping[ImageId, str] = field(default_factory=dict)

    @property
    def federated(self) -> bool:
        """Whether each image says what was looked for in it (LVIS)."""
        return any(image["neg_category_ids"] is not None for image in self.images)

    def things(self) -> list[bool]:
        """Whether each category is a thing.

        Raises:
            DataError: if one of a panoptic document does not say so.
        """
        for entry in self.categories if self.panoptic else ():
            if entry["isthing"] is None:
                raise DataError(f"{place_of(self.source, entry)}: lacks 'isthing'; write 1 for a thing, 0 for stuff")
        return [entry["isthing"] is not False for entry in self.categories]


def read_json(path: str | Path) -> Any:
    """The document in a JSON file, with or without a byte order mark.

    Raises:
        DataError: if the file is missing, cannot be read, or is not JSON.
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
    """A COCO document of images, annotations and categories.

    Args:
        path: the JSON.
        panoptic: whether the annotations must be lists of segments, or must not; None: as they are.

    Raises:
        DataError: if the file is missing or no such document; if a category, an image's id or the image of an annotation
            cannot be read; if two images or two categories have one id.
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
    """A list of COCO results.

    Returns:
        of each image's id its entries, and of those with something wrong the first thing that is.

    Raises:
        DataError: if the file is missing or no list; if the image of an entry cannot be read.
    """
    document = read_json(path)
    if not isinstance(document, list):
        raise DataError(f"{path}: holds a JSON {type(document).__name__}; expected a list of predictions")
    faults: dict[ImageId, str] = {}
    return _by_image(document, RESULT, Path(path), "", faults), faults


def read_panoptic_results(path: str | Path) -> tuple[Mapping[ImageId, Entry], Mapping[ImageId, str]]:
    """The annotations of a COCO panoptic document; nothing else of it counts in a result.

    Returns:
        of each image's id its entry, or the first thing that is wrong.

    Raises:
        DataError: if the file is missing or no such document; if the image of an entry cannot be read, or has two.
    """
    faults: dict[ImageId, str] = {}
    entries = _by_image(_part(read_json(path), "annotations", Path(path)), PANOPTIC, Path(path), "annotations", faults)
    _refuse_twice((image for image, found in entries.items() for _ in found), Path(path), "the annotation of image")
    return {image: found[0] for image, found in entries.items() if found}, faults


def place_of(source: str | Path, entry: Entry) -> str:
    """Where an entry stands, for messages: the file, its list, its place in it and its id."""
    return _place(source, entry["list"], entry["number"], entry)


def label_of(entry: Entry, labels: Mapping[int, int], place: str) -> int:
    """The label of an entry's category.

    Raises:
        DataError: if there is no such category.
    """
    if entry["category_id"] not in labels:
        raise DataError(f"{place}: category {entry['category_id']} is not among the categories of the truth")
    return labels[entry["category_id"]]


# --- masks ------------------------------------------------------------------------------------------------------------


def instance_of(entry: Entry, label: int, size: Size, place: str) -> Instance:
    """The instance of an entry of `INSTANCE` or `RESULT`; an area or a box it lacks is that of its mask.

    Raises:
        DataError: if its mask is none of an image of this size.
    """
    counts = mask_counts(entry["segmentation"], size, place)
    stated_area, stated_box = entry.get("area"), entry.get("bbox")
    if stated_box is None and "bbox" in entry:
        stated_box = tuple(coco_mask.toBbox({"size": list(size), "counts": compress(counts)}))
    return Instance(
        label,
        counts,
        float(area_of_counts(counts)) if stated_area is None else stated_area,
        (0.0, 0.0, 0.0, 0.0) if stated_box is None else stated_box,  # of results, which are not measured by boxes
        entry.get("iscrowd", False),
        entry.get("score", 1.0),
    )


def mask_counts(mask: Any, size: Size, place: str) -> Counts:
    """The runs of a mask as `segmentation` gives it.

    Raises:
        DataError: if the mask is none of an image of this size.
    """
    try:
        if isinstance(mask, list):
            return polygons_counts(mask, size)
        if mask["size"] != size:
            raise UsageError(f"it is of {list(mask['size'])} pixels, its image of {list(size)}")
        counts = mask["counts"]
        return check_counts(decompress(counts) if isinstance(counts, str) else counts, size)
    except UsageError as error:
        raise DataError(f"{place}: its mask cannot be read ({error}); repair or remove it") from None


def read_ids(path: Path) -> NDArray[np.int32]:
    """The segment ids [H, W] in the colours of a panoptic PNG, id = R + 256 G + 65536 B; a palette is one way to store them.

    Raises:
        DataError: if the file is missing, damaged, or not in colour.
    """
    with opened_picture(path) as picture:
        if picture.mode not in ("RGB", "RGBA", "P", "PA"):
            raise DataError(f"{path}: is not in colour ({picture.mode}); a panoptic PNG holds ids as R + 256 G + 65536 B")
        return ids_of_picture(picture)


def png_folder(source: Path) -> Path:
    """The folder of a panoptic JSON's PNGs: that of its name, or else its own."""
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
    """A list of numbers as an array."""
    try:
        array = np.array(value if isinstance(value, list) else None)
    except (ValueError, OverflowError):  # lists of different lengths or too deep, numbers without end
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
    """The fields of an entry, each as its check gives it, and where it stands."""
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
        place = _place(source, kind, number, entry)
        taken["segments_info"] = tuple(
            _entry(segment, SEGMENT, source, f"{place.removeprefix(f'{source}, ')}, segments_info", n)
            for n, segment in enumerate(taken["segments_info"])
        )
        _refuse_twice((segment["id"] for segment in taken["segments_info"]), place, "segment")
    return taken


def _by_image(
    entries: Iterable[Any], schema: Schema, source: Path, kind: str, faults: dict[ImageId, str], key: str = "image_id"
) -> dict[ImageId, list[Entry]]:
    """The entries of each image; what is wrong with one is noted as its image's fault, if it says which that is."""
    found: dict[ImageId, list[Entry]] = {}
    for number, entry in enumerate(entries):
        try:
            taken = _entry(entry, schema, source, kind, number)
        except DataError as error:
            image = _entry(entry, {key: schema[key]}, source, kind, number)[key]
            found.setdefault(image, [])
            faults.setdefault(image, str(error))
        else:
            found.setdefault(taken[key], []).append(taken)
    return found


def _part(document: Any, name: str, source: Path) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get(name), list):
        raise DataError(f"{source}: has no list '{name}'; expected a COCO document of images, annotations and categories")
    part: list[Any] = document[name]
    return part


def _refuse_twice(identities: Iterable[ImageId], source: Path | str, what: str) -> None:
    seen: set[ImageId] = set()
    for one in identities:
        if one in seen:
            raise DataError(f"{source}: {what} {one!r:.60} is there more than once; once is right")
        seen.add(one)
