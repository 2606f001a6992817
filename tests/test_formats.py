"""Every format is read back by its consumer, or by a reader written from the format's description, with equal masks.

`tools/check_formats.py` does the same with the consumers that are not installed for the tests.
"""

from __future__ import annotations

import io
import json
import re
import sys
from base64 import b64decode
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
import yaml
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import label as components
from shapely.geometry import shape
from supervision import DetectionDataset

from lexiseg import cli, formats
from lexiseg.cli import parser
from lexiseg.cli import segment as cli_segment
from lexiseg.data.images import find_images
from lexiseg.errors import DataError, UsageError
from lexiseg.exports.records import read_records
from lexiseg.inference.pipeline import Pipeline
from lexiseg.ops.names import result_name
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment
from lexiseg.visualise.palette import class_colour
from tests.exports.brush import brush_pixels
from tests.inference.test_evaluation import Colours

NAMES = ("dog", "<grass> & Жук", "sky")
HIGH, WIDE = 31, 42
EVERY = tuple(name for name in formats.FORMATS if name not in ("scores", "confidence", "geotiff"))
Mask = NDArray[np.bool_]


def shapes(seed: int = 0) -> Mask:
    """Disjoint masks [5, H, W]: holes in holes, pieces that touch in corners, one pixel, noise, the border."""
    masks = np.zeros((5, HIGH, WIDE), bool)
    masks[0, 3:20, 3:20] = True
    masks[0, 5:18, 5:18] = False
    masks[0, 7:16, 7:16] = True
    masks[0, 9, 9] = masks[0, 10, 10] = masks[0, 12:14, 9:14] = masks[0, 8:11, 13] = False
    masks[1, 10, 10] = True
    masks[2, [24, 25, 26, 28], [4, 5, 6, 30]] = True
    masks[2, 24:28, 10:20] = True
    masks[3, 0] = masks[3, -1] = masks[3, :, 0] = masks[3, :, -1] = True
    masks[4, 2:20, 22:40] = np.random.default_rng(seed).random((18, 18)) < 0.6
    return masks


def result(source: Path | str | None = None, task: str = "panoptic", seed: int = 0) -> Segmentation:
    masks = shapes(seed)
    if task == "instance":
        masks[1] |= masks[0]  # they may overlap
    segments = []
    for number, mask in enumerate(masks, start=1):
        (top, left), (bottom, right) = np.argwhere(mask).min(0).tolist(), np.argwhere(mask).max(0).tolist()
        label, box = number % 3, (left, top, right - left + 1, bottom - top + 1)
        segments.append(Segment(number, label, NAMES[label], label != 2, 1 - number / 8, int(mask.sum()), box))
    image = np.random.default_rng(seed).integers(0, 256, (HIGH, WIDE, 3)).astype(np.uint8)
    if isinstance(source, Path):
        source.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(source)
    name = None if source is None else str(source)
    return Segmentation(task, image, NAMES, (True, True, False), tuple(segments), masks, name)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[Segmentation]]:
    """Two results with the names of their pictures, in all formats."""
    results = [result(tmp_path / "pictures" / f"{name}.png", seed=seed) for seed, name in enumerate(("a b", "ü"))]
    for each in results:
        written = each.save(tmp_path / "out", formats=EVERY)
        assert all(path.is_file() for path in written)
    return tmp_path / "out", results


# --- of a folder ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools
@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_coco_in_pycocotools(name: str, saved: tuple[Path, list[Segmentation]]) -> None:
    coco = COCO(str(saved[0] / f"{name}.json"))
    assert [coco.cats[number]["name"] for number in (1, 2, 3)] == list(NAMES)
    assert [coco.cats[number]["isthing"] for number in (1, 2, 3)] == [1, 1, 0]
    for image_id, expected in enumerate(saved[1], start=1):
        assert coco.imgs[image_id]["file_name"] == Path(expected.source).name
        annotations = coco.imgToAnns[image_id]
        for annotation, segment, mask in zip(annotations, expected.segments, expected.masks, strict=True):
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
            assert annotation["category_id"] == segment.label + 1
            assert annotation["bbox"] == list(segment.box)
            assert annotation["area"] == mask.sum()
            assert annotation["score"] == segment.score


