"""Read the files of `lexiseg segment --format …` with the programs they are for, and compare the masks.

The tests do this with the consumers that `pip install lexiseg[dev]` brings. The others do not go together with our lock (datumaro), bring
a window system (labelme) or a data base (fiftyone), so they are tried here, from an environment that has them; what is not installed
is left out. Run from the repository's root:

    python tools/check_formats.py [FOLDER]

FOLDER is where the files are written (default: a temporary one). Prints a line a consumer: how many masks it read, how many of them
are equal, and the least intersection over union.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg import formats
from lexiseg.errors import UsageError
from lexiseg.ops.names import result_name
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment

Mask = NDArray[np.bool_]
NAMES = ("dog", "grass", "sky")
SIZE = (61, 83)


def masks(seed: int) -> Mask:
    """Disjoint masks [6, H, W] with holes, islands in holes, pieces, noise, one pixel, and pixels on the border."""
    random, high, wide = np.random.default_rng(seed), *SIZE
    drawn = np.zeros((6, high, wide), bool)
    y, x = np.mgrid[:high, :wide]
    drawn[0] = np.isin(np.hypot(x - 20, y - 30) // 4, (0, 2, 4))
    drawn[1] = (np.hypot(x - 60, y - 20) < 15) & (random.random(SIZE) < 0.6)
    drawn[2, 40:58, 45:60] = drawn[2, 40:58, 65:80] = True
    drawn[2, [45, 46, 50], [50, 51, 52]] = False
    drawn[3, 2, 3] = True
    drawn[4, 0] = drawn[4, -1] = drawn[4, :, 0] = drawn[4, :, -1] = True
    drawn[5] = ~drawn.any(0)
    return drawn


def result(folder: Path, seed: int) -> Segmentation:
    drawn, random = masks(seed), np.random.default_rng(seed)
    picture = folder / "pictures" / f"{seed}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    image = random.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    Image.fromarray(image).save(picture)
    segments = []
    for number, mask in enumerate(drawn, start=1):
        (top, left), (bottom, right) = np.argwhere(mask).min(0).tolist(), np.argwhere(mask).max(0).tolist()
        label, box = (number - 1) % 3, (left, top, right - left + 1, bottom - top + 1)
        segments.append(Segment(number, label, NAMES[label], label == 0, 1 - number / 10, int(mask.sum()), box))
    return Segmentation("panoptic", image, NAMES, (True, False, False), tuple(segments), drawn, str(picture))


Pairs = Iterator[tuple[Mask, Mask]]  # of a mask as read, and as it was


def _by_label(read: list[tuple[int, Mask]], expected: Segmentation) -> Pairs:
    """Unions of the masks of each class, for readers that do not keep the regions or their order."""
    for label in range(len(NAMES)):
        chosen = [mask for number, mask in read if number == label]
        truth = [mask for segment, mask in zip(expected.segments, expected.masks, strict=True) if segment.label == label]
        yield np.any(chosen, axis=0) if chosen else np.zeros(SIZE, bool), np.any(truth, axis=0)


def _datumaro(folder: Path, kind: str, results: list[Segmentation]) -> Pairs:
    from datumaro import AnnotationType, Dataset

    read = Dataset.import_from(str(folder), kind)
    names = [label.name for label in read.categories()[AnnotationType.label]]
    items = {item.id: item for item in read}
    for expected in results:
        annotations = [
            each for each in items[Path(str(expected.source)).stem].annotations if each.type == AnnotationType.mask
        ]  # not boxes
        drawn = [(NAMES.index(names[each.label]), np.asarray(each.image).astype(bool)) for each in annotations]
        yield from _by_label(drawn, expected)


def _filled(points: list[float]) -> Mask:
    """Fill a polygon as YOLO's training does."""
    import cv2

    canvas = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(canvas, [np.asarray(points).reshape(-1, 2).astype(np.int32)], 1)
    return canvas.astype(bool)


def coco_in_datumaro(out: Path, results: list[Segmentation]) -> Pairs:
    folder = out / "datumaro-coco"
    _copied(out / "coco.json", folder / "annotations/instances_val.json")
    shutil.copytree(Path(str(results[0].source)).parent, folder / "images/val", dirs_exist_ok=True)
    yield from _datumaro(folder, "coco_instances", results)


