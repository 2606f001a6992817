"""Label tables, and files that only some data sets hold."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.dataset import Sample
from lexiseg.data.readers import pair_samples, picture_size
from lexiseg.errors import DataError
from lexiseg.ops.label_table import LabelTable
from lexiseg.ops.pictures import read_values
from lexiseg.structures import IGNORED
from tests.data.miniatures import picture, write


def test_a_table_maps_many_ids_to_a_label_and_keeps_the_shape() -> None:
    table = LabelTable({5: 0, 300: 1, 7: 0}, frozenset({0, 65535}))
    values = np.array([[5, 7, 300], [0, 65535, 5]], np.uint16)
    labels = table.map(values, "a.png")
    assert labels.dtype == np.int32
    assert labels.tolist() == [[0, 0, 1], [IGNORED, IGNORED, 0]]


@pytest.mark.parametrize("strange", [-1, 4, 6, 299, 301, 70000])
def test_ids_between_before_and_behind_those_of_the_table_are_refused(strange: int) -> None:
    table = LabelTable({5: 0, 300: 1}, frozenset({7}))
    with pytest.raises(DataError, match=rf"a\.png: unknown class id {strange} \(1 pixels\); known are 5, 300, ignored 7"):
        table.map(np.array([[5, strange]], np.int32), "a.png")
    with pytest.raises(DataError, match=f"unknown class id {strange};"):
        table.label(strange, "a.png")


@pytest.mark.parametrize(
    ("mode", "name"), [("1", "a.png"), ("L", "a.png"), ("P", "a.png"), ("I;16", "a.png"), ("I;16", "a.tif")]
)
def test_label_maps_of_every_depth_are_read_as_ids(mode: str, name: str, tmp_path: Path) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]]) * (1000 if mode == "I;16" else 1)
    if mode == "P":
        image = Image.fromarray(values.astype(np.uint8), "L").convert("L")
        image.putpalette([9, 9, 9, 200, 100, 50])
    else:
        image = Image.fromarray(values.astype({"1": np.bool_, "L": np.uint8, "I;16": np.uint16}[mode]))
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        assert opened.mode == mode
    np.testing.assert_array_equal(read_values(tmp_path / name), values)


def test_the_size_of_a_picture_on_its_side_is_that_of_the_upright_one(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert picture_size(tmp_path / "a.jpg") == (6, 4)
    image.save(tmp_path / "b.jpg")
    assert picture_size(tmp_path / "b.jpg") == (4, 6)


def test_pairs_go_by_relative_names_and_by_a_list(tmp_path: Path) -> None:
    for name in ("x/a", "x/b", "y/a"):
        picture(tmp_path / f"images/{name}_left.png")
        write(tmp_path / f"truths/{name}_ids.png", np.zeros((4, 6), np.uint8))
    folders = tmp_path / "images", tmp_path / "truths"
    endings = {"image_ending": "_left.png", "truth_ending": "_ids.png"}
    assert [sample.key for sample in pair_samples(*folders, **endings)] == ["x/a", "x/b", "y/a"]
    chosen = pair_samples(*folders, **endings, names=["y/a", "x/a"])
    assert [sample.annotation["semantic"] for sample in chosen] == [
        tmp_path / "truths/y/a_ids.png",
        tmp_path / "truths/x/a_ids.png",
    ]
    with pytest.raises(DataError, match=r"1 picture is not in .*images, but in the list of the split: x/c"):
        pair_samples(*folders, **endings, names=["y/a", "x/c"])


def test_only_the_first_few_pictures_without_truth_are_named(tmp_path: Path) -> None:
    for number in range(5):
        picture(tmp_path / f"images/{number}.jpg")
    (tmp_path / "truths").mkdir()
    with pytest.raises(DataError, match=r"5 pictures are without .*0\.jpg, .*1\.jpg, .*2\.jpg and 2 more"):
        pair_samples(tmp_path / "images", tmp_path / "truths")


def test_folders_that_are_missing_or_empty_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images: no such folder"):
        pair_samples(tmp_path / "images", tmp_path / "truths")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="images: holds no file that ends in"):
        pair_samples(tmp_path / "images", tmp_path / "truths")


@pytest.mark.parametrize("key", ["../a", "/a", "a\\b", "./a", "a\n", "", "C:a"])
def test_no_sample_has_a_key_that_could_name_a_file_elsewhere(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png(, |: )its key"):
        Sample(key, tmp_path / "a.png", 1, None)


@pytest.mark.skipif("\\" in (os.sep, os.altsep), reason="such a file cannot be")
def test_a_backslash_in_the_name_of_a_picture_is_no_way_into_another_folder(tmp_path: Path) -> None:
    for name in ("x\\a", "x\\..\\..\\b"):
        picture(tmp_path / f"images/{name}.jpg")
        write(tmp_path / f"truths/{name}.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"'\.\.'"):
        pair_samples(tmp_path / "images", tmp_path / "truths")
    (tmp_path / "images/x\\..\\..\\b.jpg").unlink()
    (sample,) = pair_samples(tmp_path / "images", tmp_path / "truths")
    assert (sample.key, sample.annotation["semantic"]) == ("x/a", tmp_path / "truths/x\\a.png")
