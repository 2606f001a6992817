"""LVIS v1: 1203 long-tailed things, instances on COCO's pictures. https://www.lvisdataset.org

LVIS is federated: only some categories are annotated in a picture (those with instances and ``neg_category_ids``), and some of
these not exhaustively (``not_exhaustive_category_ids``).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.readers import category_table, instance_samples, read_instances
from lexiseg.data.row import Row
from lexiseg.errors import DataError
from lexiseg.ops.coco import Entry, read_coco
from lexiseg.text.vocabulary import ClassName, Vocabulary

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


def open_val(root: Path) -> Dataset:
    """Open LVIS v1 val; its pictures are from COCO's val2017 and train2017, see ``coco_url``."""
    source = root / "lvis/lvis_v1_val.json"
    document = read_coco(source)
    categories = sorted(document.categories, key=lambda entry: entry["id"])
    if strange := {entry["frequency"] for entry in categories} - set(GROUPS):
        raise DataError(f"{source}: categories of frequency {strange}, expected r, c or f; fetch LVIS v1, not v0.5")
    table = category_table(entry["id"] for entry in categories)
    return Dataset(
        "lvis",
        Vocabulary(tuple(_class_of(entry) for entry in categories)),
        instance_samples(document, root / "coco"),
        {"instance": partial(read_instances, table=table)},
        tuple(table.labels),
        {
            name: frozenset(label for label, entry in enumerate(categories) if entry["frequency"] == letter)
            for letter, name in GROUPS.items()
        },
        federated=True,
    )


def _class_of(entry: Entry) -> ClassName:
    names = [name.replace("_", " ") for name in (entry["name"], *entry["synonyms"])]
    shown, *others = dict.fromkeys(names)
    return ClassName(shown, tuple(others))


ROWS: tuple[Row, ...] = (
    Row(
        "lvis",
        "LVIS v1, val: 1203 things in three groups (rare, common, frequent)",
        ("instance",),
        ("lvis/lvis_v1_val.json", "coco/val2017", "coco/train2017"),
        "https://www.lvisdataset.org/dataset: the validation annotations (lvis_v1_val.json), unpacked in lvis/.\n"
        "https://cocodataset.org/#download: '2017 Train images' and '2017 Val images', unpacked in coco/; LVIS val uses both.",
        open_val,
        images=19809,
    ),
)
