"""ADE20K-150, the scene parsing benchmark: 100 things, 50 stuff, validation. http://sceneparsing.csail.mit.edu

The semantic truth is the download's own ``annotations`` (ids 1 to 150, 0 void), not the copy ``annotations_detectron2``
of Mask2Former's scripts. The panoptic and instance files are those of the scripts; `prepare` writes the same from
``annotations_instance``, whose PNGs hold the class of a thing (1 to 100) in red and its number in the picture in green.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.data.readers import (
    Reader,
    instance_samples,
    join_samples,
    pair_samples,
    panoptic_samples,
    read_colours,
    read_instances,
    read_label_map,
    read_panoptic,
    upright,
)
from lexiseg.data.row import Row, missing
from lexiseg.errors import DataError
from lexiseg.ops.coco import read_coco
from lexiseg.ops.files import write_json, write_png
from lexiseg.ops.label_table import LabelTable
from lexiseg.ops.rle import compress, encode_masks
from lexiseg.structures import IGNORED
from lexiseg.text.vocabulary import ClassName, Vocabulary

FOLDER = "ADEChallengeData2016"
NAMES = f"{FOLDER}/objectInfo150.txt"
PANOPTIC = (f"{FOLDER}/ade20k_panoptic_val.json", f"{FOLDER}/ade20k_panoptic_val")
INSTANCE = (f"{FOLDER}/ade20k_instance_val.json",)
TABLE = LabelTable.counted(150, first=1, ignored=[0])
COCO_TABLE = LabelTable.counted(150)  # the category ids of the generated files are the labels

Mask = NDArray[np.bool_]


def open_val(root: Path) -> Dataset:
    """Open ADE20K-150 validation, with the tasks whose files exist."""
    samples, images = _semantic_samples(root), root / FOLDER / "images/validation"
    readers: dict[str, Reader] = {"semantic": partial(read_label_map, table=TABLE)}
    if not missing(root, PANOPTIC):
        panoptic = panoptic_samples(read_coco(root / PANOPTIC[0]), root / PANOPTIC[1], images)
        samples, readers["panoptic"] = join_samples(samples, panoptic), partial(read_panoptic, table=COCO_TABLE)
    if not missing(root, INSTANCE):
        instances = instance_samples(read_coco(root / INSTANCE[0]), images)
        samples, readers["instance"] = join_samples(samples, instances), partial(read_instances, table=COCO_TABLE)
    return Dataset("ade20k-150", _vocabulary(root / NAMES), samples, readers, tuple(COCO_TABLE.labels))


def prepare(root: Path) -> None:
    """Write the panoptic and instance files of the validation split; existing PNGs are kept.

    As in Mask2Former's scripts things are painted over stuff, so that a segment of the JSON may have lost some or all of its
    pixels to a thing; its ``area`` is that before.

    Raises:
        DataError: if files of the download are missing or damaged.
        OutputError: if a file cannot be written.
    """
    samples, vocabulary = _semantic_samples(root), _vocabulary(root / NAMES)
    things = [label for label, thing in enumerate(vocabulary.things) if thing]  # the instance files' classes 1 to 100
    images: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    for sample in tqdm(samples, desc="preparing ade20k-150", unit="picture", disable=None):
        classes = read_label_map(sample, table=TABLE)
        high, wide = classes.shape
        stuff = [(label, classes == label) for label in np.unique(classes).tolist() if label not in (IGNORED, *things)]
        counted = _things(root / FOLDER / f"annotations_instance/validation/{sample.key}.png", sample, things)
        segments = list(enumerate([*stuff, *counted], start=1))
        png = root / PANOPTIC[1] / f"{sample.key}.png"
        if not png.is_file():
            ids = np.zeros((high, wide), np.int32)
            for number, (_, mask) in segments:
                ids[mask] = number
            write_png(png, (ids[..., None] >> np.array([0, 8, 16]) & 255).astype(np.uint8))
        records = [{"id": number, **_record(label, mask)} for number, (label, mask) in segments]
        images.append({"id": sample.key, "file_name": sample.image.name, "height": high, "width": wide})
        panoptic.append({"image_id": sample.key, "file_name": png.name, "segments_info": records})
        for label, mask in counted:
            (counts,) = encode_masks(torch.from_numpy(mask[None]))
            runs = {"size": [high, wide], "counts": compress(counts)}
            number = len(instances) + 1
            instances.append({"id": number, "image_id": sample.key, "segmentation": runs, **_record(label, mask)})
    categories = [{"id": label, "name": row.name, "isthing": int(row.thing)} for label, row in enumerate(vocabulary.classes)]
    write_json(root / PANOPTIC[0], {"images": images, "annotations": panoptic, "categories": categories})
    counted_classes = [categories[label] for label in things]
    write_json(root / INSTANCE[0], {"images": images, "annotations": instances, "categories": counted_classes})


def _semantic_samples(root: Path) -> tuple[Sample, ...]:
    folder = root / FOLDER
    return pair_samples(folder / "images/validation", folder / "annotations/validation", image_ending=".jpg")


def _vocabulary(path: Path) -> Vocabulary:
    """Read the official names; things are those of the instance challenge, not of the file's column ``Stuff``."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it comes with {FOLDER}.zip") from None
    things = Vocabulary.builtin("ade150").things
    if [row[0].strip() for row in rows] != [str(number) for number in range(1, len(things) + 1)]:
        raise DataError(f"{path}: does not list the classes 1 to {len(things)}, one a line; unpack {FOLDER}.zip again")
    classes = []
    for row, thing in zip(rows, things, strict=True):
        shown, *others = (name.strip() for name in row[-1].replace(";", ",").split(","))
        classes.append(ClassName(shown, tuple(others), thing))
    return Vocabulary(tuple(classes))


def _things(path: Path, sample: Sample, things: list[int]) -> list[tuple[int, Mask]]:
    """Return (label, mask) of each thing in a PNG of ``annotations_instance``."""
    colours = upright(read_colours(path), sample, path)
    pairs = []
    for number in np.unique(colours[..., 1]).tolist():
        mask = colours[..., 1] == number
        classes = np.unique(colours[..., 0][mask]).tolist()
        if number and (len(classes) > 1 or not 1 <= classes[0] <= len(things)):
            raise DataError(f"{path}: thing {number} is of class {classes}, expected one of 1..{len(things)}; unpack it again")
        if number:
            pairs.append((things[classes[0] - 1], mask))
    return pairs


def _record(label: int, mask: Mask) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
    return {"category_id": label, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}


_NEEDS = (f"{FOLDER}/images/validation", f"{FOLDER}/annotations/validation", NAMES)

ROWS: tuple[Row, ...] = (
    Row(
        "ade20k-150",
        "ADE20K scene parsing benchmark, validation: 100 things, 50 stuff",
        ("semantic", "panoptic", "instance"),
        _NEEDS,
        "http://sceneparsing.csail.mit.edu: ADEChallengeData2016.zip, unpacked beside the other data sets.\n"
        f"For panoptic and instances: annotations_instance.tar of the same site, unpacked in {FOLDER}/.",
        open_val,
        raw=(*_NEEDS, f"{FOLDER}/annotations_instance/validation"),
        prepare=prepare,
        images=2000,
        for_task={"panoptic": PANOPTIC, "instance": INSTANCE},
    ),
)
