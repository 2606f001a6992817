"""Readers of the formats of ground truth.

A sample's ``annotation`` is a dict from task to what the reader needs:

    task        ``sample.annotation[task]``     read by                     format
    semantic    the `Path` of a label map       `read_label_map`            a PNG or TIF of raw ids, 8 or 16 bits
    semantic    (that of panoptic)              `read_panoptic_as_labels`   COCO panoptic
    panoptic    `PanopticRecord`                `read_panoptic`             COCO panoptic: JSON + PNG of colours
    instance    `InstanceRecord`                `read_instances`            COCO instances, LVIS
    instance    (that of panoptic)              `read_panoptic_as_instances`  COCO panoptic

A reader of a `Dataset` is one of these functions with its table bound: ``partial(read_label_map, table=table)``, which can be
pickled for loader processes. Faults of a file raise a `DataError` that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lexiseg.data.dataset import Dataset, Sample, Truth
from lexiseg.data.images import ValueT, orientation_of, turned, turned_box
from lexiseg.errors import DataError
from lexiseg.ops.coco import CocoTruth, Entry, ImageId, instance_of, place_of, read_ids
from lexiseg.ops.files import find_files
from lexiseg.ops.label_table import LabelTable, listed
from lexiseg.ops.names import below, relative_name
from lexiseg.ops.pictures import opened_picture, read_values
from lexiseg.ops.rle import decode_counts, encode_masks
from lexiseg.structures import IGNORED, Instance, Instances, PanopticMap, PanopticSegment, Size
from lexiseg.text.vocabulary import ClassName, Vocabulary

PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")  # suffixes of pictures of data sets
SHOWN = 3  # missing files named in a message

Reader = Callable[[Sample], Truth]


@dataclass(frozen=True)
class PanopticRecord:
    """COCO panoptic annotation of one picture.

    Attributes:
        png: the PNG of segment ids.
        segments: its ``segments_info``.
        source: the JSON, for messages.
        fault: what is wrong with the annotation, raised when it is read.
    """

    png: Path
    segments: Sequence[Entry] = field(repr=False)
    source: Path
    fault: str | None = None


@dataclass(frozen=True)
class InstanceRecord:
    """COCO instance annotations of one picture.

    Attributes:
        annotations: its annotations.
        size: (height, width) as stated in the JSON.
        source: the JSON, for messages.
        checked: the category ids that were annotated, or None for all (LVIS: those with instances and verified absent ones).
        partly: the category ids not annotated exhaustively (LVIS: ``not_exhaustive_category_ids``).
        fault: what is wrong with the annotations, raised when they are read.
    """

    annotations: Sequence[Entry] = field(repr=False)
    size: Size
    source: Path
    checked: frozenset[int] | None = None
    partly: frozenset[int] = frozenset()
    fault: str | None = None


# --- files ------------------------------------------------------------------------------------------------------------


def read_colours(path: Path) -> NDArray[np.uint8]:
    """Read the colours [H, W, 3] of a colour-coded picture.

    Raises:
        DataError: if the file is missing or damaged.
    """
    with opened_picture(path) as opened:
        return np.array(opened if opened.mode == "RGB" else opened.convert("RGB"))


def picture_size(path: Path) -> Size:
    """Read the (height, width) of an upright picture from its header.

    Raises:
        DataError: if the file is missing or not a picture.
    """
    return _upright_size(path)[0]


def upright(values: NDArray[ValueT], sample: Sample, source: Path) -> NDArray[ValueT]:
    """Transpose a truth [H, W, …], if needed, to the upright picture: see `orientation_of_truth`."""
    return turned(values, orientation_of_truth((values.shape[0], values.shape[1]), sample, source))


def orientation_of_truth(size: Size, sample: Sample, source: Path) -> int:
    """Return the EXIF orientation to apply to a truth to fit the upright picture; 1 if it fits as it is.

    A truth of the upright picture's size is aligned with it, one of the stored size with the stored pixels. If both sizes are
    equal, ``sample.stored`` decides.

    Args:
        size: (height, width) of the truth.
        sample: the picture.
        source: the file the truth was read from, for messages.

    Raises:
        DataError: the truth is of neither size.
    """
    expected, orientation = _upright_size(sample.image)
    fitting = _fitting(size, expected, orientation)
    if not fitting:
        stored = f", EXIF orientation {orientation}: stored on its side" if orientation >= 5 else ""
        raise DataError(
            f"{source}: the truth of '{sample.key}' has {size[0]} × {size[1]} pixels (height × width), the picture"
            f" {sample.image} {expected[0]} × {expected[1]}{stored}; one of them was resized or belongs to another picture"
        )
    return orientation if (sample.stored if len(fitting) == 2 else fitting == {"stored"}) else 1


def orientations(samples: Iterable[Sample]) -> dict[str, int]:
    """Count pictures with an EXIF orientation, and how their truths are aligned, from the headers of the files.

    Only truths of the formats above count. Files that cannot be read are skipped.

    Returns:
        ``pictures``: those with an orientation other than 1; of these ``upright``, ``stored``: those whose truths fit only the
        upright picture, or only the stored pixels; ``undecided``: those whose truths fit both.
    """
    counts = dict.fromkeys(("pictures", "upright", "stored", "undecided"), 0)
    for sample in samples:
        with suppress(DataError):
            expected, orientation = _upright_size(sample.image)
            if orientation == 1:
                continue
            counts["pictures"] += 1
            fitting = _fitting(_size_of_truth(sample), expected, orientation)
            if fitting:
                counts["undecided" if len(fitting) == 2 else fitting.pop()] += 1
    return counts


def _size_of_truth(sample: Sample) -> Size:
    """Return the (height, width) of a truth of the formats above, as stored.

    Raises:
        DataError: if its file is missing or not a picture.
    """
    if "instance" in sample.annotation:
        return sample.annotation["instance"].size
    path = sample.annotation["semantic"] if "semantic" in sample.annotation else sample.annotation["panoptic"].png
    with opened_picture(path) as opened:
        return opened.size[1], opened.size[0]


def only_masks_of_bytes(dataset: Dataset, samples: Iterable[Sample]) -> bool:
    """Return whether label maps hold only 0 and 255, with 255 ignored: binary masks, as many programs write them."""
    reader = dataset.readers.get("semantic")
    if not (isinstance(reader, partial) and reader.func is read_label_map and 255 in reader.keywords["table"].ignored):
        return False
    with suppress(DataError):
        values: set[int] = set()
        for sample in samples:
            values.update(np.unique(read_values(sample.annotation["semantic"])).tolist())
            if not values <= {0, 255}:
                return False
        return 255 in values
    return False


def _upright_size(path: Path) -> tuple[Size, int]:
    """Return the (height, width) of an upright picture, and its EXIF orientation."""
    with opened_picture(path) as opened:
        wide, high = opened.size  # already upright for a TIFF
        orientation = orientation_of(opened)
        on_its_side = orientation >= 5 and opened.format != "TIFF"
    return (wide, high) if on_its_side else (high, wide), orientation


def _fitting(size: Size, expected: Size, orientation: int) -> set[str]:
    """Return how a truth of a size may be aligned: "upright", "stored", both or none; never "stored" for orientation 1."""
    stored = expected[::-1] if orientation >= 5 else expected
    fitting = {"upright"} if tuple(size) == expected else set()
    return fitting | {"stored"} if orientation != 1 and tuple(size) == stored else fitting


# --- samples ----------------------------------------------------------------------------------------------------------


def find_pictures(folder: Path, ending: str | tuple[str, ...] = PICTURES) -> list[Path]:
    """Find files as `lexiseg.ops.files.find_files` does, at least one.

    Raises:
        DataError: if there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `lexiseg data check` says how to get it")
    paths = find_files(folder, ending)
    if not paths:
        listed = ending if isinstance(ending, str) else " or ".join(ending)
        raise DataError(f"{folder}: holds no file that ends in {listed}; was it unpacked elsewhere?")
    return paths


