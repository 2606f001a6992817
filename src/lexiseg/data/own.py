"""A user's own data, opened without writing Python: label maps, COCO instances, or COCO panoptic.

    a folder        ``images/`` and ``labels/`` (or other names of `PAIRS`), label maps of the pictures' names, and a
                    ``classes.txt``: a list of classes as in `lexiseg.text.class_lists`, of which the ids are the values of
                    the label maps (without ids the places in the list, from 0); ``11: void`` is a value that is not
                    measured, and 255 (65535 where an id is 255 or more) never is
    a folder        with ``panoptic.json`` or one other JSON: as below
    a COCO JSON     of instances, with the folder of the pictures
    a COCO JSON     of panoptic segments, with the PNGs in a folder of the JSON's name, and the folder of the pictures

Folders that are not named are looked for in the data set's own.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.readers import (
    Reader,
    category_table,
    coco_vocabulary,
    instance_samples,
    pair_samples,
    panoptic_samples,
    picture_of,
    read_instances,
    read_panoptic,
    read_panoptic_as_instances,
    read_panoptic_as_labels,
    refuse_strangers,
    semantic_dataset,
)
from lexiseg.errors import DataError
from lexiseg.ops.coco import CocoTruth, place_of, png_folder, read_coco
from lexiseg.ops.files import find_files
from lexiseg.ops.label_table import LabelTable
from lexiseg.text.vocabulary import ClassList, Vocabulary

PAIRS = (  # folders of pictures, folders of label maps
    ("images", "labels"),
    ("images", "annotations"),
    ("images", "masks"),
    ("image", "label"),
    ("val", "valannot"),
    ("test", "testannot"),
    ("train", "trainannot"),
    ("img_dir", "ann_dir"),
    ("JPEGImages", "SegmentationClass"),
)
MAP_ENDINGS = (".png", ".tif", ".tiff")
CLASSES = "classes.txt"


def open_own(
    path: str | Path,
    *,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    vocabulary: str | Path | None = None,
) -> Dataset:
    """The data set at a path.

    Args:
        path: a folder, or a COCO JSON.
        images: the folder of the pictures, if it is not found by itself.
        labels: the folder of the label maps or of the panoptic PNGs, if it is not found by itself.
        vocabulary: of label maps, in place of the folder's ``classes.txt``: the name of a built-in list, or another file.

    Raises:
        DataError: if there is nothing of the kind, or files are missing or damaged; it says what was looked for.
        UsageError: if the vocabulary is not to be understood.
    """
    path = Path(path)
    given_images, given_labels = (None if folder is None else Path(folder) for folder in (images, labels))
    if path.is_file():
        return _open_json(path, given_images, given_labels)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; give a folder with pictures and truths, or a COCO JSON")
    if given_labels is None and (source := _json_in(path)):
        return _open_json(source, given_images, None)
    found_images, found_labels = _pair(path, given_images, given_labels)
    return open_label_maps(found_images, found_labels, _classes(path, vocabulary), name=str(path))


def open_label_maps(images: Path, labels: Path, classes: tuple[Vocabulary, LabelTable], *, name: str) -> Dataset:
    """Pictures and label maps of the same names, with what `read_classes` says of the ids.

    Raises:
        DataError: if pictures have no label map.
    """
    vocabulary, table = classes
    ending = next((end for end in MAP_ENDINGS if find_files(labels, end)), MAP_ENDINGS[0])
    return semantic_dataset(name, vocabulary, pair_samples(images, labels, truth_ending=ending), table)


def open_panoptic(source: Path, images: Path, truths: Path | None = None, *, name: str | None = None) -> Dataset:
    """A COCO panoptic JSON; semantic and instance truths are read from its segments.

    Args:
        source: the JSON.
        images: the folder of the pictures.
        truths: the folder of the PNGs; None for that of the JSON's name, or else the JSON's own.
        name: of the data set; None for the JSON's path.

    Raises:
        DataError: if files are missing or damaged.
    """
    return _panoptic(read_coco(source, panoptic=True), images, truths or png_folder(source), name or str(source))


def read_classes(name_or_path: str | Path) -> tuple[Vocabulary, LabelTable]:
    """The classes of a built-in list or in a file like ``classes.txt``, and which id of the label maps each has.

    Raises:
        UsageError: as `lexiseg.text.vocabulary.ClassList.load`.
    """
    words = ClassList.load(name_or_path)
    return words.vocabulary, LabelTable.of_ids(words.ids, words.void)


def _classes(folder: Path, vocabulary: str | Path | None) -> tuple[Vocabulary, LabelTable]:
    if vocabulary is not None:
        return read_classes(vocabulary)
    for path in (folder / CLASSES, folder.parent / CLASSES):
        if path.is_file():
            return read_classes(path)
    raise DataError(
        f"{folder}: no {CLASSES} in it or beside it; write one with one class a line ('dog, puppy', the first line is id 0;"
        " or '7: dog, puppy' with the id), or name a vocabulary"
    )


def _json_in(folder: Path) -> Path | None:
    """The COCO JSON of a folder: ``panoptic.json``, or its only JSON that is not our own list of classes."""
    if (folder / "panoptic.json").is_file():
        return folder / "panoptic.json"
    found = sorted(path for path in folder.glob("*.json") if path.name != "classes.json" and path.name[0] != ".")
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: holds several JSON files ({listed}); name the one you mean")
    return found[0] if found else None


def _pair(folder: Path, images: Path | None, labels: Path | None) -> tuple[Path, Path]:
    """The folders of pictures and of label maps."""
    if images is not None and labels is not None:
        return images, labels
    for one, other in PAIRS:
        found = images or folder / one, labels or folder / other
        if all(place.is_dir() for place in found):
            return found
    pairs = ", ".join(f"{one}/ + {other}/" for one, other in PAIRS)
    raise DataError(
        f"{folder}: cannot tell pictures from truths; looked for a COCO JSON, and for the folders {pairs}."
        " Rename yours so, or name both folders"
    )


def _open_json(source: Path, images: Path | None, truths: Path | None) -> Dataset:
    document = read_coco(source)
    folder = images or _images_of(document)
    if document.panoptic:
        return _panoptic(document, folder, truths or png_folder(source), str(source))
    table = category_table(entry["id"] for entry in document.categories)
    readers = {"instance": partial(read_instances, table=table)}
    samples, vocabulary = instance_samples(document, folder), coco_vocabulary(document)
    return Dataset(str(source), vocabulary, samples, readers, tuple(table.labels), federated=document.federated)


def _panoptic(document: CocoTruth, images: Path, truths: Path, name: str) -> Dataset:
    table, vocabulary = category_table(entry["id"] for entry in document.categories), coco_vocabulary(document)
    things = frozenset(label for label, thing in enumerate(vocabulary.things) if thing)
    readers: dict[str, Reader] = {
        "semantic": partial(read_panoptic_as_labels, table=table),
        "panoptic": partial(read_panoptic, table=table),
        "instance": partial(read_panoptic_as_instances, table=table, things=things),
    }
    return Dataset(name, vocabulary, panoptic_samples(document, truths, images), readers, tuple(table.labels))


def _images_of(document: CocoTruth) -> Path:
    """The folder beside or above the JSON in which its first picture lies."""
    refuse_strangers(document)
    if not document.images:
        raise DataError(f"{document.source}: lists no pictures; is it a COCO JSON of a truth?")
    near, first = document.source.parent, document.images[0]
    names = sorted({one for one, _ in PAIRS})
    places = [near, *(near / name for name in names), *(near.parent / name for name in names)]
    for folder in places:
        if (folder / picture_of(first, folder, place_of(document.source, first))).is_file():
            return folder
    file = picture_of(first, near, place_of(document.source, first))
    raise DataError(
        f"{document.source}: the picture {file} is not beside it nor in {', '.join(names)}; name the folder of the pictures"
    )
