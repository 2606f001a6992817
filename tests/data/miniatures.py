"""Tiny copies of data sets in their real layouts, with what a reader must find in them.

Every picture has 4 × 6 pixels in four regions: 0 is stuff, 1 and 3 are things, 2 is what nobody named. The second picture of
each data set is stuff all over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lexiseg.ops.rle import compress
from lexiseg.text.vocabulary import Vocabulary

REGIONS = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [2, 2, 0, 0, 3, 3], [2, 2, 0, 0, 3, 3]])
SCENES = (REGIONS, np.zeros_like(REGIONS))
POLYGON_1 = [[3, 0, 6, 0, 6, 2, 3, 2]]  # region 1, by its corners
RUNS_3 = [18, 2, 2, 2]  # region 3, column by column


@dataclass(frozen=True)
class Miniature:
    """How a data set is built below a root, and what is in it.

    Attributes:
        build: writes the download.
        stuff, things: (name, label) of region 0, and of regions 1 and 3.
        tasks: what there is a truth for.
        crowd: whether region 3 is a crowd.
        category_ids: what the files call stuff and things.
    """

    build: Callable[[Path], None]
    stuff: tuple[str, int] | None
    things: tuple[str, int]
    tasks: tuple[str, ...]
    crowd: bool = False
    category_ids: tuple[int, int] | None = None


def write(path: Path, values: np.ndarray) -> Path:
    """A picture or label map, in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def write_document(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def picture(path: Path) -> None:
    write(path, np.full((*REGIONS.shape, 3), 90, np.uint8))


def raw_map(regions: np.ndarray, *values: int, kind: type = np.uint8) -> np.ndarray:
    """The raw id of each pixel, given those of the regions."""
    return np.array(values, kind)[regions]


def colours(ids: np.ndarray) -> np.ndarray:
    """Segment ids as COCO panoptic's colours."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def panoptic_document(
    names: list[str], ending: str, stuff: int, thing: int, unnamed: int | None, crowd: bool
) -> dict[str, Any]:
    """A COCO panoptic JSON of `SCENES`; the segment of a region has the id 1000 · (region + 1)."""
    annotations = []
    for number, name in enumerate(names):
        categories = {0: stuff} if number else {0: stuff, 1: thing, 3: thing, **({} if unnamed is None else {2: unnamed})}
        segments = [
            {"id": 1000 * (region + 1), "category_id": category, "iscrowd": int(crowd and region == 3), "area": 6}
            for region, category in categories.items()
        ]
        annotations.append({"image_id": number + 7, "file_name": f"{name}.png", "segments_info": segments})
    images = [{"id": number + 7, "file_name": f"{name}{ending}", "height": 4, "width": 6} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": []}


def panoptic_maps(folder: Path, names: list[str], *, void: bool = True) -> None:
    for name, regions in zip(names, SCENES, strict=True):
        ids = 1000 * (regions + 1)
        write(folder / f"{name}.png", colours(np.where((regions == 2) & void, 0, ids)))


def instance(number: int, image: int, category: int, segmentation: object, box: list[int], **more: object) -> dict[str, Any]:
    shared = {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation}
    return {**shared, "bbox": box, "area": float(box[2] * box[3]), **more}


BOX_1, BOX_3 = [3, 0, 3, 2], [4, 2, 2, 2]


def coco_panoptic(split: str) -> Callable[[Path], None]:
    names = ["000000000139", "000000000285"]

    def build(root: Path) -> None:
        coco = root / "coco"
        for name in names:
            picture(coco / f"{split}2017/{name}.jpg")
        panoptic_maps(coco / f"panoptic_{split}2017", names)
        categories = [
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 3, "name": "car", "isthing": 1},
            {"id": 187, "name": "sky-other-merged", "isthing": 0},
        ]
        document = panoptic_document(names, ".jpg", 187, 3, None, crowd=True)
        write_document(coco / f"annotations/panoptic_{split}2017.json", {**document, "categories": categories})
        crowd = {"size": [4, 6], "counts": RUNS_3}
        instances = [instance(1, 7, 3, POLYGON_1, BOX_1, iscrowd=0), instance(2, 7, 3, crowd, BOX_3, iscrowd=1)]
        document = {"images": document["images"], "annotations": instances, "categories": categories[:2]}
        write_document(coco / f"annotations/instances_{split}2017.json", document)

    return build


def coco_stuff(split: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for name, regions in zip(("000000000139", "000000000285"), SCENES, strict=True):
            picture(root / f"coco/{split}2017/{name}.jpg")
            # 186 - 1 is no id here: sky-other is 157, so 156 in the maps; train is 7, so 6; 255 is void
            write(root / f"coco/stuffthingmaps/{split}2017/{name}.png", raw_map(regions, 156, 6, 255, 6))

    return build


def ade20k(root: Path) -> None:
    folder = root / "ADEChallengeData2016"
    lines = [
        f"{number}\t0.1\t1\t1\t0\t{', '.join(row.names)}" for number, row in enumerate(Vocabulary.builtin("ade150").classes, 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *lines]) + "\n")
    for number, regions in enumerate(SCENES, start=1):
        name = f"ADE_val_{number:08d}"
        picture(folder / f"images/validation/{name}.jpg")
        write(folder / f"annotations/validation/{name}.png", raw_map(regions, 3, 21, 0, 21))  # sky, car
        red, green = raw_map(regions, 0, 9, 0, 9), raw_map(regions, 0, 1, 0, 2)  # the 9th thing is the car
        write(folder / f"annotations_instance/validation/{name}.png", np.stack([red, green, 0 * red], axis=-1))


def cityscapes(root: Path) -> None:
    for number, regions in enumerate(SCENES):
        name = f"frankfurt/frankfurt_000000_{number:06d}"
        write(root / f"cityscapes/leftImg8bit/val/{name}_leftImg8bit.png", np.zeros((4, 6, 3), np.uint8))
        truths = root / "cityscapes/gtFine/val"
        write(truths / f"{name}_gtFine_labelIds.png", raw_map(regions, 7, 26, 3, 26))
        write(truths / f"{name}_gtFine_instanceIds.png", raw_map(regions, 7, 26001, 3, 26, kind=np.uint16))


def mapillary(config: str, source: str) -> Callable[[Path], None]:
    names = ["aaa", "bbb"]

    def build(root: Path) -> None:
        folder = root / "mapillary_vistas"
        labels = [
            {"name": "void--ground", "readable": "Ground", "instances": False, "evaluate": False},
            {"name": "object--bird", "readable": "Bird", "instances": True, "evaluate": True},
            {"name": "nature--sky", "readable": "Sky", "instances": False, "evaluate": True},
        ]
        write_document(folder / config, {"labels": labels})
        for name in names:
            picture(folder / f"validation/images/{name}.jpg")
        panoptic_maps((folder / source).parent, names, void=False)
        write_document(folder / source, panoptic_document(names, ".png", 3, 2, 1, crowd=False))

    return build


def bdd100k(root: Path) -> None:
    for name, regions in zip(("aaa", "bbb"), SCENES, strict=True):
        picture(root / f"bdd100k/images/10k/val/{name}.jpg")
        write(root / f"bdd100k/labels/sem_seg/masks/val/{name}.png", raw_map(regions, 0, 13, 255, 13))


def bdd100k_panoptic(root: Path) -> None:
    names = ["aaa", "bbb"]
    for name in names:
        picture(root / f"bdd100k/images/10k/val/{name}.jpg")
    panoptic_maps(root / "bdd100k/jsons/pan_seg/masks/val", names)
    write_document(root / "bdd100k/jsons/pan_seg_val_cocofmt.json", panoptic_document(names, ".png", 7, 35, None, crowd=True))


def lvis(root: Path) -> None:
    picture(root / "coco/val2017/000000000139.jpg")
    picture(root / "coco/train2017/000000000285.jpg")
    site = "http://images.cocodataset.org"
    images = [
        {
            "id": 139,
            "coco_url": f"{site}/val2017/000000000139.jpg",
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [2],
        },
        {
            "id": 285,
            "coco_url": f"{site}/train2017/000000000285.jpg",
            "neg_category_ids": [1],
            "not_exhaustive_category_ids": [],
        },
    ]
    runs = {"size": [4, 6], "counts": compress(RUNS_3)}
    categories = [
        {"id": 2, "name": "car_(automobile)", "synonyms": ["car_(automobile)", "auto"], "frequency": "f"},
        {"id": 1, "name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"], "frequency": "c"},
        {"id": 3, "name": "aardvark", "synonyms": ["aardvark"], "frequency": "r"},
    ]
    document = {
        "images": [{**entry, "height": 4, "width": 6} for entry in images],
        "annotations": [instance(1, 139, 2, POLYGON_1, BOX_1), instance(2, 139, 2, runs, BOX_3)],
        "categories": categories,
    }
    write_document(root / "lvis/lvis_v1_val.json", document)


def camvid(split: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for number, regions in enumerate(SCENES):
            name = f"0016E5_{number:05d}.png"
            write(root / f"CamVid/{split}/{name}", np.zeros((4, 6, 3), np.uint8))
            write(root / f"CamVid/{split}annot/{name}", raw_map(regions, 0, 8, 11, 8))
        (root / f"CamVid/{split}.txt").write_text("/SegNet/CamVid/val/a.png /SegNet/CamVid/valannot/a.png\n")

    return build


ALL = ("semantic", "panoptic", "instance")
_COCO = {"stuff": ("sky-other-merged", 2), "things": ("car", 1), "tasks": ALL, "crowd": True, "category_ids": (187, 3)}
_STUFF = {"stuff": ("sky", 145), "things": ("train", 6), "tasks": ("semantic",), "category_ids": (156, 6)}
_CAMVID = {"stuff": ("sky", 0), "things": ("car", 8), "tasks": ("semantic",)}
_VISTAS = {"stuff": ("Sky", 1), "things": ("Bird", 0), "tasks": ALL[:2], "category_ids": (3, 2)}

MINIATURES: dict[str, Miniature] = {
    "coco-panoptic": Miniature(coco_panoptic("val"), **_COCO),
    "coco-panoptic-train": Miniature(coco_panoptic("train"), **_COCO),
    "coco-stuff": Miniature(coco_stuff("val"), **_STUFF),
    "coco-stuff-train": Miniature(coco_stuff("train"), **_STUFF),
    "ade20k-150": Miniature(ade20k, ("sky", 2), ("car", 20), ALL, category_ids=(2, 20)),
    "cityscapes": Miniature(cityscapes, ("road", 0), ("car", 13), ALL, crowd=True, category_ids=(7, 26)),
    "mapillary-1.2": Miniature(mapillary("config.json", "validation/panoptic/panoptic_2018.json"), **_VISTAS),
    "mapillary-2.0": Miniature(mapillary("config_v2.0.json", "validation/v2.0/panoptic/panoptic_2020.json"), **_VISTAS),
    "bdd100k": Miniature(bdd100k, ("road", 0), ("car", 13), ("semantic",)),
    "bdd100k-panoptic": Miniature(bdd100k_panoptic, ("road", 6), ("car", 34), ("panoptic",), crowd=True, category_ids=(7, 35)),
    "lvis": Miniature(lvis, None, ("car (automobile)", 1), ("instance",), category_ids=(1, 2)),
    "camvid-val": Miniature(camvid("val"), **_CAMVID),
    "camvid-test": Miniature(camvid("test"), **_CAMVID),
}