def refuse_missing(missing: Sequence[str], what: str) -> None:
    """Raise DataError if ``missing`` is not empty, naming the first few; ``what`` is the fault, such as "not in FOLDER"."""
    if missing:
        noun = "picture is" if len(missing) == 1 else "pictures are"
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(f"{len(missing)} {noun} {what}: {', '.join(missing[:SHOWN])}{more}; fetch or unpack them again")


def pair_samples(
    images: Path,
    truths: Path,
    *,
    image_ending: str | tuple[str, ...] = PICTURES,
    truth_ending: str = ".png",
    names: Sequence[str] | None = None,
) -> tuple[Sample, ...]:
    """Pair pictures with label maps, in two folders with the same relative names but for the suffixes.

    Args:
        images, truths: the folders; they may have subfolders of the same names.
        image_ending, truth_ending: suffix that is not part of the name: ``.jpg``, ``_leftImg8bit.png``.
        names: the pictures of the split in order, without suffix; None for all in ``images``.

    Returns:
        Samples with ``annotation = {"semantic": path}``; the key is the relative name without suffix.

    Raises:
        DataError: if a folder is missing or empty, pictures have no label map (names the first few), or `relative_name`
            refuses a name.
    """
    pictures = find_pictures(images, image_ending)
    paths = {relative_name(_name(path, images, image_ending), str(path)): path for path in pictures}
    if len(paths) < len(pictures):
        raise DataError(f"{images}: holds pictures that differ only in their ending; keep one of each")
    maps = find_files(truths, truth_ending)
    by_name = {_name(path, truths, truth_ending): path for path in maps}
    if len(by_name) < len(maps):
        raise DataError(
            f"{truths}: holds label maps that differ only in upper and lower case of their ending; keep one of each"
        )
    wanted = list(paths) if names is None else list(names)
    refuse_missing([name for name in wanted if name not in paths], f"not in {images}, but in the list of the split")
    label_maps = {name: by_name.get(_name(paths[name], images, image_ending)) for name in wanted}
    missing = [str(paths[name]) for name, path in label_maps.items() if path is None]
    refuse_missing(missing, f"without a label map *{truth_ending} of the same name in {truths}")
    return tuple(Sample(name, paths[name], name, {"semantic": label_maps[name]}) for name in wanted)