def test_coco_in_supervision(saved: tuple[Path, list[Segmentation]]) -> None:
    folder, results = saved
    pictures = str(Path(results[0].source).parent)
    dataset = DetectionDataset.from_coco(pictures, str(folder / "coco.json"), force_masks=True)
    read = {Path(path).name: detections for path, _, detections in dataset}
    for expected in results:
        detections = read[Path(expected.source).name]
        assert np.array_equal(detections.mask, expected.masks)
        assert [dataset.classes[label] for label in detections.class_id] == [segment.name for segment in expected.segments]


def test_coco_panoptic_by_its_description(saved: tuple[Path, list[Segmentation]]) -> None:
    document = json.loads((saved[0] / "coco-panoptic.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in document["categories"]] == list(NAMES)
    for expected, entry in zip(saved[1], document["annotations"], strict=True):
        red, green, blue = np.moveaxis(np.asarray(Image.open(saved[0] / entry["file_name"]), dtype=int), -1, 0)
        ids = red + 256 * green + 65536 * blue
        for row, segment, mask in zip(entry["segments_info"], expected.segments, expected.masks, strict=True):
            assert np.array_equal(ids == row["id"], mask)
            assert row["category_id"] == segment.label + 1
        assert np.array_equal(ids == 0, ~expected.masks.any(0))


def test_yolo_in_supervision(saved: tuple[Path, list[Segmentation]]) -> None:
    """A line is a piece of a region; those of a region, in order, are its mask."""
    folder, results = saved[0] / "yolo", saved[1]
    dataset = DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
    )
    assert dataset.classes == list(NAMES)
    read = {Path(path).name: (picture, detections) for path, picture, detections in dataset}
    for expected in results:
        picture, detections = read[f"{result_name(expected.source)}.yolo.png"]
        assert np.array_equal(picture[..., ::-1], expected.image)
        start = 0
        for segment, mask in zip(expected.segments, expected.masks, strict=True):
            pieces = slice(start, start + components(mask, np.ones((3, 3)))[1])
            assert np.array_equal(detections.mask[pieces].any(0), mask)
            assert set(detections.class_id[pieces]) == {segment.label}
            start = pieces.stop
        assert start == len(detections)


def test_cvat_by_its_description(saved: tuple[Path, list[Segmentation]]) -> None:
    root = ElementTree.parse(saved[0] / "cvat.xml").getroot()
    assert root.findtext("version") == "1.1"
    assert [entry.findtext("name") for entry in root.iter("label")] == list(NAMES)
    for expected, picture in zip(saved[1], root.iter("image"), strict=True):
        assert picture.get("name") == Path(expected.source).name
        assert (int(picture.get("height")), int(picture.get("width"))) == expected.size
        for entry, segment, mask in zip(picture, expected.segments, expected.masks, strict=True):
            left, top, wide, high = (int(entry.get(key)) for key in ("left", "top", "width", "height"))
            runs = [int(number) for number in entry.get("rle").split(",")]
            read = np.zeros_like(mask)
            read[top : top + high, left : left + wide] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(high, wide)
            assert np.array_equal(read, mask)
            assert entry.get("label") == segment.name


def test_label_studio_by_its_description(saved: tuple[Path, list[Segmentation]]) -> None:
    tasks = json.loads((saved[0] / "label-studio.json").read_text(encoding="utf-8"))
    interface = ElementTree.parse(saved[0] / "label-studio.xml").getroot()
    assert [entry.get("value") for entry in interface.iter("Label")] == list(NAMES)
    controls = {entry.get("name"): entry.get("toName") for entry in interface}
    for expected, task in zip(saved[1], tasks, strict=True):
        assert unquote(task["data"]["image"]).endswith("/?d=" + Path(expected.source).name)
        for entry, segment, mask in zip(task["predictions"][0]["result"], expected.segments, expected.masks, strict=True):
            assert controls[entry["from_name"]] == entry["to_name"]
            assert (entry["original_height"], entry["original_width"]) == expected.size
            pixels = brush_pixels(entry["value"]["rle"]).reshape(*expected.size, 4)
            assert np.array_equal(pixels, np.where(mask[..., None], 255, 0).repeat(4, -1))
            assert entry["value"]["brushlabels"] == [segment.name]


def test_long_runs_of_label_studio(tmp_path: Path) -> None:
    picture = np.zeros((300, 400, 3), np.uint8)
    segment = Segment(1, 0, "dog", True, 1.0, 120_000, (0, 0, 400, 300))
    Segmentation("panoptic", picture, ("dog",), (True,), (segment,), np.ones((1, 300, 400), bool)).save(
        tmp_path, formats=["label-studio"]
    )
    (task,) = json.loads((tmp_path / "label-studio.json").read_text())
    assert (brush_pixels(task["predictions"][0]["result"][0]["value"]["rle"]) == 255).sum() == 480_000


class Sources(HTMLParser):
    """Pictures and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attributes)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_contact_sheet_shows_the_overlays(saved: tuple[Path, list[Segmentation]]) -> None:
    page = Sources()
    page.feed((saved[0] / "contact-sheet.html").read_text(encoding="utf-8"))
    assert [(saved[0] / unquote(source)).is_file() for source in page.sources] == [True, True]
    assert "a b.png" in page.text
    assert "<grass> & Жук × 2 (0.88)" in page.text
    regions = [f"{segment.name} {segment.score:.2f}" for expected in saved[1] for segment in reversed(expected.segments)]
    assert re.findall(r"<title>([^<]*)</title></path>", (saved[0] / "contact-sheet.html").read_text()) == list(
        map(escape, regions)
    )


# --- of a picture -----------------------------------------------------------------------------------------------------


def test_labelme_by_its_description(saved: tuple[Path, list[Segmentation]]) -> None:
    for expected in saved[1]:
        path = saved[0] / f"{result_name(expected.source)}.labelme.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        assert (path.parent / document["imagePath"]).samefile(expected.source)
        assert (document["imageHeight"], document["imageWidth"]) == expected.size
        for entry, segment, mask in zip(document["shapes"], expected.segments, expected.masks, strict=True):
            assert (entry["label"], entry["shape_type"]) == (segment.name, "mask")
            (left, top), (right, bottom) = entry["points"]
            read = np.zeros_like(mask)
            read[top : bottom + 1, left : right + 1] = np.asarray(Image.open(io.BytesIO(b64decode(entry["mask"])))) > 0
            assert np.array_equal(read, mask)


def test_labelme_holds_a_picture_that_has_no_file(tmp_path: Path) -> None:
    expected = result()
    expected.save(tmp_path, "mine", formats=["labelme"])
    document = json.loads((tmp_path / "mine.labelme.json").read_text(encoding="utf-8"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(b64decode(document["imageData"])))), expected.image)


def test_geojson_in_shapely(saved: tuple[Path, list[Segmentation]]) -> None:
    y, x = np.mgrid[:HIGH, :WIDE] + 0.5
    for expected in saved[1]:
        document = json.loads((saved[0] / f"{result_name(expected.source)}.geojson").read_text(encoding="utf-8"))
        for feature, segment, mask in zip(document["features"], expected.segments, expected.masks, strict=True):
            geometry = shape(feature["geometry"])
            assert geometry.is_valid
            assert all(polygon.exterior.is_ccw for polygon in geometry.geoms)  # RFC 7946, 3.1.6
            assert np.array_equal(shapely.contains_xy(geometry, x, y), mask)
            assert feature["properties"]["name"] == segment.name


def test_the_palette_shows_the_colours_of_the_overlay(saved: tuple[Path, list[Segmentation]], tmp_path: Path) -> None:
    expected = saved[1][0]
    picture = Image.open(saved[0] / f"{result_name(expected.source)}.palette.png")
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), np.where(expected.semantic < 0, 255, expected.semantic))
    assert {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()} == {
        (0, 0, 0), *(class_colour(label) for label in range(3))
    }  # fmt: skip
    many = tuple(f"class {number}" for number in range(300))
    deep = Segmentation("semantic", expected.image, many, (True,) * 300, expected.segments, expected.masks)
    deep.save(tmp_path / "deep", formats=["palette"])
    values = np.asarray(Image.open(tmp_path / "deep/image.palette.png"))
    assert values.dtype == np.uint16
    assert np.array_equal(values, np.where(expected.semantic < 0, 65535, expected.semantic))


def test_scores_are_kept_on_request(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 24, 3)).astype(np.uint8)
    pipeline = Pipeline(Colours())
    for task in ("semantic", "panoptic", "instance"):
        kept = pipeline(picture, ["red", "green", "blue"], task=task, keep_scores=True)
        assert kept.scores.dtype == np.float16
        assert kept.scores.shape == (3, 300, 24)
        kept.save(tmp_path, task, formats=["scores", "confidence"])
        with np.load(tmp_path / f"{task}.scores.npz", allow_pickle=False) as read:
            assert np.array_equal(read["scores"], kept.scores)
            assert read["names"].tolist() == ["red", "green", "blue"]
        grey = np.asarray(Image.open(tmp_path / f"{task}.confidence.png"))
        assert grey.dtype == np.uint16
        assert np.abs(grey / 65535 - kept.scores.max(0)).max() < 1e-5
    semantic = pipeline(picture, ["red", "green", "blue"], task="semantic", keep_scores=True)
    chosen = np.take_along_axis(semantic.scores, semantic.semantic[None], 0)[0]
    assert np.array_equal(chosen, semantic.scores.max(0))
    assert pipeline(picture, ["red", "green", "blue"]).scores is None
    with pytest.raises(UsageError, match="keep_scores=True"):
        result().save(tmp_path, formats=["scores"])


# --- as objects -------------------------------------------------------------------------------------------------------


def test_a_result_in_supervision_and_pandas() -> None:
    expected = result()
    detections = expected.to_supervision()
    assert np.array_equal(detections.mask, expected.masks)
    assert detections.class_id.tolist() == [segment.label for segment in expected.segments]
    assert detections["class_name"].tolist() == [segment.name for segment in expected.segments]
    for box, mask in zip(detections.xyxy, expected.masks, strict=True):
        (top, left), (bottom, right) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
        assert box.tolist() == [left, top, right, bottom]
    table = expected.to_pandas()
    assert table["name"].tolist() == [segment.name for segment in expected.segments]
    assert table["area"].tolist() == expected.masks.sum((1, 2)).tolist()
    nothing = Segmentation("panoptic", expected.image, NAMES, (True,) * 3, (), expected.masks[:0])
    assert len(nothing.to_supervision()) == len(nothing.to_pandas()) == 0
    assert nothing.polygons() == []


def test_a_result_in_fiftyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in that keeps its arguments: fiftyone brings a data base along."""
    stand_in = SimpleNamespace(Detection=SimpleNamespace, Detections=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in)
    expected = result()
    for detection, segment, mask in zip(expected.to_fiftyone().detections, expected.segments, expected.masks, strict=True):
        left, top, wide, high = (round(value) for value in np.multiply(detection.bounding_box, (WIDE, HIGH, WIDE, HIGH)))
        read = np.zeros_like(mask)
        read[top : top + high, left : left + wide] = detection.mask
        assert np.array_equal(read, mask)
        assert (detection.label, detection.confidence) == (segment.name, segment.score)


@pytest.mark.parametrize("name", ["supervision", "fiftyone", "pandas"])
def test_a_library_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"pip install {name}"):
        getattr(result(), f"to_{name}")()


