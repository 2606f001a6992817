"""Truths fit the picture held upright, whatever its EXIF orientation is and on which of both they are drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lexiseg.data.dataset import Dataset, Truth
from lexiseg.data.images import read_image, turned, turned_box
from lexiseg.data.own import open_own
from lexiseg.data.readers import picture_size
from lexiseg.errors import DataError
from lexiseg.exports.panoptic_png import write_panoptic_png
from lexiseg.ops.rle import compress, decode_counts, encode_masks
from lexiseg.structures import Instances, PanopticMap
from tests.data.miniatures import write

STORED = np.zeros((4, 6), np.uint8)  # no two of the eight ways to turn it give the same
STORED[0, :2], STORED[3, 5] = 1, 2
ORIENTATIONS = range(1, 9)
KINDS = ("label map", "panoptic", "instances")


def photo(path: Path, orientation: int, stored: np.ndarray = STORED) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(stored[..., None] * 100, 3, -1)).save(path, exif=exif, lossless=True)
    return path


def held_upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored)
    image.info["exif"] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(image))


def dataset(folder: Path, kind: str, truth: np.ndarray) -> Dataset:
    """A picture ``images/1.png`` that is there already, with a truth of two classes."""
    high, wide = truth.shape
    if kind == "label map":
        write(folder / "labels/1.png", truth)
        (folder / "classes.txt").write_text("rest\ndog\ncat\n")
        return open_own(folder)
    document = {
        "images": [{"id": 1, "file_name": "1.png", "height": high, "width": wide}],
        "categories": [{"id": label, "name": name, "isthing": 1} for label, name in ((1, "dog"), (2, "cat"))],
    }
    masks = [(label, truth == label) for label in (1, 2)]
    if kind == "panoptic":
        write_panoptic_png(folder / "panoptic/1.png", truth.astype(np.int32))
        segments = [{"id": label, "category_id": label} for label, _ in masks]
        document["annotations"] = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    else:
        document["annotations"] = []
        for label, mask in masks:
            (counts,) = encode_masks(torch.from_numpy(mask[None]))
            segmentation = {"size": [high, wide], "counts": compress(counts)}
            document["annotations"].append({"id": label, "image_id": 1, "category_id": label, "segmentation": segmentation})
    (folder / "panoptic.json").write_text(json.dumps(document))
    return open_own(folder / "panoptic.json")


def as_map(truth: Truth) -> np.ndarray:
    """Of any kind of truth of `dataset` the classes [H, W], and its boxes must hold its masks."""
    if isinstance(truth, PanopticMap):
        return truth.ids
    if isinstance(truth, Instances):
        shown = np.zeros(truth.size, np.int32)
        for thing in truth.things:
            mask = decode_counts(thing.counts, truth.size).numpy()
            rows, columns = np.nonzero(mask)
            assert thing.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            shown[mask] = thing.label + 1
        return shown
    return truth


def read(data: Dataset, *, stored: bool = False) -> np.ndarray:
    (sample,) = data.samples
    return as_map(data.truth(replace(sample, stored=stored), data.tasks[-1]))


@pytest.mark.parametrize("orientation", [0, *ORIENTATIONS, 9])
@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
def test_the_size_of_a_picture_is_known_from_its_header(ending: str, orientation: int, tmp_path: Path) -> None:
    path = photo(tmp_path / f"a.{ending}", orientation)
    assert picture_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_values_and_boxes_are_turned_as_pixels_are(orientation: int) -> None:
    assert np.array_equal(turned(STORED, orientation), held_upright(STORED, orientation))
    rows, columns = np.nonzero(turned(STORED == 1, orientation))
    box = turned_box((0.0, 0.0, 2.0, 1.0), (4, 6), orientation)
    assert box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_size_that_fits_one_way_only_decides(orientation: int, kind: str, tmp_path: Path) -> None:
    upright = held_upright(STORED, orientation)
    photo(tmp_path / "images/1.png", orientation)
    for truth in (upright, STORED):
        data = dataset(tmp_path, kind, truth)
        for stored in (False, True):
            shown = read(data, stored=stored)
            assert np.array_equal(shown, upright)
            torch.from_numpy(shown)  # which takes no array that is read backwards


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_where_sizes_do_not_tell_the_sample_says(orientation: int, kind: str, tmp_path: Path) -> None:
    square = np.pad(STORED, ((0, 2), (0, 0)))
    photo(tmp_path / "images/1.png", orientation, square)
    data = dataset(tmp_path, kind, square)
    assert np.array_equal(read(data), square)
    assert np.array_equal(read(data, stored=True), held_upright(square, orientation))


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_that_fits_neither_way_is_refused(kind: str, tmp_path: Path) -> None:
    for orientation, said in ((6, "6 × 4, EXIF orientation 6: stored on its side;"), (3, "4 × 6;"), (1, "4 × 6;")):
        photo(tmp_path / "images/1.png", orientation)
        with pytest.raises(DataError, match=said):
            read(dataset(tmp_path, kind, np.pad(STORED, 1)), stored=True)


@pytest.mark.parametrize("orientation", [1, 0, 9])
def test_without_an_orientation_a_truth_on_its_side_is_of_another_picture(orientation: int, tmp_path: Path) -> None:
    photo(tmp_path / "images/1.png", orientation)
    with pytest.raises(DataError, match="6 × 4 pixels"):
        read(dataset(tmp_path, "label map", np.ascontiguousarray(STORED.T)))