def instance_samples(document: CocoTruth, images: Path) -> tuple[Sample, ...]:
    """Return the samples of a COCO instances JSON, with ``annotation = {"instance": InstanceRecord}``.

    Faults of a picture's annotations are raised when they are read.

    Args:
        document: from `lexiseg.ops.coco.read_coco`.
        images: the folder of the pictures, see `picture_of`.

    Raises:
        DataError: if the JSON is not of instances, or its entries are inconsistent; if pictures are missing, or `relative_name`
            refuses a name (it would leave its folder); names the JSON.
    """
    if document.panoptic:
        raise DataError(f"{document.source}: holds panoptic segments; expected instances, with a 'segmentation' each")
    refuse_strangers(document)
    source, samples = document.source, []
    for entry in document.images:
        where, annotations = place_of(source, entry), document.annotations.get(entry["id"], ())
        file = picture_of(entry, images, where)
        checked = None
        if entry["neg_category_ids"] is not None:
            checked = frozenset(entry["neg_category_ids"]).union(annotation["category_id"] for annotation in annotations)
        record = InstanceRecord(
            annotations,
            (entry["height"], entry["width"]),
            source,
            checked,
            frozenset(entry["not_exhaustive_category_ids"] or ()),
            document.faults.get(entry["id"]),
        )
        samples.append(Sample(_key(file, where), images / file, entry["id"], {"instance": record}))
    return _with_pictures(samples, source)


