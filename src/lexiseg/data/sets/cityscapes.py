"""Cityscapes, fine annotations, val: 19 classes, 8 of them things. https://www.cityscapes-dataset.com

All tasks are read from the two PNGs of the download. ``labelIds`` holds label ids; ``instanceIds`` holds label ids too, but
id · 1000 + number for each counted thing. A thing without a number is a crowd. The official ``createPanopticImgs.py`` derives
its panoptic files from these, so neither they nor ``labelTrainIds`` are needed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lexiseg.data.dataset import Dataset, Sample
from lexiseg.data.readers import Reader, pair_samples, panoptic_to_instances, read_label_map, refuse_missing, upright
from lexiseg.data.row import Row
from lexiseg.ops.label_table import LabelTable
from lexiseg.ops.pictures import read_values
from lexiseg.structures import IGNORED, Instances, PanopticMap, PanopticSegment
from lexiseg.text.vocabulary import Vocabulary

EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # label ids, in the order of train ids
TABLE = LabelTable(
    {raw: label for label, raw in enumerate(EVALUATED)}, frozenset(raw for raw in range(34) if raw not in EVALUATED)
)
THINGS = frozenset(range(11, 19))  # person to bicycle
NUMBERED = 1000  # instance ids from here on are counted things


def open_val(root: Path) -> Dataset:
    """Open Cityscapes fine val; the key of a picture is its path, its id the name in the official files."""
    images, truths = root / "cityscapes/leftImg8bit/val", root / "cityscapes/gtFine/val"
    samples = tuple(
        replace(
            sample,
            image_id=sample.key.rsplit("/", 1)[-1],
            annotation={**sample.annotation, "instance": truths / f"{sample.key}_gtFine_instanceIds.png"},
        )
        for sample in pair_samples(images, truths, image_ending="_leftImg8bit.png", truth_ending="_gtFine_labelIds.png")
    )
    bare = [str(sample.image) for sample in samples if not sample.annotation["instance"].is_file()]
    refuse_missing(bare, f"without *_gtFine_instanceIds.png in {truths}")
    readers: dict[str, Reader] = {
        "semantic": partial(read_label_map, table=TABLE),
        "panoptic": read_panoptic,
        "instance": read_instances,
    }
    return Dataset("cityscapes", Vocabulary.builtin("cityscapes"), samples, readers, EVALUATED)


def read_panoptic(sample: Sample) -> PanopticMap:
    """Read the panoptic truth from a PNG of instance ids.

    Raises:
        DataError: if it is missing, damaged, not of the picture's size, or holds an id that Cityscapes does not have.
    """
    path: Path = sample.annotation["instance"]
    raw = upright(read_values(path).astype(np.int32), sample, path)
    labels = TABLE.map(np.where(raw >= NUMBERED, raw // NUMBERED, raw), str(path))
    ids = np.where(labels == IGNORED, 0, raw)
    segments = []
    for number in np.unique(ids[ids > 0]).tolist():
        label = TABLE.labels[number // NUMBERED if number >= NUMBERED else number]
        segments.append(PanopticSegment(number, label, crowd=label in THINGS and number < NUMBERED))
    return PanopticMap(ids, tuple(segments))


def read_instances(sample: Sample) -> Instances:
    """Read the things from a PNG of instance ids; groups are crowds.

    Raises:
        DataError: as `read_panoptic`.
    """
    return panoptic_to_instances(read_panoptic(sample), THINGS)


ROWS: tuple[Row, ...] = (
    Row(
        "cityscapes",
        "Cityscapes fine, val: 8 things, 11 stuff",
        ("semantic", "panoptic", "instance"),
        (
            "cityscapes/leftImg8bit/val",
            "cityscapes/gtFine/val/*/*_gtFine_labelIds.png",
            "cityscapes/gtFine/val/*/*_gtFine_instanceIds.png",
        ),
        "https://www.cityscapes-dataset.com/downloads (an account): leftImg8bit_trainvaltest.zip and\n"
        "gtFine_trainvaltest.zip, both unpacked in cityscapes/. Nothing has to be generated.",
        open_val,
        images=500,
    ),
)
