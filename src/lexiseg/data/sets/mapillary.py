"""Mapillary Vistas 1.2 (65 classes) and 2.0, panoptic. https://www.mapillary.com/dataset/vistas"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lexiseg.data.dataset import Dataset
from lexiseg.data.readers import panoptic_samples, read_panoptic, read_panoptic_as_labels
from lexiseg.data.row import Row
from lexiseg.errors import DataError
from lexiseg.ops.coco import read_coco, read_json
from lexiseg.ops.label_table import LabelTable
from lexiseg.text.vocabulary import ClassName, Vocabulary

FOLDER = "mapillary_vistas"
# Where each version keeps its files: release 2.0 holds both versions, release 1.2 has no folders for versions.
CONFIGS = {"1.2": ("config_v1.2.json", "config.json"), "2.0": ("config_v2.0.json",)}
PANOPTIC = {
    "1.2": ("validation/v1.2/panoptic/panoptic_2018.json", "validation/panoptic/panoptic_2018.json"),
    "2.0": ("validation/v2.0/panoptic/panoptic_2020.json",),
}


def open_version(root: Path, *, version: str) -> Dataset:
    """Open the classes that the config marks for evaluation; category id = index in the config + 1, others are void."""
    folder = root / FOLDER
    config = _first(folder, CONFIGS[version])
    document = read_json(config)
    labels = document.get("labels") if isinstance(document, dict) else None
    if not isinstance(labels, list) or not all({"readable", "instances", "evaluate"} <= set(entry) for entry in labels):
        raise DataError(f"{config}: has no list 'labels' with the classes; fetch Mapillary Vistas {version} again")
    kept = [number for number, entry in enumerate(labels) if entry["evaluate"]]
    table = LabelTable(
        {number + 1: label for label, number in enumerate(kept)},
        frozenset(number + 1 for number, entry in enumerate(labels) if not entry["evaluate"]),
    )
    classes = tuple(ClassName(labels[number]["readable"], thing=bool(labels[number]["instances"])) for number in kept)
    source = _first(folder, PANOPTIC[version])
    return Dataset(
        f"mapillary-{version}",
        Vocabulary(classes),
        panoptic_samples(read_coco(source), source.parent, folder / "validation/images", picture_ending=".jpg"),
        {"semantic": partial(read_panoptic_as_labels, table=table), "panoptic": partial(read_panoptic, table=table)},
        tuple(table.labels),
    )


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: holds no {' or '.join(names)}; unpack the whole of the download there")


def _row(version: str, needs: tuple[str, ...], classes: str) -> Row:
    return Row(
        f"mapillary-{version}",
        f"Mapillary Vistas {version}, validation: {classes}",
        ("semantic", "panoptic"),
        tuple(f"{FOLDER}/{need}" for need in ("validation/images", *needs)),
        f"https://www.mapillary.com/dataset/vistas (a form): release {version}, unpacked as {FOLDER}/ with its config JSON.",
        partial(open_version, version=version),
        images=2000,
    )


ROWS: tuple[Row, ...] = (
    _row("1.2", ("config*.json", "validation/**/panoptic/panoptic_2018.json"), "37 things, 28 stuff"),
    _row("2.0", (*CONFIGS["2.0"], *PANOPTIC["2.0"]), "the classes of its config"),
)