def panoptic_samples(
    document: CocoTruth, truths: Path, images: Path, *, picture_ending: str | None = None
) -> tuple[Sample, ...]:
    """Return the samples of a COCO panoptic JSON, with ``annotation = {"panoptic": PanopticRecord}``.

    Faults of a picture's annotation are raised when it is read.

    Args:
        document: from `lexiseg.ops.coco.read_coco`.
        truths: the folder of the PNGs.
        images: the folder of the pictures.
        picture_ending: suffix of the pictures (``.jpg``), if not as the JSON states.

    Raises:
        DataError: as `instance_samples`; if a PNG is missing.
    """
    source, samples = document.source, []
    if document.annotations and not document.panoptic:
        raise DataError(f"{source}: holds instances; expected panoptic segments, in annotations with 'segments_info'")
    refuse_strangers(document)
    listed = {entry["id"]: entry for entry in document.images}
    for image, entries in document.annotations.items():
        where = place_of(source, listed[image])
        if picture_ending:  # the pictures have the names of the JSON, but for the suffix
            key = _key(relative_name(_file_name(listed[image], where), where), where)
            file = f"{key}{picture_ending}"
        else:
            file = picture_of(listed[image], images, where)
            key = _key(file, where)
        if image in document.faults:
            record = PanopticRecord(source, (), source, document.faults[image])
        else:
            (annotation,) = entries
            png = below(truths, annotation["file_name"], f"{place_of(source, annotation)}, its PNG")
            record = PanopticRecord(png, annotation["segments_info"], source)
        samples.append(Sample(key, images / file, image, {"panoptic": record}))
    bare = [str(sample.image) for sample in samples if not sample.annotation["panoptic"].png.is_file()]
    refuse_missing(bare, f"without the PNG in {truths} that {source} lists")
    return _with_pictures(samples, source)


def refuse_strangers(document: CocoTruth) -> None:
    """Raise DataError if an entry of a COCO document's images is invalid, or annotations are of an unlisted image."""
    known: set[ImageId] = {entry["id"] for entry in document.images}
    for image in document.annotations:
        if image not in known and image not in document.faults:
            raise DataError(f"{document.source}: an annotation is of image {image!r:.60}, which is not listed")
    for image, fault in document.faults.items():
        if image not in known:
            raise DataError(fault)


def picture_of(entry: Entry, images: Path, where: str) -> str:
    """Return the path, relative to ``images``, of the picture of an entry of a JSON's ``images``.

    It is its ``file_name``, or else the end of its ``coco_url``: of ``http://…/val2017/1.jpg`` that is ``val2017/1.jpg``, or
    ``1.jpg`` if only this file exists. ``where`` locates the entry in messages.

    Raises:
        DataError: if it has neither, or `relative_name` refuses the name.
    """
    if entry["file_name"] is None and entry["coco_url"] is not None:
        parts = entry["coco_url"].replace("\\", "/").split("/")
        names = [relative_name("/".join(parts[-count:]), where) for count in (2, 1)]
        return next((name for name in names if (images / name).is_file()), names[0])
    return relative_name(_file_name(entry, where), where)


def join_samples(samples: Sequence[Sample], *others: Sequence[Sample]) -> tuple[Sample, ...]:
    """Add the annotations of other samples with the same keys to ``samples``.

    Raises:
        DataError: if others lack a key.
    """
    joined = list(samples)
    for other in others:
        by_key = {sample.key: sample.annotation for sample in other}
        kinds = sorted({task for annotation in by_key.values() for task in annotation})
        refuse_missing([sample.key for sample in joined if sample.key not in by_key], f"without a truth for {', '.join(kinds)}")
        joined = [replace(sample, annotation={**sample.annotation, **by_key[sample.key]}) for sample in joined]
    return tuple(joined)


def coco_vocabulary(document: CocoTruth) -> Vocabulary:
    """Return the classes of a COCO document in the order of its ``categories``.

    Raises:
        DataError: if there are none; if a category has no name, or no ``isthing`` in a panoptic document.
    """
    if not document.categories:
        raise DataError(f"{document.source}: has no categories; list the classes in 'categories'")
    for entry in document.categories:
        if entry["name"] is None:
            raise DataError(f"{place_of(document.source, entry)}: lacks 'name', which the model needs; name the class")
    named = zip(document.categories, document.things(), strict=True)
    return Vocabulary(tuple(ClassName(entry["name"], thing=thing) for entry, thing in named))


