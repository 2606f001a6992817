"""COCO 2017: panoptic (80 things, 53 stuff) with its instances, and COCO-Stuff (171 classes). https://cocodataset.org"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.readers import (
    Reader,
    category_table,
    coco_vocabulary,
    instance_samples,
    join_samples,
    pair_samples,
    panoptic_samples,
    read_instances,
    read_panoptic,
    read_panoptic_as_labels,
    semantic_dataset,
)
from lexiseg.data.row import Row, missing
from lexiseg.ops.coco import read_coco
from lexiseg.ops.label_table import LabelTable
from lexiseg.text.vocabulary import Vocabulary

PIXEL_IDS = 182  # COCO-Stuff's label maps hold the category id less one,
NEVER_MARKED = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})  # and these ids are in no picture

_IMAGES = "https://cocodataset.org/#download: {split}2017.zip, unpacked in coco/ so that there is coco/{split}2017/."


def open_panoptic(root: Path, *, split: str) -> Dataset:
    """Open COCO panoptic; the semantic truth is each segment's class, crowds included."""
    folder = root / "coco"
    document = read_coco(folder / f"annotations/panoptic_{split}2017.json")
    table = category_table(entry["id"] for entry in document.categories)
    samples = panoptic_samples(document, folder / f"panoptic_{split}2017", folder / f"{split}2017")
    readers: dict[str, Reader] = {
        "semantic": partial(read_panoptic_as_labels, table=table),
        "panoptic": partial(read_panoptic, table=table),
    }
    if not missing(root, _instances(split)):
        instances = read_coco(folder / f"annotations/instances_{split}2017.json")
        samples = join_samples(samples, instance_samples(instances, folder / f"{split}2017"))
        readers["instance"] = partial(read_instances, table=table)
    return Dataset(_name("coco-panoptic", split), coco_vocabulary(document), samples, readers, tuple(table.labels))


def open_stuff(root: Path, *, split: str) -> Dataset:
    """Open COCO-Stuff from its own label maps ("stuffthingmaps"): raw ids 0 to 181, of which 171 occur, 255 is void."""
    folder = root / "coco"
    raw_ids = [number - 1 for number in range(1, PIXEL_IDS + 1) if number not in NEVER_MARKED]
    table = LabelTable({raw: label for label, raw in enumerate(raw_ids)}, frozenset({255}))
    samples = pair_samples(folder / f"{split}2017", folder / f"stuffthingmaps/{split}2017", image_ending=".jpg")
    return semantic_dataset(_name("coco-stuff", split), Vocabulary.builtin("coco-stuff-171"), samples, table)


def _name(name: str, split: str) -> str:
    return name if split == "val" else f"{name}-{split}"


def _instances(split: str) -> tuple[str, ...]:
    return (f"coco/annotations/instances_{split}2017.json",)


def _panoptic_row(split: str, images: int) -> Row:
    return Row(
        _name("coco-panoptic", split),
        f"COCO 2017 panoptic, {split}: 80 things, 53 stuff",
        ("semantic", "panoptic", "instance"),
        (f"coco/{split}2017", f"coco/annotations/panoptic_{split}2017.json", f"coco/panoptic_{split}2017"),
        f"{_IMAGES.format(split=split)}\n"
        "The same page: '2017 Panoptic Train/Val annotations', unpacked in coco/ to coco/annotations/; the archive\n"
        f"coco/annotations/panoptic_{split}2017.zip in it is unpacked in coco/ so that there is coco/panoptic_{split}2017/.\n"
        "For instances: '2017 Train/Val annotations', unpacked in coco/.",
        partial(open_panoptic, split=split),
        images=images,
        training=split == "train",
        for_task={"instance": _instances(split)},
    )


def _stuff_row(split: str, images: int) -> Row:
    return Row(
        _name("coco-stuff", split),
        f"COCO-Stuff 2017, {split}: 171 classes",
        ("semantic",),
        (f"coco/{split}2017", f"coco/stuffthingmaps/{split}2017"),
        f"{_IMAGES.format(split=split)}\n"
        "https://github.com/nightrome/cocostuff: stuffthingmaps_trainval2017.zip, unpacked in coco/stuffthingmaps/.",
        partial(open_stuff, split=split),
        images=images,
        training=split == "train",
    )


ROWS: tuple[Row, ...] = (
    _panoptic_row("val", 5000),
    _panoptic_row("train", 118287),
    _stuff_row("val", 5000),
    _stuff_row("train", 118287),
)
