"""Data sets that must be prepared, or whose layout is not a plain pair of folders: each in a miniature of its real layout."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from lexiseg.data.prepare import UNFINISHED, Work, carry_out, labels_of_colours, labels_of_values, tiles
from lexiseg.data.row import Row
from lexiseg.data.sets import ade20k_847, mess, pascal, refcoco
from lexiseg.errors import DataError
from lexiseg.ops.rle import decode_counts
from lexiseg.text.vocabulary import Vocabulary
from tests.data.miniatures_prepared import BUILDERS, Miniature, photo
from tests.data.miniatures_prepared import refcoco as build_refcoco

ROWS: dict[str, Row] = {row.name: row for module in (ade20k_847, pascal, mess, refcoco) for row in module.ROWS}
PREPARED = [name for name, row in ROWS.items() if row.prepare]


def ready(name: str, root: Path) -> tuple[Row, Miniature]:
    """A row with its miniature, prepared if it must be."""
    row, built = ROWS[name], BUILDERS[name](root)
    if row.prepare:
        row.prepare(root)
    return row, built


def test_every_row_has_a_miniature() -> None:
    assert sorted(ROWS) == sorted(BUILDERS)


@pytest.mark.parametrize("name", ROWS)
def test_truths_are_what_was_drawn(name: str, tmp_path: Path) -> None:
    row, built = ROWS[name], BUILDERS[name](tmp_path)
    for pattern in row.raw:
        assert any(tmp_path.glob(pattern)), pattern
    if row.prepare:
        assert not all(any(tmp_path.glob(pattern)) for pattern in row.needs)
        row.prepare(tmp_path)
    for pattern in row.needs:
        assert any(tmp_path.glob(pattern)), pattern
    data = row.open(tmp_path)
    assert data.name == name
    assert data.tasks == row.tasks
    assert [sample.key for sample in data.samples] == sorted(built.truths)
    assert len(data.category_ids) == len(data.vocabulary)
    for sample in data.samples:
        labels = data.truth(sample, "semantic")
        assert isinstance(labels, np.ndarray)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, built.truths[sample.key], err_msg=sample.key)
        with Image.open(sample.image) as image:
            assert image.size == labels.shape[::-1]


@pytest.mark.parametrize("name", PREPARED)
def test_preparation_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    """The last picture is damaged; the first call stops there and names it, the second does that picture alone."""
    row, built = ROWS[name], BUILDERS[name](tmp_path)
    assert row.prepare is not None
    whole = built.damage.read_bytes()
    built.damage.write_bytes(b"not what it says")
    with pytest.raises(DataError, match=str(built.damage.name).replace("(", r"\(")):
        row.prepare(tmp_path)
    if name != "pascal-context-59":  # all in one file, which is read first
        assert list(tmp_path.rglob(UNFINISHED))
        with pytest.raises(DataError, match=f"data prepare {name}"):
            row.open(tmp_path)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file() and path.name != UNFINISHED}
    built.damage.write_bytes(whole)
    row.prepare(tmp_path)
    assert not list(tmp_path.rglob(UNFINISHED))
    assert sorted(sample.key for sample in row.open(tmp_path).samples) == sorted(built.truths)
    again = [path for path, time in first.items() if path.stat().st_mtime_ns != time and path != built.damage]
    assert len(again) <= 1  # at most the last picture, whose truth was not yet there


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_prepared_stays(name: str, tmp_path: Path) -> None:
    row, built = ready(name, tmp_path)
    assert row.prepare is not None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    row.prepare(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert built.truths


@pytest.mark.parametrize("name", ROWS)
def test_an_empty_folder_is_a_clear_error(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    with pytest.raises(DataError, match="no such"):
        row.open(tmp_path)
    if row.prepare:
        with pytest.raises(DataError, match="no such"):
            row.prepare(tmp_path)
    assert not any(tmp_path.iterdir())
    assert len(row.get) > 60
    assert row.images > 0


# --- what the preparations share --------------------------------------------------------------------------------------


def test_work_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    made: list[int] = []

    def make(number: int) -> Work:
        path = tmp_path / f"{number}.png"

        def write() -> None:
            if number == 2 and not made.count(2):
                made.append(2)
                raise KeyboardInterrupt
            made.append(number)
            path.write_bytes(b"")

        return Work(path, write)

    work = [make(number) for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        carry_out("some-set", tmp_path, work)
    assert (tmp_path / UNFINISHED).exists()
    carry_out("some-set", tmp_path, work)
    assert made == [0, 1, 2, 2, 3]
    assert not (tmp_path / UNFINISHED).exists()


def test_tiles_cover_the_picture_once() -> None:
    picture = np.arange(5 * 7).reshape(5, 7)
    parts = list(tiles(picture, 99, side=4))
    assert [part.shape for part in parts] == [(4, 4)] * 4
    rows = [np.concatenate(parts[:2], axis=1), np.concatenate(parts[2:], axis=1)]
    whole = np.concatenate(rows)
    np.testing.assert_array_equal(whole[:5, :7], picture)
    assert (whole[5:] == 99).all()
    assert (whole[:, 7:] == 99).all()


def test_colours_and_numbers_outside_the_table_are_errors() -> None:
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[1, 1] = (1, 2, 3)
    with pytest.raises(DataError, match=r"map\.png: 1 pixels of unknown colours, such as \(1, 2, 3\)"):
        labels_of_colours(colours, {(0, 0, 0): 0}, Path("map.png"))
    with pytest.raises(DataError, match=r"map\.png: 2 pixels of unknown numbers, such as 57"):
        labels_of_values(np.array([[57, 57, 1]], np.uint8), {1: 0}, Path("map.png"))


# --- ADE20K -----------------------------------------------------------------------------------------------------------


def test_ade_objects() -> None:
    names = Vocabulary.builtin("ade847").names
    assert len(ade20k_847.OBJECTS) == len(set(ade20k_847.OBJECTS)) == len(names) == 847
    some = {"wall": 2978, "building": 312, "sky": 2420, "bicycle": 187, "fountain": 1023, "gazebo": 1087}
    assert {name: ade20k_847.OBJECTS[names.index(name)] for name in some} == some
    colours = np.array([[[119, 162, 3], [10, 56, 0], [0, 0, 0]]], np.uint8)  # 2978 = 11 · 256 + 162, 312 = 256 + 56
    np.testing.assert_array_equal(ade20k_847.objects_of_colours(colours), [[2978, 312, 0]])
    np.testing.assert_array_equal(ade20k_847.labels_of_objects(np.array([[2978, 312, 0]], np.int32)), [[0, 1, 65535]])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 900), (512, 900)),
        ((683, 1024), (512, 768)),
        ((1024, 683), (768, 512)),
        ((600, 600), (512, 512)),
        ((2, 9), (2, 9)),
    ],
)
def test_ade_pictures_are_reduced_to_a_short_side_of_512(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert ade20k_847.reduced_size(size) == expected


def test_ade_labels_are_16_bits_and_pictures_are_reduced(tmp_path: Path) -> None:
    row, _ = ready("ade20k-847", tmp_path)
    folder = tmp_path / "ADE20K_2021_17_01"
    with Image.open(folder / "annotations_detectron2/validation/ADE_val_00000002.tif") as truth:
        assert (truth.mode, truth.size) == ("I;16", (1024, 512))
    assert len(row.open(tmp_path).vocabulary) == 847
    assert not (folder / "images_detectron2/training").exists()


# --- PASCAL -----------------------------------------------------------------------------------------------------------


def test_the_59_are_among_the_459() -> None:
    names = Vocabulary.builtin("pascal-context-459").names
    alphabetical = sorted(Vocabulary.builtin("pascal-context-59").names, key=lambda name: name.replace(" ", ""))
    assert [names[number - 1] for number in pascal.FREQUENT] == alphabetical
    assert alphabetical[:4] == ["aeroplane", "bag", "bed", "bedclothes"]


def test_voc_with_the_rest_has_59_names_and_no_background() -> None:
    vocabulary = pascal.voc_with_rest()
    assert len(vocabulary) == 21
    assert len(vocabulary.classes[20].names) == 39
    assert "background" not in vocabulary.all_names
    assert {"sky", "wood", "grass"} <= set(vocabulary.classes[20].names)
    assert not vocabulary.classes[20].thing
    assert Vocabulary.builtin("voc21").names == ("background", *Vocabulary.builtin("voc20").names)


def test_a_mask_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    row, built = ROWS["pascal-context-59"], BUILDERS["pascal-context-59"](tmp_path)
    assert row.prepare is not None
    good = built.damage.read_text()
    document = json.loads(good)
    document["annos_segmentation"][2]["segmentation"]["counts"] = "1"
    built.damage.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"trainval_merged.json: annotation 2 of 2008_000003 cannot be read"):
        row.prepare(tmp_path)
    with pytest.raises(DataError, match="data prepare pascal-context-59"):
        row.open(tmp_path)
    first = tmp_path / "VOCdevkit/VOC2010/annotations_detectron2/pc59_val/2008_000002.png"
    time = first.stat().st_mtime_ns
    built.damage.write_text(good)
    row.prepare(tmp_path)
    assert first.stat().st_mtime_ns == time
    assert len(row.open(tmp_path).samples) == 2


# --- MESS -------------------------------------------------------------------------------------------------------------


def test_mess_has_22_sets_in_five_domains() -> None:
    """PAXRay's four rows are one set."""
    sets = {row.name.rsplit("-", 1)[0] if "paxray" in row.name else row.name: row.group for row in mess.ROWS}
    assert len(sets) == 22
    assert Counter(sets.values()) == {
        "General": 6,
        "Earth Monitoring": 5,
        "Medical Sciences": 4,
        "Engineering": 4,
        "Agriculture and Biology": 3,
    }
    assert [row.name for row in mess.ROWS if row.prepare is None] == [
        "mess-foodseg103",
        "mess-worldfloods",
        "mess-corrosion-cs",
        "mess-pst900",
        "mess-zerowaste",
    ]