def category_table(category_ids: Iterable[int], ignored: Collection[int] = ()) -> LabelTable:
    """Return the table from ``category_ids`` to labels 0, 1, …."""
    return LabelTable({raw: label for label, raw in enumerate(category_ids)}, frozenset(ignored))


def semantic_dataset(name: str, vocabulary: Vocabulary, samples: Sequence[Sample], table: LabelTable | None = None) -> Dataset:
    """Build a data set of label maps only; without a table the raw ids are the labels (`LabelTable.of_ids`)."""
    table = table or LabelTable.of_ids(range(len(vocabulary)))
    raw_ids = {label: raw for raw, label in reversed(list(table.labels.items()))}  # the first of several ids of a label
    return Dataset(
        name,
        vocabulary,
        tuple(samples),
        {"semantic": partial(read_label_map, table=table)},
        tuple(raw_ids.get(label, label) for label in range(len(vocabulary))),
    )


# --- truths -----------------------------------------------------------------------------------------------------------


def read_label_map(sample: Sample, *, table: LabelTable) -> NDArray[np.int32]:
    """Read labels [H, W] from the label map ``sample.annotation["semantic"]``, `IGNORED` for unlabelled pixels.

    Raises:
        DataError: if the file is missing, damaged, not of the picture's size, or has an id outside the table.
    """
    path: Path = sample.annotation["semantic"]
    return upright(table.map(read_values(path), str(path)), sample, path)


def read_panoptic(sample: Sample, *, table: LabelTable) -> PanopticMap:
    """Read the panoptic truth in ``sample.annotation["panoptic"]``; segments the table ignores become void.

    Segments listed in the JSON but absent from the PNG are kept: the official score counts them as missed.

    Raises:
        DataError: if the PNG is missing, damaged or not of the picture's size, shows a segment the JSON does not list, or
            a segment has a category outside the table.
    """
    record: PanopticRecord = sample.annotation["panoptic"]
    if record.fault is not None:
        raise DataError(record.fault)
    ids = upright(read_ids(record.png), sample, record.png)
    labels = {entry["id"]: table.label(entry["category_id"], place_of(record.source, entry)) for entry in record.segments}
    shown = np.unique(ids)
    if unlisted := [int(number) for number in shown if number and int(number) not in labels]:
        raise DataError(
            f"{record.png}: shows segment {listed(unlisted)}, which {record.source} does not list for image"
            f" {sample.image_id}; are the PNG and the JSON of the same version?"
        )
    left_out = [number for number, label in labels.items() if label == IGNORED]
    if left_out:
        ids = np.where(np.isin(ids, left_out), 0, ids).astype(np.int32)
    segments = [
        PanopticSegment(entry["id"], labels[entry["id"]], entry["iscrowd"], entry["area"])
        for entry in record.segments
        if labels[entry["id"]] != IGNORED
    ]
    return PanopticMap(ids, tuple(segments))


def read_panoptic_as_labels(sample: Sample, *, table: LabelTable) -> NDArray[np.int32]:
    """Read a panoptic truth as labels [H, W]: each segment's class, crowds included, `IGNORED` for void.

    Raises:
        DataError: as `read_panoptic`.
    """
    return panoptic_to_labels(read_panoptic(sample, table=table))


def panoptic_to_labels(panoptic: PanopticMap) -> NDArray[np.int32]:
    """Convert a panoptic map to labels [H, W], `IGNORED` for void."""
    numbers = np.array([0, *(segment.id for segment in panoptic.segments)])
    labels = np.array([IGNORED, *(segment.label for segment in panoptic.segments)], np.int32)
    order = np.argsort(numbers)
    return labels[order][np.searchsorted(numbers[order], panoptic.ids)]


