"""BDD100K, the 10k pictures of its segmentation tasks. https://bdd-data.berkeley.edu"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.readers import pair_samples, panoptic_samples, read_panoptic, semantic_dataset
from lexiseg.data.row import Row
from lexiseg.ops.coco import read_coco
from lexiseg.ops.label_table import LabelTable
from lexiseg.text.vocabulary import Vocabulary


def open_semantic(root: Path) -> Dataset:
    """Open BDD100K semantic, with the 19 classes of Cityscapes; 255 is void."""
    folder = root / "bdd100k"
    samples = pair_samples(folder / "images/10k/val", folder / "labels/sem_seg/masks/val", image_ending=".jpg")
    return semantic_dataset("bdd100k", Vocabulary.builtin("cityscapes"), samples)


def open_panoptic(root: Path) -> Dataset:
    """Open BDD100K panoptic, 40 classes, in the COCO form that FrozenSeg published and scored; category ids 1 to 40."""
    folder, vocabulary = root / "bdd100k", Vocabulary.builtin("bdd100k-40")
    table = LabelTable.counted(len(vocabulary), first=1, ignored=[0])
    document = read_coco(folder / "jsons/pan_seg_val_cocofmt.json")
    samples = panoptic_samples(document, folder / "jsons/pan_seg/masks/val", folder / "images/10k/val", picture_ending=".jpg")
    readers = {"panoptic": partial(read_panoptic, table=table)}
    return Dataset("bdd100k-panoptic", vocabulary, samples, readers, tuple(table.labels))


_IMAGES = (
    "https://bdd-data.berkeley.edu: '10K Images' (bdd100k_images_10k.zip), unpacked so that there is bdd100k/images/10k/val/."
)

ROWS: tuple[Row, ...] = (
    Row(
        "bdd100k",
        "BDD100K semantic, val: the 19 classes of Cityscapes",
        ("semantic",),
        ("bdd100k/images/10k/val", "bdd100k/labels/sem_seg/masks/val"),
        f"{_IMAGES}\n"
        "The same page: 'Segmentation' (bdd100k_sem_seg_labels_trainval.zip), unpacked beside it: bdd100k/labels/sem_seg/.",
        open_semantic,
        images=1000,
    ),
    Row(
        "bdd100k-panoptic",
        "BDD100K panoptic, val: 10 things, 30 stuff",
        ("panoptic",),
        ("bdd100k/images/10k/val", "bdd100k/jsons/pan_seg_val_cocofmt.json", "bdd100k/jsons/pan_seg/masks/val"),
        f"{_IMAGES}\n"
        "https://github.com/chenxi52/FrozenSeg, releases: bdd100k_json.zip, unpacked so that there is bdd100k/jsons/.",
        open_panoptic,
        images=1000,
    ),
)