# --- the folder's files over several calls ----------------------------------------------------------------------------


def coco_of(folder: Path) -> dict:
    return json.loads((folder / "coco.json").read_text(encoding="utf-8"))


def test_a_second_call_adds_to_the_files_of_the_folder(tmp_path: Path) -> None:
    first, second = result(tmp_path / "x/a.png"), result(tmp_path / "y/a.png", "instance", seed=1)
    first.save(tmp_path / "out")  # without the format: its JSON holds all that is needed
    second.save(tmp_path / "out", formats=["coco"])
    assert [image["file_name"] for image in coco_of(tmp_path / "out")["images"]] in (
        ["x/a.png", "y/a.png"],
        ["y/a.png", "x/a.png"],
    )
    second.save(tmp_path / "out", formats=["coco"])  # once more: nothing is there twice
    assert len(coco_of(tmp_path / "out")["annotations"]) == 10
    assert [entry["id"] for entry in coco_of(tmp_path / "out")["annotations"]] == list(range(1, 11))


def test_classes_of_different_calls_are_joined(tmp_path: Path) -> None:
    result().save(tmp_path, "a", formats=["json"])
    other = result()
    segment = Segment(1, 1, "sky", True, 0.5, 1, (10, 10, 1, 1))
    Segmentation("panoptic", other.image, ("cat", "sky"), (True, True), (segment,), other.masks[1:2]).save(
        tmp_path, "b", formats=["coco", "yolo", "cvat"]
    )
    assert [entry["name"] for entry in coco_of(tmp_path)["categories"]] == [*NAMES, "cat"]
    assert coco_of(tmp_path)["annotations"][-1]["category_id"] == 3
    assert yaml.safe_load((tmp_path / "yolo/data.yaml").read_text()) == {
        "train": "images", "val": "images", "names": {0: "cat", 1: "sky"}
    }  # fmt: skip
    assert (tmp_path / "yolo/labels/b.yolo.txt").read_text().startswith("1 ")