def read_instances(sample: Sample, *, table: LabelTable) -> Instances:
    """Read the instances in ``sample.annotation["instance"]``, without categories that the table ignores.

    Raises:
        DataError: if the picture's size differs from the JSON's, a category is outside the table, or a mask is neither
            polygons nor run lengths of that size.
    """
    record: InstanceRecord = sample.annotation["instance"]
    if record.fault is not None:
        raise DataError(record.fault)
    orientation = orientation_of_truth(record.size, sample, record.source)
    things, where = [], f"{record.source}, image {sample.image_id}"
    for entry in record.annotations:
        source = place_of(record.source, entry)
        label = table.label(entry["category_id"], source)
        if label != IGNORED:
            things.append(_turned_instance(instance_of(entry, label, record.size, source), record.size, orientation))
    size = (record.size[1], record.size[0]) if orientation >= 5 else record.size
    checked = None if record.checked is None else table.labels_of(record.checked, where)
    return Instances(size, tuple(things), checked, table.labels_of(record.partly, where))


def read_panoptic_as_instances(sample: Sample, *, table: LabelTable, things: Collection[int]) -> Instances:
    """Read the things of a panoptic truth as instances, for data sets without instance files; ``things`` are labels.

    Raises:
        DataError: as `read_panoptic`.
    """
    return panoptic_to_instances(read_panoptic(sample, table=table), things)


def panoptic_to_instances(panoptic: PanopticMap, things: Collection[int]) -> Instances:
    """Convert the segments whose labels are in ``things`` to instances."""
    chosen = [segment for segment in panoptic.segments if segment.label in things]
    labels = {segment.id: segment.label for segment in chosen}
    return instances_of_map(panoptic.ids, labels, {segment.id for segment in chosen if segment.crowd})


def instances_of_map(ids: NDArray[Any], labels: Mapping[int, int], crowds: Collection[int] = ()) -> Instances:
    """Convert a map [H, W] of instance ids to instances.

    Args:
        ids: the map.
        labels: the label of each instance id; other values of the map are ignored.
        crowds: the ids that are crowds.
    """
    things = []
    for number in np.unique(ids):
        if int(number) not in labels:
            continue
        mask = ids == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))
        (counts,) = encode_masks(torch.from_numpy(mask[None]))
        things.append(Instance(labels[int(number)], counts, float(mask.sum()), box, int(number) in crowds))
    return Instances((ids.shape[0], ids.shape[1]), tuple(things))


def _turned_instance(thing: Instance, size: Size, orientation: int) -> Instance:
    """Transpose an instance of a picture stored as ``size`` to the upright picture."""
    if orientation == 1:
        return thing
    mask = turned(decode_counts(thing.counts, size).numpy(), orientation)
    (counts,) = encode_masks(torch.from_numpy(mask[None]))
    return replace(thing, counts=counts, box=turned_box(thing.box, size, orientation))


# --- details ----------------------------------------------------------------------------------------------------------


def _with_pictures(samples: Sequence[Sample], source: Path) -> tuple[Sample, ...]:
    """Return the samples; raise DataError if there are none, keys are not unique, or pictures are missing."""
    if not samples:
        raise DataError(f"{source}: lists no pictures; is it the right file?")
    if len({sample.key for sample in samples}) < len(samples):
        raise DataError(
            f"{source}: lists a picture twice, or two that differ only in their ending; give each one entry and its own name"
        )
    refuse_missing([str(sample.image) for sample in samples if not sample.image.is_file()], f"missing, but {source} lists them")
    return tuple(samples)


def _name(path: Path, folder: Path, ending: str | tuple[str, ...]) -> str:
    relative = path.relative_to(folder).as_posix()
    endings = (ending,) if isinstance(ending, str) else ending
    return relative[: -max(len(end) for end in endings if relative.lower().endswith(end.lower()))]


def _key(file: str, where: str) -> str:
    """Return a picture's name without suffix."""
    return relative_name(file.removesuffix(PurePosixPath(file).suffix), where)


def _file_name(entry: Entry, where: str) -> str:
    if entry["file_name"] is None:
        raise DataError(f"{where}: lacks 'file_name', the path of the picture; add it")
    name: str = entry["file_name"]
    return name