@pytest.mark.parametrize(
    ("name", "classes", "of_interest"),
    [
        ("mess-atlantis", 56, set(range(56))),
        ("mess-dram", 12, set(range(11))),
        ("mess-floodnet", 10, {1, 3}),
        ("mess-worldfloods", 3, {1}),
        ("mess-isprs-potsdam", 6, set(range(5))),
        ("mess-cub-200", 201, set(range(1, 201))),
    ],
)
def test_mess_classes_of_interest(name: str, classes: int, of_interest: set[int], tmp_path: Path) -> None:
    row, _ = ready(name, tmp_path)
    data = row.open(tmp_path)
    assert len(data.vocabulary) == classes
    assert data.groups == {"of interest": frozenset(of_interest)}


def test_pictures_at_the_edge_of_a_tile_are_filled_with_black(tmp_path: Path) -> None:
    ready("mess-isaid", tmp_path)
    with Image.open(tmp_path / "isaid/images_detectron2/val/P0003_1.png") as tile:
        pixels = np.asarray(tile)
    assert pixels.shape == (1024, 1024, 3)
    with Image.open(tmp_path / "isaid/val/images/P0003.png") as raw:
        np.testing.assert_array_equal(pixels[:4, :6], np.asarray(raw)[:, 1024:])
    assert not pixels[4:].any()
    assert not pixels[:, 6:].any()


