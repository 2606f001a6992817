"""A user's own data, opened by its path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lexiseg.data.own import open_own, read_classes
from lexiseg.errors import DataError, LexisegError, UsageError
from lexiseg.structures import IGNORED
from tests.data.miniatures import MINIATURES, REGIONS, SCENES, picture, raw_map, write


def label_maps(
    folder: Path, values: tuple[int, ...], images: str = "images", labels: str = "labels", ending: str = ".png"
) -> None:
    for number, regions in enumerate(SCENES):
        picture(folder / f"{images}/{number}.jpg")
        kind = np.uint8 if max(values) < 256 else np.uint16
        write(folder / f"{labels}/{number}{ending}", raw_map(regions, *values, kind=kind))


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("images", "annotations"), ("val", "valannot"), ("img_dir", "ann_dir")]
)
def test_a_folder_of_label_maps(images: str, labels: str, tmp_path: Path) -> None:
    label_maps(tmp_path, (0, 1, 255, 1), images, labels)
    (tmp_path / "classes.txt").write_text("sky\ndog, puppy\n")
    dataset = open_own(tmp_path)
    assert dataset.tasks == ("semantic",)
    assert [entry.names for entry in dataset.vocabulary.classes] == [("sky",), ("dog", "puppy")]
    assert [sample.key for sample in dataset.samples] == ["0", "1"]
    expected = np.array([0, 1, IGNORED, 1])[REGIONS]
    np.testing.assert_array_equal(dataset.truth(dataset.samples[0], "semantic"), expected)


def test_ids_may_be_said_and_may_be_void(tmp_path: Path) -> None:
    label_maps(tmp_path, (3, 700, 11, 9), ending=".tif")
    (tmp_path / "classes.txt").write_text("# ids of the maps\n700: dog, puppy | thing\n\n 3 : sky | stuff\n9: car\n11: void\n")
    dataset = open_own(tmp_path)
    assert dataset.vocabulary.names == ("dog", "sky", "car")
    assert dataset.category_ids == (700, 3, 9)
    expected = np.array([1, 0, IGNORED, 2])[REGIONS]
    np.testing.assert_array_equal(dataset.truth(dataset.samples[0], "semantic"), expected)


def test_65535_is_void_only_where_a_class_has_an_id_as_high_as_255(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    for text, void in (("254: a\n", 255), ("255: a\n", 65535), ("a\n", 255), ("\n".join(map(str, range(256))), 65535)):
        path.write_text(text)
        assert read_classes(path)[1].ignored == {void}


def test_classes_may_lie_beside_the_folder_or_be_given(tmp_path: Path) -> None:
    label_maps(tmp_path / "data", (0, 1, 255, 1))
    names = tmp_path / "classes.txt"
    names.write_text("sky\ndog\n")
    assert open_own(tmp_path / "data").vocabulary.names == ("sky", "dog")
    names.rename(tmp_path / "mine.txt")
    assert open_own(tmp_path / "data", vocabulary=tmp_path / "mine.txt").vocabulary.names == ("sky", "dog")
    assert len(open_own(tmp_path / "data", vocabulary="voc20").vocabulary) == 20


def test_folders_may_be_named(tmp_path: Path) -> None:
    label_maps(tmp_path, (0, 1, 255, 1), "photos", "truths")
    (tmp_path / "classes.txt").write_text("sky\ndog\n")
    dataset = open_own(tmp_path, images=tmp_path / "photos", labels=tmp_path / "truths")
    assert len(dataset.samples) == 2


def test_camvid_as_a_user_has_it(tmp_path: Path) -> None:
    MINIATURES["camvid-val"].build(tmp_path)
    names = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist", "void")
    (tmp_path / "classes.txt").write_text("".join(f"{number}: {name}\n" for number, name in enumerate(names)))
    dataset = open_own(tmp_path / "CamVid")
    expected = np.array([0, 8, IGNORED, 8])[REGIONS]
    np.testing.assert_array_equal(dataset.truth(dataset.samples[0], "semantic"), expected)
    assert dataset.vocabulary.names == names[:-1]


def test_a_coco_instances_json(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    source = tmp_path / "coco/annotations/instances_val2017.json"
    dataset = open_own(source, images=tmp_path / "coco/val2017")
    assert dataset.tasks == ("instance",)
    assert dataset.vocabulary.names == ("person", "car")
    assert dataset.category_ids == (1, 3)
    assert not dataset.federated
    assert [(one.label, one.crowd) for one in dataset.truth(dataset.samples[0], "instance").things] == [(1, False), (1, True)]


def test_lvis_json_is_federated_under_any_path(tmp_path: Path) -> None:
    MINIATURES["lvis"].build(tmp_path)
    source = tmp_path / "lvis/lvis_v1_val.json"
    source.write_text(source.read_text().replace('"coco_url": "http://images.cocodataset.org/', '"file_name": "'))
    assert open_own(source, images=tmp_path / "coco").federated


def test_a_coco_panoptic_json_gives_all_tasks(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    source = tmp_path / "coco/annotations/panoptic_val2017.json"
    dataset = open_own(source, images=tmp_path / "coco/val2017", labels=tmp_path / "coco/panoptic_val2017")
    sample = dataset.samples[0]
    assert dataset.tasks == ("semantic", "panoptic", "instance")
    np.testing.assert_array_equal(dataset.truth(sample, "semantic"), np.array([2, 1, IGNORED, 1])[REGIONS])
    assert [(one.label, one.crowd, one.area) for one in dataset.truth(sample, "instance").things] == [
        (1, False, 6),
        (1, True, 4),
    ]


def test_a_json_finds_its_folders(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    coco, folder = tmp_path / "coco", tmp_path / "mine"
    folder.mkdir()
    (coco / "val2017").rename(folder / "images")
    (coco / "panoptic_val2017").rename(folder / "panoptic")
    (coco / "annotations/panoptic_val2017.json").rename(folder / "panoptic.json")
    (folder / "classes.json").write_text("[]")
    (folder / "._panoptic.json").write_bytes(b"\0\5\x16\7")
    for path in (folder, folder / "panoptic.json"):
        dataset = open_own(path)
        assert len(dataset.truth(dataset.samples[0], "panoptic").segments) == 3


def test_one_json_in_a_folder_is_taken_and_of_two_none(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    (tmp_path / "coco/val2017").rename(tmp_path / "coco/annotations/images")
    (tmp_path / "coco/annotations/panoptic_val2017.json").unlink()
    (tmp_path / "coco/annotations/._instances_val2017.json").write_bytes(b"\0\5\x16\7")
    assert open_own(tmp_path / "coco/annotations").tasks == ("instance",)
    (tmp_path / "coco/annotations/other.json").write_text("{}")
    with pytest.raises(DataError, match=r"several JSON files \(instances_val2017\.json, other\.json\)"):
        open_own(tmp_path / "coco/annotations")


BAD_CLASSES = {
    "some with ids": ("7: dog\ncat\n", r"line 2 \('cat'\) has no id while line 1 has"),
    "an id twice": ("7: dog\n7: puppy\n", "id 7 is in line 1 and line 2"),
    "void alone": ("7: void\n", "empty"),
    "nothing": ("", "empty"),
}


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_classes_that_cannot_be_meant(case: str, tmp_path: Path) -> None:
    text, message = BAD_CLASSES[case]
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(LexisegError) as caught:
            open_own(path)
        return str(caught.value)

    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    assert "looked for a COCO JSON, and for the folders images/ + labels/" in refusal(tmp_path)
    label_maps(tmp_path, (0, 1, 255, 1))
    assert "no classes.txt" in refusal(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(tmp_path)
    (tmp_path / "classes.txt").write_text("sky\n")
    (tmp_path / "labels/1.png").unlink()
    assert "1 picture is without a label map *.png" in refusal(tmp_path)
    document = {"images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}], "annotations": [], "categories": []}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    assert "the picture a.jpg is not beside it" in refusal(tmp_path / "truth.json")
    (tmp_path / "truth.json").write_text(json.dumps({**document, "images": []}))
    assert "lists no pictures" in refusal(tmp_path / "truth.json")


LEAVING = ("/elsewhere/a.jpg", "../a.jpg", "..\\..\\a.jpg", "C:/a.jpg", "a\0.jpg", "a//b.jpg", 7, None)


@pytest.mark.parametrize("name", LEAVING)
@pytest.mark.parametrize("named", ["images", "annotations"])
def test_a_name_in_a_json_never_leaves_its_folder(named: str, name: object, tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    coco = tmp_path / "coco"
    folders = {"images": coco / "val2017", "labels": coco / "panoptic_val2017"}
    sources = ["panoptic_val2017.json"] + (["instances_val2017.json"] if named == "images" else [])
    for file in sources:
        source = coco / "annotations" / file
        document = json.loads(source.read_text())
        document[named][1]["file_name"] = name
        source.write_text(json.dumps(document))
        key = "id" if named == "images" else "image_id"
        place = rf"{named}\[1\], {key.removesuffix('_id')} {document[named][1][key]}[,:]"
        with pytest.raises(DataError, match=rf"{file}, {place}.*(the name|file_name)"):
            [open_own(source, **folders).truth(sample, "panoptic") for sample in open_own(source, **folders).samples]
        if named == "images":
            document["images"] = document["images"][1:]
            document["annotations"] = []
            source.write_text(json.dumps(document))
            with pytest.raises(DataError, match=rf"{file}, images\[0\], id \d+: .*(the name|file_name)"):
                open_own(source)


def test_a_picture_outside_of_the_folder_of_pictures_is_refused_although_it_is_there(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    source = tmp_path / "coco/annotations/instances_val2017.json"
    document = json.loads(source.read_text())
    picture(tmp_path / "coco/private.jpg")
    for name in ("../private.jpg", str(tmp_path / "coco/private.jpg")):
        document["images"][0]["file_name"] = name
        source.write_text(json.dumps(document))
        with pytest.raises(DataError, match=r"instances_val2017\.json, images\[0\], id \d+: the name"):
            open_own(source, images=tmp_path / "coco/val2017")


def test_names_as_windows_writes_them_are_found(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    source = tmp_path / "coco/annotations/instances_val2017.json"
    document = json.loads(source.read_text())
    for entry in document["images"]:
        entry["file_name"] = f".\\val2017\\{entry['file_name']}"
    source.write_text(json.dumps(document))
    sample = open_own(source, images=tmp_path / "coco").samples[0]
    assert sample.key.startswith("val2017/")
    assert sample.image.is_file()


def test_pictures_that_differ_only_in_their_ending_are_told_so(tmp_path: Path) -> None:
    MINIATURES["coco-panoptic"].build(tmp_path)
    source = tmp_path / "coco/annotations/instances_val2017.json"
    document = json.loads(source.read_text())
    document["images"][1]["file_name"] = document["images"][0]["file_name"].replace(".jpg", ".png")
    source.write_text(json.dumps(document))
    with pytest.raises(DataError, match="differ only in their ending"):
        open_own(source, images=tmp_path / "coco/val2017")


def test_label_maps_are_found_whatever_the_case_of_their_ending(tmp_path: Path) -> None:
    label_maps(tmp_path, (0, 1, 255, 1))
    (tmp_path / "classes.txt").write_text("sky\ndog\n")
    keys = [sample.key for sample in open_own(tmp_path).samples]
    (tmp_path / "labels/1.png").rename(tmp_path / "labels/1.PNG")
    (tmp_path / "labels/._1.png").write_bytes(b"\0\5\x16\7")
    dataset = open_own(tmp_path)
    assert [sample.key for sample in dataset.samples] == keys
    assert dataset.samples[1].annotation["semantic"].name == "1.PNG"
    (tmp_path / "labels/1.png").write_bytes((tmp_path / "labels/1.PNG").read_bytes())
    with pytest.raises(DataError, match="differ only in upper and lower case"):
        open_own(tmp_path)
