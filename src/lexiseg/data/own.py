"""Open a user's own data: label maps, COCO instances, or COCO panoptic.

    a folder        ``images/`` and ``labels/`` (or other names of `PAIRS`), label maps with the pictures' names, and a
                    ``classes.txt``: a list of classes as in `lexiseg.text.class_lists`, whose ids are the values of the
                    label maps (by default the indices in the list, from 0); ``11: void`` is an ignored value, and 255
                    (65535 if an id is 255 or more) is always ignored
    a folder        with ``panoptic.json`` or one other JSON: as below
    a COCO JSON     of instances, with the folder of the pictures
    a COCO JSON     of panoptic segments, with the PNGs in a folder of the JSON's name, and the folder of the pictures

Folders that are not given are searched in the data set's own.
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
from lexiseg.ops.files import find_files, is_file, is_folder
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
    """Open the data set at a path.

    Args:
        path: a folder, or a COCO JSON.
        images: the folder of the pictures; None to search for it.
        labels: the folder of the label maps or of the panoptic PNGs; None to search for it.
        vocabulary: classes of the label maps, a built-in list or a file; None for the folder's ``classes.txt``.

    Raises:
        DataError: if there is no such data set, or files are missing or damaged; lists what was searched for.
        UsageError: if the vocabulary is invalid.
    """
    path = Path(path)
    given_images, given_labels = (None if folder is None else Path(folder) for folder in (images, labels))
    if is_file(path):
        return _open_json(path, given_images, given_labels)
    if not is_folder(path):
        raise DataError(f"{path}: no such file or folder; give a folder with pictures and truths, or a COCO JSON")
    if given_labels is None and (source := _json_in(path)):
        return _open_json(source, given_images, None)
    image_folder, label_folder = _pair(path, given_images, given_labels)
    return open_label_maps(image_folder, label_folder, _classes(path, vocabulary), name=str(path))


def open_label_maps(images: Path, labels: Path, classes: tuple[Vocabulary, LabelTable], *, name: str) -> Dataset:
    """Open pictures and label maps of the same names, with the classes and ids of `read_classes`.

    Raises:
        DataError: if pictures have no label map.
    """
    vocabulary, table = classes
    ending = next((end for end in MAP_ENDINGS if find_files(labels, end)), MAP_ENDINGS[0])
    return semantic_dataset(name, vocabulary, pair_samples(images, labels, truth_ending=ending), table)


def open_panoptic(source: Path, images: Path, truths: Path | None = None, *, name: str | None = None) -> Dataset:
    """Open a COCO panoptic JSON; semantic and instance truths are read from its segments.

    Args:
        source: the JSON.
        images: the folder of the pictures.
        truths: the folder of the PNGs; None for the folder of the JSON's name, or else the JSON's own folder.
        name: the name of the data set; None for the JSON's path.

    Raises:
        DataError: if files are missing or damaged.
    """
    return _panoptic(read_coco(source, panoptic=True), images, truths or png_folder(source), name or str(source))


def read_classes(name_or_path: str | Path) -> tuple[Vocabulary, LabelTable]:
    """Read the classes, and their ids in label maps, of a built-in list or a file like ``classes.txt``.

    Raises:
        UsageError: as `lexiseg.text.vocabulary.ClassList.load`.
    """
    classes = ClassList.load(name_or_path)
    return classes.vocabulary, LabelTable.of_ids(classes.ids, classes.void)


def _classes(folder: Path, vocabulary: str | Path | None) -> tuple[Vocabulary, LabelTable]:
    if vocabulary is not None:
        return read_classes(vocabulary)
    for path in (folder / CLASSES, folder.parent / CLASSES):
        if is_file(path):
            return read_classes(path)
    raise DataError(
        f"{folder}: no {CLASSES} in it or beside it; write one with one class a line ('dog, puppy', the first line is id 0;"
        " or '7: dog, puppy' with the id), or name a vocabulary"
    )


def _json_in(folder: Path) -> Path | None:
    """Return the COCO JSON of a folder: ``panoptic.json``, or its only JSON besides our ``classes.json``."""
    if is_file(folder / "panoptic.json"):
        return folder / "panoptic.json"
    documents = sorted(path for path in folder.glob("*.json") if path.name != "classes.json" and path.name[0] != ".")
    if len(documents) > 1:
        listed = ", ".join(path.name for path in documents)
        raise DataError(f"{folder}: holds several JSON files ({listed}); name the one you mean")
    return documents[0] if documents else None


def _pair(folder: Path, images: Path | None, labels: Path | None) -> tuple[Path, Path]:
    """Return the folders of pictures and of label maps."""
    if images is not None and labels is not None:
        return images, labels
    for image_name, label_name in PAIRS:
        pair = images or folder / image_name, labels or folder / label_name
        if all(is_folder(path) for path in pair):
            return pair
    pairs = ", ".join(f"{image_name}/ + {label_name}/" for image_name, label_name in PAIRS)
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
    """Return the folder, near the JSON, that holds its first picture."""
    refuse_strangers(document)
    if not document.images:
        raise DataError(f"{document.source}: lists no pictures; is it a COCO JSON of a truth?")
    near, first = document.source.parent, document.images[0]
    names = sorted({image_name for image_name, _ in PAIRS})
    for folder in [near, *(near / name for name in names), *(near.parent / name for name in names)]:
        if is_file(folder / picture_of(first, folder, place_of(document.source, first))):
            return folder
    file = picture_of(first, near, place_of(document.source, first))
    raise DataError(
        f"{document.source}: the picture {file} is not beside it nor in {', '.join(names)}; name the folder of the pictures"
    )