def test_cut_pictures_are_read_for_mhp_alone(tmp_path: Path) -> None:
    row, _ = ready("mess-mhp-v1", tmp_path)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert row.open(tmp_path).samples[1].key == "0003"


def test_a_picture_and_a_truth_of_different_size_are_refused(tmp_path: Path) -> None:
    row, built = ROWS["mess-atlantis"], BUILDERS["mess-atlantis"](tmp_path)
    assert row.prepare is not None
    photo(tmp_path / "atlantis/images/test/wetland/2002.jpg", (7, 8))
    with pytest.raises(DataError, match=built.damage.name):
        row.prepare(tmp_path)


# --- RefCOCO ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_each_expression_is_a_sample(protocol: int, tmp_path: Path) -> None:
    build_refcoco(tmp_path, protocol=protocol)
    data = ROWS["refcoco-val"].open(tmp_path)
    assert [sample.image_id for sample in data.samples] == [100, 101, 102]
    vocabularies = [sample.vocabulary for sample in data.samples]
    assert [vocabulary.names if vocabulary else None for vocabulary in vocabularies] == [
        ("man, left", "background"),
        ("the café owner", "background"),
        ("dog", "background"),
    ]
    assert len(data.vocabulary) == 2
    assert {sample.image.name for sample in data.samples} == {"COCO_train2014_000000000009.jpg"}