def test_other_json_files_are_ignored_and_damaged_results_named(tmp_path: Path) -> None:
    result().save(tmp_path, "sub/a", formats=("coco", "labelme", "label-studio"))
    (tmp_path / "other.json").write_text('{"segments": []}')
    (tmp_path / "none.json").write_text("{")
    (record,) = read_records(tmp_path)
    assert record.stem == "sub/a"
    assert np.array_equal(np.stack(list(record.masks())), shapes())
    sound = json.loads((tmp_path / "sub/a.json").read_text(encoding="utf-8"))
    fewer = {"classes": ["dog"], "things": [True]}
    for change in (
        {"height": HIGH + 1},
        {"height": 10**9},
        {"task": "x"},
        {"things": []},
        {"segments": [{}]},
        {"segments": 1},
        fewer,
    ):
        (tmp_path / "sub/a.json").write_text(json.dumps({**sound, **change}))
        with pytest.raises(DataError, match=r"sub/a\.json: is no result"):
            formats.write_folder(tmp_path, ["coco"])


def test_an_interruption_between_picture_and_folder_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(formats, "read_records", interrupted)
        with pytest.raises(KeyboardInterrupt):
            result().save(tmp_path, "a", formats=["coco"])
    result().save(tmp_path, "b", formats=["coco"])
    assert [image["file_name"] for image in coco_of(tmp_path)["images"]] == ["a", "b"]


