"""Data sets that need preparation, as small as they go: two or three tiny pictures in each one's own download layout.

Raw values are spelled out here by hand, from the labels that should come out; nothing is taken from the code under test.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

Array = NDArray[Any]


@dataclass(frozen=True)
class Miniature:
    """What a builder made.

    Attributes:
        truths: for each key the labels that should be read, -1 where nothing is measured.
        damage: a raw file of the last picture, which the preparation reads.
    """

    truths: Mapping[str, Array]
    damage: Path


def pattern(classes: int, shift: int = 0, size: tuple[int, int] = (6, 8)) -> Array:
    """Labels [H, W] in which many classes occur."""
    high, wide = size
    return ((np.arange(high * wide).reshape(size) * 7 + shift) % classes).astype(np.int32)


def void_corner(labels: Array) -> Array:
    """The labels with -1 in the top-left pixel."""
    marked = labels.copy()
    marked[0, 0] = -1
    return marked


def save(path: Path, values: Array, mode: str | None = None) -> Path:
    """A picture in the format of its ending; ``mode`` P makes a palette, 1 a bitmap."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8)).convert("L")
        image.putpalette([channel for index in range(256) for channel in (index, 255 - index, index // 2)])
    elif mode == "1":
        image = Image.fromarray(values.astype(np.uint8) * 255).convert("1", dither=Image.Dither.NONE)
    else:
        image = Image.fromarray(values.astype(np.uint8))
    image.save(path)
    return path


def photo(path: Path, size: tuple[int, int] = (6, 8)) -> Path:
    """A picture of colours."""
    ramp = np.arange(size[0] * size[1]).reshape(size) % 251
    return save(path, np.stack([ramp, 250 - ramp, ramp // 2], axis=-1))


def raw_of(labels: Array, raw: Mapping[int, int]) -> Array:
    """The raw ids of labels; what ``raw`` does not name stays."""
    values = labels.copy()
    for label, number in raw.items():
        values[labels == label] = number
    return values


def colours_of(labels: Array, colours: Mapping[int, tuple[int, int, int]]) -> Array:
    """A picture with a colour for each label."""
    picture = np.zeros((*labels.shape, 3), np.uint8)
    for label, colour in colours.items():
        picture[labels == label] = colour
    return picture


def tile_of(labels: Array, number: int = 0) -> Array:
    """One tile of a label map that is one tile high: 1024 × 1024, -1 beyond the map."""
    part = labels[:, 1024 * number : 1024 * (number + 1)]
    tile = np.full((1024, 1024), -1, np.int32)
    tile[: part.shape[0], : part.shape[1]] = part
    return tile


# --- ADE20K, PASCAL ---------------------------------------------------------------------------------------------------


def ade20k_847(root: Path) -> Miniature:
    """Two validation pictures, one of them to be reduced, and a training picture that must not be taken."""
    base = root / "ADE20K_2021_17_01/images/ADE"
    wall, building, other = (2978, 0), (312, 1), (1, -1)  # wall = 11 · 256 + 162, building = 1 · 256 + 56
    truths = {}
    for key, (high, wide) in {"ADE_val_00000001": (6, 8), "ADE_val_00000002": (520, 1040)}.items():
        folder = base / "validation/urban/street"
        photo(folder / f"{key}.jpg", (high, wide))
        segments, labels = np.zeros((high, wide, 3), np.uint8), np.zeros((high, wide), np.int32)
        for number, (raw, label) in enumerate((wall, building, other)):
            columns = slice(number * wide // 3, (number + 1) * wide // 3)
            segments[:, columns] = (raw // 256 * 10, raw % 256, 17)
            labels[:, columns] = label
        damage = save(folder / f"{key}_seg.png", segments)
        if high > 512:  # 520 × 1040 becomes 512 × 1024
            labels = labels[np.arange(512) * 520 // 512][:, np.arange(1024) * 1040 // 1024]
        truths[key] = labels
        save(folder / key / "instance_000.png", np.zeros((2, 2)))
    photo(base / "training/urban/street/ADE_train_00000001.jpg")
    return Miniature(truths, damage)


def _voc(root: Path, read: Callable[[Array], Array]) -> Miniature:
    folder = root / "VOCdevkit/VOC2012"
    truths = {}
    for number, key in enumerate(("2007_000033", "2008_000042")):
        photo(folder / f"JPEGImages/{key}.jpg")
        raw = pattern(21, number)
        raw[0, 0] = 255
        damage = save(folder / f"SegmentationClass/{key}.png", raw, "P")
        truths[key] = read(raw)
    photo(folder / "JPEGImages/2009_000001.jpg")  # of another split
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("2007_000033\n2008_000042\n")
    return Miniature(truths, damage)


def voc_20(root: Path) -> Miniature:
    return _voc(root, lambda raw: np.where((raw == 0) | (raw == 255), -1, raw - 1))


def voc_20b(root: Path) -> Miniature:
    return _voc(root, lambda raw: np.where(raw == 255, -1, np.where(raw == 0, 20, raw - 1)))


def voc_21(root: Path) -> Miniature:
    return _voc(root, lambda raw: np.where(raw == 255, -1, raw))


def _context(root: Path) -> Path:
    folder = root / "VOCdevkit/VOC2010"
    for key in ("2008_000002", "2008_000003", "2008_000008"):
        photo(folder / f"JPEGImages/{key}.jpg")
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/val.txt").write_text("2008_000002\n2008_000003\n")
    return folder


def pascal_context_59(root: Path) -> Miniature:
    """Rectangles of aeroplane (2), wood (458) over it, person (284); the rest is void."""
    folder = _context(root)

    def runs(mask: Array) -> dict[str, Any]:
        return {"size": [6, 8], "counts": compressed(mask)}

    first, second, third = (np.zeros((6, 8), bool) for _ in range(3))
    first[1:5, 1:6], second[3:6, 4:8], third[0:2, 0:8] = True, True, True
    entries = [(1, 2, first), (1, 458, second), (2, 284, third), (3, 2, first)]
    images = [(1, "2008_000002", "val"), (2, "2008_000003", "val"), (3, "2008_000008", "train")]
    document = {
        "images": [
            {"image_id": number, "file_name": f"{key}.jpg", "height": 6, "width": 8, "phase": phase}
            for number, key, phase in images
        ],
        "annos_segmentation": [
            {"id": number, "image_id": image, "category_id": raw, "segmentation": runs(mask)}
            for number, (image, raw, mask) in enumerate(entries)
        ],
    }
    source = folder / "trainval_merged.json"
    source.write_text(json.dumps(document))
    truths = {"2008_000002": np.full((6, 8), -1), "2008_000003": np.full((6, 8), -1)}
    truths["2008_000002"][first], truths["2008_000002"][second] = 0, 58  # first and last of VOC's twenty first, wood
    truths["2008_000003"][third] = 14  # person
    return Miniature(truths, source)


def compressed(mask: Array) -> str:
    """COCO's string for the runs of a mask, run by run as its definition has it."""
    flat = mask.T.reshape(-1)
    runs, value = [], False
    start = 0
    for position in range(len(flat) + 1):
        if position == len(flat) or bool(flat[position]) != value:
            runs.append(position - start)
            start, value = position, not value
    text = ""
    for number, run in enumerate(runs):
        rest = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            digit, rest = rest & 31, rest >> 5
            more = rest != -1 if digit & 16 else rest != 0
            text += chr((digit | 32 if more else digit) + 48)
    return text


def pascal_context_459(root: Path) -> Miniature:
    folder = _context(root)
    (folder / "trainval").mkdir()
    truths = {}
    for number, key in enumerate(("2008_000002", "2008_000003")):
        truths[key] = void_corner(pattern(459, 100 * number))
        damage = folder / f"trainval/{key}.mat"
        savemat(damage, {"LabelMap": (truths[key] + 1).astype(np.uint16)})
    return Miniature(truths, damage)


# --- MESS -------------------------------------------------------------------------------------------------------------


def bdd100k(root: Path) -> Miniature:
    truths = {}
    for number, key in enumerate(("7d06fefd-f7be05a6", "7d128593-0ccfea4c")):
        truths[key] = void_corner(pattern(19, number))
        photo(root / f"bdd100k/images/10k/val/{key}.jpg")
        damage = save(root / f"bdd100k/labels/sem_seg/colormaps/val/{key}.png", raw_of(truths[key], {-1: 255}), "P")
    return Miniature(truths, damage)


def dark_zurich(root: Path) -> Miniature:
    ids = {0: 0, 1: 7, 2: 8, 3: 11, 4: 12, 5: 13, 6: 17, 7: 19, 8: 20, 9: 21, 10: 22, 11: 23, 12: 24, 13: 25, 14: 26}
    ids |= {15: 27, 16: 28, 17: 31, 18: 32, 19: 33, -1: 33}
    base, truths = root / "Dark_Zurich", {}
    for number, key in enumerate(("GOPR0356_frame_000321", "GOPR0356_frame_000324")):
        truths[key] = void_corner(pattern(20, number))
        photo(base / f"rgb_anon/val/night/GOPR0356/{key}_rgb_anon.png")
        damage = save(base / f"gt/val/night/GOPR0356/{key}_gt_labelIds.png", raw_of(truths[key], ids))
        save(base / f"gt/val/night/GOPR0356/{key}_gt_invGray.png", np.where(truths[key] == -1, 255, 0))
    return Miniature(truths, damage)


def mhp_v1(root: Path) -> Miniature:
    """Two test pictures, the second cut off; the first has two persons, who overlap."""
    base = root / "LV-MHP-v1"
    for key in ("0001", "0002", "0003"):
        photo(base / f"images/{key}.jpg", (64, 64))
    whole = (base / "images/0003.jpg").read_bytes()
    (base / "images/0003.jpg").write_bytes(whole[:-40])
    (base / "test_list.txt").write_text("0001.jpg\n0003.jpg\n")
    left, right = np.zeros((64, 64), int), np.zeros((64, 64), int)
    left[:, :40], right[:, 30:] = 4, 2
    save(base / "annotations/0001_02_01.png", left)
    save(base / "annotations/0001_02_02.png", right)
    damage = save(base / "annotations/0003_01_01.png", pattern(19, size=(64, 64)))
    both = np.where(np.arange(64) < 40, 4, 2) * np.ones((64, 1), int)
    return Miniature({"0001": both, "0003": pattern(19, size=(64, 64))}, damage)


def foodseg103(root: Path) -> Miniature:
    truths = {}
    for number, key in enumerate(("00000048", "00000051")):
        truths[key] = pattern(104, number)
        photo(root / f"FoodSeg103/Images/img_dir/test/{key}.jpg")
        damage = save(root / f"FoodSeg103/Images/ann_dir/test/{key}.png", truths[key])
    photo(root / "FoodSeg103/Images/img_dir/test/00000099.jpg")  # without a label map: does not count
    return Miniature(truths, damage)


def atlantis(root: Path) -> Miniature:
    truths = {}
    for number, (group, key) in enumerate((("canal", "1001"), ("wetland", "2002"))):
        truths[key] = void_corner(pattern(56, number))
        photo(root / f"atlantis/images/test/{group}/{key}.jpg")
        damage = save(root / f"atlantis/masks/test/{group}/{key}.png", truths[key] + 1)
    return Miniature(truths, damage)


def dram(root: Path) -> Miniature:
    """bird (VOC 3), person (15), sheep (17), an aeroplane (1) and background (0), which are one class, and void."""
    raw = np.array([[3, 15, 17], [1, 0, 255]])
    labels = np.array([[0, 8, 10], [11, 11, -1]])
    base = root / "DRAM_processed"
    for style, artist in (("Cubism", "Picasso"), ("Realism", "Courbet")):
        photo(base / f"test/{style}/{artist}/1.jpg", (2, 3))
        damage = save(base / f"labels/{style}/{artist}/1.png", raw, "P")
    return Miniature({"Courbet_1": labels, "Picasso_1": labels}, damage)


def isaid(root: Path) -> Miniature:
    """A picture of two tiles and one of one."""
    colours = {0: (0, 0, 0), 1: (0, 0, 63), 2: (0, 63, 63), 7: (0, 127, 63), 14: (0, 127, 255), 15: (0, 100, 155)}
    truths = {}
    for key, size in (("P0003", (4, 1030)), ("P0004", (3, 5))):
        labels = np.array([0, 1, 2, 7, 14, 15])[pattern(6, size=size)]
        photo(root / f"isaid/val/images/{key}.png", size)
        damage = save(root / f"isaid/raw_val/images/{key}_instance_color_RGB.png", colours_of(labels, colours))
        for number in range(-(-size[1] // 1024)):
            truths[f"{key}_{number}"] = tile_of(labels, number)
    return Miniature(truths, damage)


def isprs_potsdam(root: Path) -> Miniature:
    """Shades are rounded: (200, 90, 5) is red, clutter. Tile 6_10 is for training."""
    colours = {0: (255, 255, 255), 1: (0, 0, 255), 2: (0, 255, 255), 3: (0, 255, 0), 4: (255, 255, 0), 5: (200, 90, 5)}
    colours[-1] = (255, 0, 255)
    rows = {2: (13, 14), 3: (13, 14), 4: (13, 14, 15), 5: (13, 14, 15), 6: (13, 14, 15, 10), 7: (13,)}
    places = [f"{row}_{column}" for row, columns in rows.items() for column in columns]
    truths = {}
    for place in places:
        labels, key = void_corner(pattern(6, len(truths), (3, 4))), f"top_potsdam_{place}"
        photo(root / f"ISPRS_Potsdam/3_Ortho_IRRG/{key}_IRRG.tif", (3, 4))
        path = save(root / f"ISPRS_Potsdam/Labels/{key}_label.tif", colours_of(labels, colours))
        if place != "6_10":
            truths[f"{key}_0"], damage = tile_of(labels), path
    return Miniature(truths, damage)


def worldfloods(root: Path) -> Miniature:
    """As the benchmark's own preparation leaves it."""
    truths = {}
    for number, key in enumerate(("EMSR286_08_0", "EMSR286_08_1")):
        truths[key] = void_corner(pattern(3, number))
        photo(root / f"WorldFloods/images_detectron2/test/irrg/{key}.png")
        damage = save(root / f"WorldFloods/annotations_detectron2/test/{key}.png", raw_of(truths[key], {-1: 255}))
    return Miniature(truths, damage)


def floodnet(root: Path) -> Miniature:
    base, truths = root / "FloodNet-Supervised_v1.0/test", {}
    for number, key in enumerate(("6279", "6303")):
        labels = pattern(10, number)
        photo(base / f"test-org-img/{key}.jpg")
        damage = save(base / f"test-label-img/{key}_lab.png", labels)
        truths[f"{key}_0"] = tile_of(labels)
    return Miniature(truths, damage)


def uavid(root: Path) -> Miniature:
    colours = dict(enumerate(((0, 0, 0), (128, 0, 0), (128, 64, 128), (0, 128, 0), (128, 128, 0), (64, 0, 128))))
    colours |= {6: (192, 0, 192), 7: (64, 64, 0)}
    truths = {}
    for number, sequence in enumerate(("seq16", "seq17")):
        labels, base = pattern(8, number), root / f"uavid_v1.5/uavid_val/{sequence}"
        photo(base / "Images/000000.png")
        damage = save(base / "Labels/000000.png", colours_of(labels, colours))
        truths[f"{sequence}_000000_0"] = tile_of(labels)
    return Miniature(truths, damage)


def kvasir_instrument(root: Path) -> Miniature:
    base, truths = root / "kvasir-instrument", {}
    for number, key in enumerate(("ckcu8ty6z", "ckcu96cj2", "ckcu9ix8y")):
        truths[key] = pattern(2, number)
        photo(base / f"images/{key}.jpg")
        damage = save(base / f"masks/{key}.png", colours_of(truths[key], {1: (255, 255, 255)}))
    (base / "test.txt").write_text("\n".join(truths) + "\n")
    return Miniature(truths, damage)


def chase_db1(root: Path) -> Miniature:
    """Ten pictures, of which the first eight are for training."""
    truths = {}
    for number in range(1, 11):
        key = f"Image_{(number + 1) // 2:02}{'L' if number % 2 else 'R'}"
        photo(root / f"CHASEDB1/{key}.jpg")
        damage = save(root / f"CHASEDB1/{key}_1stHO.png", pattern(2, number), "1")
        save(root / f"CHASEDB1/{key}_2ndHO.png", pattern(2, number + 1), "1")
        if number > 8:
            truths[key] = pattern(2, number)
    return Miniature(truths, damage)


def cryonuseg(root: Path) -> Miniature:
    who, truths = "Annotator 1 (biologist second round of manual marks up)", {}
    for number, key in enumerate(("Human_AdrenalGland_01", "Human_Larynx_01")):
        truths[key] = pattern(2, number)
        photo(root / f"CryoNuSeg/tissue images/{key}.tif")
        damage = save(root / f"CryoNuSeg/{who}/{who}/mask binary/{key}.png", truths[key] * 255)
    return Miniature(truths, damage)


def _paxray(root: Path, channel: int) -> Miniature:
    base, truths, entries = root / "paxray_dataset", {}, []
    (base / "labels").mkdir(parents=True)
    for number, key in enumerate(("pax_1", "pax_2")):
        photo(base / f"images/{key}.png")
        regions = np.stack([pattern(2, number + index // 3) for index in range(166)]).astype(bool)
        damage = base / f"labels/{key}.npy"
        np.save(damage, regions)
        truths[key] = regions[channel].astype(np.int32)
        entries.append({"image": f"images/{key}.png", "target": f"labels/{key}.npy"})
    (base / "paxray.json").write_text(json.dumps({"train": [], "test": entries}))
    return Miniature(truths, damage)


def corrosion_cs(root: Path) -> Miniature:
    base, truths = root / "Corrosion Condition State Classification/original/Test", {}
    for number, key in enumerate(("19", "242")):
        truths[key] = pattern(4, number)
        photo(base / f"images/{key}.jpg").rename(base / f"images/{key}.jpeg")
        damage = save(base / f"masks/{key}.png", truths[key])
    return Miniature(truths, damage)


def deepcrack(root: Path) -> Miniature:
    truths = {}
    for number, key in enumerate(("11111", "11112")):
        truths[key] = pattern(2, number)
        photo(root / f"DeepCrack/test_img/{key}.jpg")
        damage = save(root / f"DeepCrack/test_lab/{key}.png", truths[key] * 255)
    return Miniature(truths, damage)


def pst900(root: Path) -> Miniature:
    truths = {}
    for number, key in enumerate(("114_bag21_rect_rgb_frame45", "13_bag21_rect_rgb_frame24")):
        truths[key] = pattern(5, number)
        save(root / f"PST900_RGBT_Dataset/test/thermal/{key}.png", pattern(200))
        damage = save(root / f"PST900_RGBT_Dataset/test/labels/{key}.png", truths[key])
    return Miniature(truths, damage)


def zerowaste(root: Path) -> Miniature:
    base, truths = root / "zerowaste-f/splits_final_deblurred/test", {}
    for number, key in enumerate(("01_frame_000100", "01_frame_000200")):
        truths[key] = pattern(5, number)
        photo(base / f"data/{key}.PNG")
        damage = save(base / f"sem_seg/{key}.PNG", truths[key])
    return Miniature(truths, damage)


def suim(root: Path) -> Miniature:
    colours = dict(enumerate(((0, 0, 0), (0, 0, 255), (0, 255, 0), (0, 255, 255), (255, 0, 0), (255, 0, 255))))
    colours |= {6: (255, 255, 0), 7: (255, 255, 255)}
    truths = {}
    for number, key in enumerate(("d_r_122_", "f_r_1069_")):
        truths[key] = pattern(8, number)
        photo(root / f"SUIM/TEST/images/{key}.jpg")
        damage = save(root / f"SUIM/TEST/masks/{key}.bmp", colours_of(truths[key], colours))
    return Miniature(truths, damage)


def cub_200(root: Path) -> Miniature:
    """Of five people's marks more than half count: 153 of 255 is a bird, 102 is not."""
    base, truths = root / "CUB_200_2011", {}
    files = ("001.Black_footed_Albatross/A_0001_1", "001.Black_footed_Albatross/A_0002_2", "200.Common_Yellowthroat/B_0003_3")
    for number, file in enumerate(files):
        photo(base / f"images/{file}.jpg")
        seen = pattern(6, number)
        damage = save(base / f"segmentations/{file}.png", seen * 51)
        if number > 0:
            truths[file.split("/")[1]] = np.where(seen >= 3, (1, 1, 200)[number], 0)
    (base / "images.txt").write_text("".join(f"{number} {file}.jpg\n" for number, file in enumerate(files, start=1)))
    (base / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    return Miniature(truths, damage)


def cwfid(root: Path) -> Miniature:
    truths = {}
    test = (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28, 29, 30, 32, 35, 39, 44, 47, 48, 54, 60)
    for number in (*test, 2):
        labels = pattern(3, number)
        photo(root / f"cwfid/images/{number:03}_image.png")
        colours = colours_of(labels, {1: (255, 0, 0), 2: (0, 255, 0)})
        path = save(root / f"cwfid/annotations/{number:03}_annotation.png", colours)
        if number in test:
            truths[f"{number:03}"], damage = labels, path
    return Miniature(truths, damage)


# --- RefCOCO ----------------------------------------------------------------------------------------------------------


def refcoco(root: Path, folder: str = "refcoco", split: str = "val", protocol: int = 2) -> Miniature:
    """Three expressions for two rectangles of one picture, and one of another split."""
    for name in ("COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"):
        photo(root / "coco/train2014" / name)

    def region(number: int, image: int, category: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
        left, top, wide, high = box
        corners = [left, top, left + wide, top, left + wide, top + high, left, top + high]
        kept = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": wide * high, "iscrowd": 0}
        return {**kept, "segmentation": [corners]}

    document = {
        "images": [
            {"id": number, "file_name": f"COCO_train2014_{number:012}.jpg", "height": 6, "width": 8} for number in (9, 25)
        ],
        "annotations": [region(70, 9, 1, (1, 1, 3, 4)), region(71, 9, 18, (5, 2, 2, 2)), region(72, 25, 1, (0, 0, 2, 2))],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "instances.json").write_text(json.dumps(document))

    def reference(image: int, annotation: int, where: str, said: dict[int, str]) -> dict[str, Any]:
        sentences = [
            {"sent_id": number, "sent": text, "raw": text.upper(), "tokens": text.split()} for number, text in said.items()
        ]
        return {"image_id": image, "ann_id": annotation, "split": where, "sentences": sentences, "category_id": 1}

    other = "train" if split != "train" else "val"
    references = [
        reference(9, 70, split, {100: "man, left", 101: "the café owner"}),
        reference(9, 71, split, {102: "dog"}),
        reference(25, 72, other, {103: "woman"}),
    ]
    source = root / folder / "refs(unc).p"
    source.write_bytes(pickle.dumps(references, protocol))
    man, dog = np.ones((6, 8), int), np.ones((6, 8), int)
    man[1:5, 1:4], dog[2:4, 5:7] = 0, 0
    return Miniature({"100": man, "101": man, "102": dog}, source)


BUILDERS: dict[str, Callable[[Path], Miniature]] = {
    "ade20k-847": ade20k_847,
    "voc-20": voc_20,
    "voc-20b": voc_20b,
    "voc-21": voc_21,
    "pascal-context-59": pascal_context_59,
    "pascal-context-459": pascal_context_459,
    "mess-bdd100k": bdd100k,
    "mess-dark-zurich": dark_zurich,
    "mess-mhp-v1": mhp_v1,
    "mess-foodseg103": foodseg103,
    "mess-atlantis": atlantis,
    "mess-dram": dram,
    "mess-isaid": isaid,
    "mess-isprs-potsdam": isprs_potsdam,
    "mess-worldfloods": worldfloods,
    "mess-floodnet": floodnet,
    "mess-uavid": uavid,
    "mess-kvasir-instrument": kvasir_instrument,
    "mess-chase-db1": chase_db1,
    "mess-cryonuseg": cryonuseg,
    "mess-paxray-lungs": lambda root: _paxray(root, 0),
    "mess-paxray-mediastinum": lambda root: _paxray(root, 10),
    "mess-paxray-bones": lambda root: _paxray(root, 24),
    "mess-paxray-diaphragm": lambda root: _paxray(root, 163),
    "mess-corrosion-cs": corrosion_cs,
    "mess-deepcrack": deepcrack,
    "mess-pst900": pst900,
    "mess-zerowaste": zerowaste,
    "mess-suim": suim,
    "mess-cub-200": cub_200,
    "mess-cwfid": cwfid,
    "refcoco-val": refcoco,
    "refcoco-testa": lambda root: refcoco(root, split="testA"),
    "refcoco-testb": lambda root: refcoco(root, split="testB"),
    "refcoco-plus-val": lambda root: refcoco(root, "refcoco+"),
    "refcoco-plus-testa": lambda root: refcoco(root, "refcoco+", "testA"),
    "refcoco-plus-testb": lambda root: refcoco(root, "refcoco+", "testB"),
}