def panoptic_in_datumaro(out: Path, results: list[Segmentation]) -> Pairs:
    folder = out / "datumaro-panoptic"
    _copied(out / "coco-panoptic.json", folder / "annotations/panoptic_val.json")
    for path in out.glob("*.panoptic.png"):
        _copied(path, folder / "annotations/panoptic_val" / path.name)
    shutil.copytree(Path(str(results[0].source)).parent, folder / "images/val", dirs_exist_ok=True)
    yield from _datumaro(folder, "coco_panoptic", results)


def cvat_in_datumaro(out: Path, results: list[Segmentation]) -> Pairs:
    _copied(out / "cvat.xml", out / "datumaro-cvat/annotations.xml")
    shutil.copytree(Path(str(results[0].source)).parent, out / "datumaro-cvat/images", dirs_exist_ok=True)
    yield from _datumaro(out / "datumaro-cvat", "cvat", results)


def yolo_in_opencv(out: Path, results: list[Segmentation]) -> Pairs:
    """The labels, scaled and cut off to whole numbers, as YOLO's training reads them, filled by OpenCV."""
    for expected in results:
        rows = (out / "yolo/labels" / f"{result_name(str(expected.source))}.yolo.txt").read_text().splitlines()
        drawn = []
        for label, *numbers in (row.split() for row in rows):
            corners = np.array(numbers, np.float32).reshape(-1, 2) * np.array(SIZE[::-1], np.float32)
            drawn.append((int(label), _filled(corners.ravel().tolist())))
        yield from _by_label(drawn, expected)


def labelme(out: Path, results: list[Segmentation]) -> Pairs:
    from labelme._label_file import read_label_file
    from labelme.utils import shapes_to_label

    for expected in results:
        read = read_label_file(str(out / f"{result_name(str(expected.source))}.labelme.json"))
        values = {name: number for number, name in enumerate(NAMES, start=1)}
        classes, instances = shapes_to_label((*SIZE, 3), read.shapes, values)
        for number, (segment, mask) in enumerate(zip(expected.segments, expected.masks, strict=True), start=1):
            yield (instances == number) & (classes == segment.label + 1), mask


def label_studio(out: Path, results: list[Segmentation]) -> Pairs:
    from label_studio_converter.brush import decode_rle

    tasks = json.loads((out / "label-studio.json").read_text(encoding="utf-8"))
    for expected, task in zip(results, tasks, strict=True):
        for row, mask in zip(task["predictions"][0]["result"], expected.masks, strict=True):
            yield decode_rle(row["value"]["rle"]).reshape(*SIZE, 4)[..., 3] > 0, mask


def fiftyone(_: Path, results: list[Segmentation]) -> Pairs:
    for expected in results:
        for detection, mask in zip(expected.to_fiftyone().detections, expected.masks, strict=True):
            read, value = detection.to_segmentation(frame_size=SIZE[::-1], target=255).mask, 255
            yield read == value, mask


CHECKS = {
    "COCO instances in datumaro": ("datumaro", coco_in_datumaro),
    "COCO panoptic in datumaro": ("datumaro", panoptic_in_datumaro),
    "CVAT in datumaro": ("datumaro", cvat_in_datumaro),
    "YOLO in OpenCV": ("opencv-python-headless", yolo_in_opencv),
    "LabelMe": ("labelme", labelme),
    "Label Studio": ("label-studio-converter", label_studio),
    "to_fiftyone()": ("fiftyone", fiftyone),
}


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def main(folder: Path) -> int:
    """Write two results in all formats, and print what each consumer reads."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")  # of labelme
    results = [result(folder, seed) for seed in range(2)]
    chosen = [name for name, each in formats.FORMATS.items() if not each.needs_scores]
    for each in results:
        each.save(folder / "out", formats=chosen)
    failed = 0
    for name, (package, check) in CHECKS.items():
        try:
            pairs = list(check(folder / "out", results))
        except (ImportError, UsageError) as error:
            print(f"{name:<28} not tried: {error}")
            continue
        unions = [(read & truth).sum() / max(1, (read | truth).sum()) for read, truth in pairs]
        equal = sum(np.array_equal(read, truth) for read, truth in pairs)
        failed += equal < len(pairs)
        print(f"{name:<28} {package} {version(package)}: {len(pairs)} masks, {equal} equal, least IoU {min(unions):.6f}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary)))