# --- names of formats, and the command --------------------------------------------------------------------------------


def test_names_of_formats() -> None:
    assert tuple(formats.FORMATS) == parser.FORMATS
    assert formats.parse_formats(["coco, json", "yolo", "json,"]) == ("coco", "json", "yolo")
    for wrong in (["coco,xml"], [""], []):
        with pytest.raises(UsageError, match="there are overlay, json, map"):
            formats.parse_formats(wrong)


def test_overlapping_instances_are_no_panoptic_map(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coco-panoptic cannot hold results of --task instance"):
        result(task="instance").save(tmp_path, formats=["coco-panoptic"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli_segment, "load", lambda *_, **__: Pipeline(Colours()))
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 2, (20, 24, 3)).astype(np.uint8) * 255
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"pictures/{number}.png")
    return tmp_path / "pictures"


def segment(pictures: Path, *options: str) -> int:
    return cli.main(["segment", str(pictures), "--classes", "red; green; blue", "--model", "fcclip-tiny", *options])


def test_the_command_writes_formats(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = pictures / "out"
    options = ("--format", "coco,html", "--format", "yolo", "--format", "scores", "--output", str(out))
    assert segment(pictures, *options) == 0
    printed = capsys.readouterr().out
    for name in ("coco.json", "contact-sheet.html", "yolo/data.yaml"):
        assert f"→ {out / name}\n" in printed
    assert [image["file_name"] for image in coco_of(out)["images"]] == ["0.png", "1.png", "2.png"]
    assert len(list(out.glob("*.scores.npz"))) == 3
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert len(find_images([str(pictures)])) == 3  # results are not segmented again
    assert segment(pictures, *options) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_the_command_refuses_unknown_formats_before_it_loads_a_model(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_segment, "load", _never)
    assert segment(pictures, "--format", "pdf") == 2
    assert "unknown format 'pdf'; there are overlay, json" in capsys.readouterr().err
    assert segment(pictures, "--format", "coco-panoptic", "--task", "instance") == 2


def _never(*_: object, **__: object) -> Callable[[], None]:
    raise AssertionError("a model was loaded")
