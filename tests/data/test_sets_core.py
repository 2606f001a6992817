"""Each data set of the core catalogue, read from a miniature of its real layout."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lexiseg.cli import world as world_command
from lexiseg.data.catalogue import row_named
from lexiseg.data.dataset import Dataset
from lexiseg.data.sets import ade20k
from lexiseg.errors import DataError
from lexiseg.ops.rle import decode_counts
from lexiseg.structures import IGNORED, Instances, PanopticMap
from lexiseg.world import scenes
from tests.data.miniatures import MINIATURES, REGIONS, colours, mapillary, picture, raw_map, write, write_document

Pixels = frozenset[tuple[int, int]]


def pixels(mask: np.ndarray) -> Pixels:
    return frozenset((int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True))


def seen(panoptic: PanopticMap) -> set[tuple[int, bool, Pixels]]:
    return {(segment.label, segment.crowd, pixels(panoptic.ids == segment.id)) for segment in panoptic.segments}


def counted(instances: Instances) -> set[tuple[int, bool, Pixels]]:
    return {(one.label, one.crowd, pixels(decode_counts(one.counts, instances.size).numpy())) for one in instances.things}


def opened(name: str, root: Path) -> Dataset:
    row = row_named(name)
    MINIATURES[name].build(root)
    if row.prepare is not None:
        row.prepare(root)
    return row.open(root)


@pytest.mark.parametrize("name", MINIATURES)
def test_a_miniature_is_read_as_it_was_made(name: str, tmp_path: Path) -> None:
    expected, dataset = MINIATURES[name], opened(name, tmp_path)
    thing_name, thing = expected.things
    assert dataset.name == name
    assert dataset.tasks == expected.tasks == row_named(name).tasks
    assert len(dataset.samples) == 2
    assert len({sample.key for sample in dataset.samples}) == 2
    assert len(dataset.category_ids) == len(dataset.vocabulary)
    assert dataset.vocabulary.classes[thing].name == thing_name
    assert dataset.vocabulary.things[thing]
    stuff = None
    if expected.stuff is not None:
        stuff_name, stuff = expected.stuff
        assert dataset.vocabulary.classes[stuff].name == stuff_name
        assert not dataset.vocabulary.things[stuff]
    if expected.category_ids is not None and stuff is not None:
        assert (dataset.category_ids[stuff], dataset.category_ids[thing]) == expected.category_ids

    first, second = dataset.samples
    regions = {region: pixels(region == REGIONS) for region in range(4)}
    things = {(thing, False, regions[1]), (thing, expected.crowd, regions[3])}
    if "semantic" in expected.tasks:
        labels = dataset.truth(first, "semantic")
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(labels, np.array([stuff, thing, IGNORED, thing])[REGIONS])
        np.testing.assert_array_equal(dataset.truth(second, "semantic"), np.full((4, 6), stuff))
    if "panoptic" in expected.tasks:
        panoptic = dataset.truth(first, "panoptic")
        assert panoptic.ids.dtype == np.int32
        assert seen(panoptic) == things | {(stuff, False, regions[0])}
        assert pixels(panoptic.ids == 0) == regions[2]
        assert seen(dataset.truth(second, "panoptic")) == {(stuff, False, pixels(REGIONS >= 0))}
    if "instance" in expected.tasks:
        instances = dataset.truth(first, "instance")
        assert counted(instances) == things
        boxes = {one.area: one.box for one in instances.things}
        assert boxes == {6.0: (3.0, 0.0, 3.0, 2.0), 4.0: (4.0, 2.0, 2.0, 2.0)}
        assert dataset.truth(second, "instance").things == ()


@pytest.mark.parametrize("name", ["coco-panoptic", "cityscapes", "camvid-val"])
def test_a_data_set_can_be_sent_to_another_process(name: str, tmp_path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(opened(name, tmp_path)))
    sample = dataset.samples[0]
    assert all(dataset.truth(sample, task) is not None for task in dataset.tasks)


def test_image_ids_are_what_official_files_call_the_pictures(tmp_path: Path) -> None:
    assert [sample.image_id for sample in opened("coco-panoptic", tmp_path).samples] == [7, 8]
    assert opened("cityscapes", tmp_path).samples[1].image_id == "frankfurt_000000_000001"
    assert opened("lvis", tmp_path).samples[1].image_id == 285


def test_cityscapes_ids_without_a_class_are_void_in_every_task(tmp_path: Path) -> None:
    dataset = opened("cityscapes", tmp_path)
    sample = dataset.samples[0]
    values = raw_map(REGIONS, 7, 29001, 30, 26002, kind=np.uint16)  # a caravan and a trailer are not evaluated
    write(sample.annotation["instance"], values)
    road, car = pixels(REGIONS == 0), pixels(REGIONS == 3)
    assert seen(dataset.truth(sample, "panoptic")) == {(0, False, road), (13, False, car)}
    assert counted(dataset.truth(sample, "instance")) == {(13, False, car)}


def test_lvis_is_federated(tmp_path: Path) -> None:
    dataset = opened("lvis", tmp_path)
    assert dataset.federated
    assert dataset.groups == {"rare": {2}, "common": {0}, "frequent": {1}}
    assert dataset.vocabulary.classes[0].names == ("aerosol can", "spray can")
    first, second = (dataset.truth(sample, "instance") for sample in dataset.samples)
    assert (first.checked, first.partly) == ({1, 2}, {1})
    assert (second.checked, second.partly) == ({0}, frozenset())


def test_ade20k_without_its_generated_files_has_the_semantic_task(tmp_path: Path) -> None:
    MINIATURES["ade20k-150"].build(tmp_path)
    assert ade20k.open_val(tmp_path).tasks == ("semantic",)


def test_ade20k_keeps_stuff_that_things_cover(tmp_path: Path) -> None:
    MINIATURES["ade20k-150"].build(tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    write(folder / "annotations/validation/ADE_val_00000001.png", raw_map(REGIONS, 3, 21, 0, 1))  # a wall under region 3
    ade20k.prepare(tmp_path)
    dataset = ade20k.open_val(tmp_path)
    panoptic = dataset.truth(dataset.samples[0], "panoptic")
    assert (0, False, frozenset()) in seen(panoptic)
    assert (20, False, pixels(REGIONS == 3)) in seen(panoptic)


def test_ade20k_prepares_again_what_is_missing(tmp_path: Path) -> None:
    MINIATURES["ade20k-150"].build(tmp_path)
    ade20k.prepare(tmp_path)
    folder = tmp_path / "ADEChallengeData2016"
    lost, kept = (folder / f"ade20k_panoptic_val/ADE_val_{number:08d}.png" for number in (1, 2))
    source, stamp, before = folder / "ade20k_panoptic_val.json", kept.stat().st_mtime_ns, lost.read_bytes()
    written = source.read_text()
    lost.unlink()
    source.unlink()
    ade20k.prepare(tmp_path)
    assert lost.read_bytes() == before
    assert source.read_text() == written
    assert kept.stat().st_mtime_ns == stamp


def test_mapillary_1_2_is_found_in_the_folders_of_release_2_0_too(tmp_path: Path) -> None:
    mapillary("config_v1.2.json", "validation/v1.2/panoptic/panoptic_2018.json")(tmp_path)
    assert len(row_named("mapillary-1.2").open(tmp_path).samples) == 2


def test_the_emoji_world_is_read_as_it_was_rendered(tmp_path: Path) -> None:
    folder = tmp_path / "emoji-world"
    options = {"split": "val", "count": 2, "seed": 3, "size": 64, "output": str(folder), "json": True}
    world_command.run(argparse.Namespace(**options))
    dataset = row_named("emoji-world").open(tmp_path)
    assert dataset.tasks == row_named("emoji-world").tasks
    for sample, scene in zip(dataset.samples, scenes("val", 2, seed=3, size=64), strict=True):
        np.testing.assert_array_equal(dataset.truth(sample, "semantic"), scene.semantic())
        panoptic = dataset.truth(sample, "panoptic")
        np.testing.assert_array_equal(panoptic.ids, scene.panoptic)
        assert {(segment.id, segment.label) for segment in panoptic.segments} == {
            (segment.id, segment.label) for segment in scene.segments
        }
        expected = {
            (segment.label, False, pixels(scene.panoptic == segment.id))
            for segment in scene.segments
            if dataset.vocabulary.things[segment.label]
        }
        assert counted(dataset.truth(sample, "instance")) == expected


# --- bad input --------------------------------------------------------------------------------------------------------

CAMVID_MAP, CAMVID_PICTURE = "CamVid/valannot/0016E5_00000.png", "CamVid/val/0016E5_00000.png"
COCO_MAP = "coco/panoptic_val2017/000000000139.png"
COCO_JSON, COCO_INSTANCES = "coco/annotations/panoptic_val2017.json", "coco/annotations/instances_val2017.json"


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return edit


def repainted(*values: int) -> Callable[[Path], None]:
    return lambda path: write(path, raw_map(REGIONS, *values)) and None


BAD: dict[str, tuple[str, str, Callable[[Path], object], str, str]] = {
    "map missing": ("camvid-val", CAMVID_MAP, Path.unlink, "semantic", r"1 picture is without a label map.*0016E5_00000"),
    "map cut off": ("camvid-val", CAMVID_MAP, cut_off, "semantic", r"valannot/0016E5_00000\.png: is damaged"),
    "map is text": ("camvid-val", CAMVID_MAP, lambda path: path.write_text("no"), "semantic", r"00000\.png: is not a picture"),
    "map of colours": (
        "camvid-val",
        CAMVID_MAP,
        lambda path: write(path, np.zeros((4, 6, 3), np.uint8)),
        "semantic",
        r"00000\.png: is in colour \(RGB\)",
    ),
    "unknown id": (
        "camvid-val",
        CAMVID_MAP,
        repainted(0, 8, 12, 8),
        "semantic",
        r"valannot/.*00000\.png: unknown class id 12 \(4 ",
    ),
    "another size": (
        "camvid-val",
        CAMVID_MAP,
        lambda path: write(path, np.zeros((5, 6), np.uint8)),
        "semantic",
        r"valannot/0016E5_00000\.png: the truth of '0016E5_00000' has 5 × 6 .* 4 × 6",
    ),
    "picture damaged": (
        "camvid-val",
        CAMVID_PICTURE,
        lambda path: path.write_text("no"),
        "semantic",
        r"CamVid/val/0016E5_00000\.png: is not a picture",
    ),
    "json missing": ("coco-panoptic", COCO_JSON, Path.unlink, "panoptic", r"panoptic_val2017\.json: no such file"),
    "json cut off": ("coco-panoptic", COCO_JSON, cut_off, "panoptic", r"panoptic_val2017\.json: is not JSON"),
    "json of another kind": (
        "coco-panoptic",
        COCO_JSON,
        lambda path: path.write_text('{"images": []}'),
        "panoptic",
        r"panoptic_val2017\.json: has no list 'annotations'",
    ),
    "json without a field": (
        "coco-panoptic",
        COCO_JSON,
        replaced("segments_info", "segments"),
        "panoptic",
        r"panoptic_val2017\.json: holds instances; expected panoptic segments, in annotations with 'segments_info'",
    ),
    "json lists no picture": (
        "coco-panoptic",
        COCO_JSON,
        lambda path: write_document(path, {"images": [], "annotations": [], "categories": []}),
        "panoptic",
        r"panoptic_val2017\.json: lists no pictures",
    ),
    "unknown image": (
        "coco-panoptic",
        COCO_JSON,
        replaced('"image_id": 7', '"image_id": 70'),
        "panoptic",
        r"panoptic_val2017\.json: an annotation is of image 70",
    ),
    "unknown category": (
        "coco-panoptic",
        COCO_JSON,
        replaced('"id": 1000, "category_id": 187', '"id": 1000, "category_id": 188'),
        "panoptic",
        r"panoptic_val2017\.json, annotations\[0\], image 7, segments_info\[0\], id 1000: unknown class id 188",
    ),
    "unlisted segment": (
        "coco-panoptic",
        COCO_MAP,
        lambda path: write(path, colours(1000 * (REGIONS + 1))),
        "panoptic",
        r"000000000139\.png: shows segment 3000, which .*panoptic_val2017\.json does not list for image 7",
    ),
    "panoptic PNG missing": (
        "coco-panoptic",
        COCO_MAP,
        Path.unlink,
        "panoptic",
        r"1 picture is without the PNG in .*panoptic_val2017.*: .*000000000139\.jpg",
    ),
    "picture missing": (
        "coco-panoptic",
        "coco/val2017/000000000285.jpg",
        Path.unlink,
        "panoptic",
        r"1 picture is missing, but .*panoptic_val2017\.json lists them: .*000000000285\.jpg",
    ),
    "instances of other pictures": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced("000000000285", "000000000139"),
        "instance",
        r"instances_val2017\.json: lists a picture twice",
    ),
    "mask of another size": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced('"size": [4, 6]', '"size": [6, 4]'),
        "instance",
        r"instances_val2017\.json, annotations\[1\], id 2: its mask cannot be read \(it is of \[6, 4\]",
    ),
    "runs of another size": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced("[18, 2, 2, 2]", "[18, 2, 2, 3]"),
        "instance",
        r"annotations\[1\], id 2: .*run lengths sum to 25",
    ),
    "polygon of two corners": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced("[[3, 0, 6, 0, 6, 2, 3, 2]]", "[[3, 0, 6, 0]]"),
        "instance",
        r"annotations\[0\], id 1: segmentation has a polygon of 4 numbers, which could be a box",
    ),
    "no mask": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced("[[3, 0, 6, 0, 6, 2, 3, 2]]", "[]"),
        "instance",
        r"annotations\[0\], id 1: segmentation must be polygons or run lengths, not \[\]",
    ),
    "box of three": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced('"bbox": [3, 0, 3, 2]', '"bbox": [3, 0, 3]'),
        "instance",
        r"annotations\[0\], id 1: bbox must be four numbers, not \[3, 0, 3\]",
    ),
    "area of no number": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced('"area": 6.0', '"area": "six"'),
        "instance",
        r"annotations\[0\], id 1: area must be a finite number, not 'six'",
    ),
    "Cityscapes instances missing": (
        "cityscapes",
        "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000001_gtFine_instanceIds.png",
        Path.unlink,
        "instance",
        r"1 picture is without \*_gtFine_instanceIds\.png in .*000001_leftImg8bit\.png",
    ),
    "Mapillary config of another kind": (
        "mapillary-2.0",
        "mapillary_vistas/config_v2.0.json",
        lambda path: path.write_text("[]"),
        "panoptic",
        r"config_v2\.0\.json: has no list 'labels'",
    ),
    "size that is not the picture's": (
        "coco-panoptic",
        COCO_INSTANCES,
        replaced('"height": 4', '"height": 40'),
        "instance",
        r"instances_val2017\.json: the truth of '000000000139' has 40 × 6",
    ),
    "unknown Cityscapes id": (
        "cityscapes",
        "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000000_gtFine_instanceIds.png",
        lambda path: write(path, raw_map(REGIONS, 7, 60001, 0, 7, kind=np.uint16)),
        "panoptic",
        r"000000_gtFine_instanceIds\.png: unknown class id 60",
    ),
    "ADE names of another list": (
        "ade20k-150",
        "ADEChallengeData2016/objectInfo150.txt",
        lambda path: path.write_text("Idx\tName\n1\twall\n"),
        "semantic",
        r"objectInfo150\.txt: does not list the classes 1 to 150",
    ),
    "LVIS without frequencies": (
        "lvis",
        "lvis/lvis_v1_val.json",
        replaced('"frequency": "r"', '"frequency": "x"'),
        "instance",
        r"lvis_v1_val\.json: categories of frequency",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str, tmp_path: Path) -> None:
    name, file, spoil, task, message = BAD[case]
    opened(name, tmp_path)
    spoil(tmp_path / file)
    with pytest.raises(DataError, match=message):
        row_named(name).open(tmp_path).truth(row_named(name).open(tmp_path).samples[0], task)


def test_pictures_that_differ_in_their_ending_alone_are_refused(tmp_path: Path) -> None:
    opened("bdd100k", tmp_path)
    picture(tmp_path / "bdd100k/images/10k/val/aaa.JPG")
    with pytest.raises(DataError, match="differ only in their ending"):
        row_named("bdd100k").open(tmp_path)