def test_the_instance_is_the_referred_region(tmp_path: Path) -> None:
    built = build_refcoco(tmp_path)
    data = ROWS["refcoco-val"].open(tmp_path)
    for sample in data.samples:
        truth = data.truth(sample, "instance")
        (region,) = truth.things  # type: ignore[union-attr]
        assert region.label == 0
        inside = decode_counts(region.counts, (6, 8)).numpy()
        np.testing.assert_array_equal(inside, built.truths[sample.key] == 0)


class Harmful:
    """What a foreign pickle could hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    build_refcoco(tmp_path)
    path = tmp_path / "refcoco/refs(unc).p"
    path.write_bytes(pickle.dumps([{"split": Harmful(tmp_path / "harm")}]))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: .*names .*mkdir"):
        ROWS["refcoco-val"].open(tmp_path)
    assert not (tmp_path / "harm").exists()
    pickle.loads(path.read_bytes())  # the same file, read without care, does it
    assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02]", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps([1, 2])])
def test_a_damaged_pickle_is_named(content: bytes, tmp_path: Path) -> None:
    build_refcoco(tmp_path)
    (tmp_path / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p"):
        ROWS["refcoco-val"].open(tmp_path)


def test_a_missing_picture_and_a_split_without_expressions(tmp_path: Path) -> None:
    build_refcoco(tmp_path)
    with pytest.raises(DataError, match="no expression of the split 'testB'"):
        ROWS["refcoco-testb"].open(tmp_path)
    (tmp_path / "coco/train2014/COCO_train2014_000000000009.jpg").unlink()
    with pytest.raises(DataError, match=r"3 samples lack their picture, such as .*0009\.jpg"):
        ROWS["refcoco-val"].open(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("mess-mhp-v1", "LV-MHP-v1/test_list.txt", None, "../{}"),
        ("mess-kvasir-instrument", "kvasir-instrument/test.txt", None, "../{}"),
        ("mess-paxray-lungs", "paxray_dataset/paxray.json", "images/", "/images/"),
        ("mess-cub-200", "CUB_200_2011/images.txt", " 0", " ../0"),
        ("pascal-context-459", "VOCdevkit/VOC2010/ImageSets/Main/val.txt", None, "../{}"),
        ("pascal-context-59", "VOCdevkit/VOC2010/trainval_merged.json", '"file_name": "', '"file_name": "../'),
        ("voc-20", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", None, "/{}"),
    ],
)
def test_a_name_in_a_list_never_leaves_its_folder(name: str, file: str, old: str | None, new: str, tmp_path: Path) -> None:
    row = ROWS[name]
    BUILDERS[name](tmp_path)
    text = (tmp_path / file).read_text()
    changed = "".join(new.format(line) for line in text.splitlines(keepends=True)) if old is None else text.replace(old, new)
    assert changed != text
    (tmp_path / file).write_text(changed)
    with pytest.raises(DataError, match=rf"{Path(file).name}, .*the name .* (is absolute|'\.\.')"):
        (row.prepare or row.open)(tmp_path)


def test_a_picture_of_refcoco_never_lies_elsewhere(tmp_path: Path) -> None:
    row, _ = ready("refcoco-val", tmp_path)
    source = tmp_path / "refcoco/instances.json"
    source.write_text(source.read_text().replace('"file_name": "', '"file_name": "../'))
    with pytest.raises(DataError, match=r"instances\.json, image \d+: the name"):
        row.open(tmp_path)
