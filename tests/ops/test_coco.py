"""One reader of COCO's files: what it takes, what it refuses by name, and that all commands agree."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.own import open_own
from lexiseg.errors import DataError
from lexiseg.metrics import AveragePrecision, PanopticQuality, score_instances, score_panoptic
from lexiseg.ops.coco import read_coco
from lexiseg.structures import Instances

HIGH, WIDE = 40, 60
SQUARE = [5, 5, 25, 5, 25, 25, 5, 25]
RUNS = {"size": [HIGH, WIDE], "counts": [205, *[20, 20] * 19, 20, 2400 - 205 - 780]}

Documents = dict[str, Any]


def truth_document() -> Documents:
    first = {"id": 17, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "area": 400, "bbox": [5, 5, 20, 20]}
    second = {"id": 18, "image_id": 2, "category_id": 2, "segmentation": copy.deepcopy(RUNS), "area": 400.0, "iscrowd": 0}
    return {
        "images": [{"id": number, "file_name": f"{number}.png", "height": HIGH, "width": WIDE} for number in (1, 2)],
        "annotations": [first, second],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }


def results_document() -> list[Documents]:
    return [{"image_id": n, "category_id": n, "segmentation": copy.deepcopy(RUNS), "score": 0.5} for n in (1, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        Image.new("RGB", (WIDE, HIGH)).save(tmp_path / f"images/{number}.png")
    (tmp_path / "found.json").write_text(json.dumps(results_document()))
    return tmp_path


def of_evaluate(source: Path) -> float:
    """AP of the truth, as `lexiseg evaluate` reads it, against itself."""
    dataset = open_own(source)
    metric = AveragePrecision(len(dataset.vocabulary), federated=dataset.federated)
    for number, sample in enumerate(dataset.samples):
        truth = dataset.truth(sample, "instance")
        assert isinstance(truth, Instances)
        metric.update(number, truth, Instances(truth.size, truth.things))
    return float(metric.result()["AP"])


def of_metrics(source: Path) -> float:
    """AP of results that are right against the truth, as `lexiseg metrics` reads it."""
    return float(score_instances(source.parent / "found.json", source).metric.result()["AP"])


def both(folder: Path, document: Any) -> list[float | str]:
    """What both commands say of a truth: a number, or why not."""
    source = folder / "truth.json"
    source.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    said: list[float | str] = []
    for command in (of_evaluate, of_metrics):
        try:
            said.append(round(command(source), 6))
        except DataError as error:
            said.append(str(error).removeprefix(str(folder)))
    return said


def changed(path: tuple[Any, ...], value: Any) -> Documents:
    document = truth_document()
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return document


def of_first(field: str, value: Any) -> Documents:
    return changed(("annotations", 0, field), value)


TAKEN: dict[str, Any] = {
    "as it is": truth_document(),
    "a flat polygon": of_first("segmentation", SQUARE),
    "a polygon far around the picture": changed(
        ("annotations", 0, "segmentation"), [SQUARE, [-9e9, -9e9, -8e9, -9e9, -8e9, -8e9]]
    ),
    "whole floats": of_first("category_id", 1.0),
    "ids that are names": {
        **truth_document(),
        "images": [{**entry, "id": float(entry["id"])} for entry in truth_document()["images"]],
    },
    "no id": of_first("id", ...),
    "no box": of_first("bbox", ...),
    "a box that is null": of_first("bbox", None),
    "no area": of_first("area", ...),
    "an id twice": of_first("id", 18),
    "coco_url": changed(("images", 0), {"id": 1, "coco_url": "http://x/val2017/1.png", "height": HIGH, "width": WIDE}),
    "a byte order mark": b"\xef\xbb\xbf" + json.dumps(truth_document()).encode(),
}

REFUSED: dict[str, tuple[Any, str]] = {
    "a box for a polygon": (of_first("segmentation", [[5, 5, 20, 20]]), "id 17: segmentation has a polygon of 4 numbers"),
    "half a corner": (of_first("segmentation", [[*SQUARE, 5]]), "id 17: segmentation has a polygon of 9 numbers"),
    "no polygon": (of_first("segmentation", []), "id 17: segmentation must be polygons or run lengths, not []"),
    "an empty polygon": (of_first("segmentation", [[]]), "id 17: segmentation has a polygon of 0 numbers"),
    "a polygon of texts": (of_first("segmentation", [["5"] * 6]), "id 17: segmentation must have polygons that are lists"),
    "a polygon of a huge number": (of_first("segmentation", [[10**400] * 6]), "id 17: segmentation must have polygons"),
    "a polygon of NaN": (of_first("segmentation", [[float("nan"), *SQUARE[1:]]]), "coordinate that is not finite"),
    "no segmentation": (of_first("segmentation", ...), "id 17: lacks 'segmentation'"),
    "a text for an id": (of_first("category_id", "x"), "annotations[0], id 17: category_id must be a whole number, not 'x'"),
    "half an id": (of_first("category_id", 1.5), "id 17: category_id must be a whole number, not 1.5"),
    "an endless id": (of_first("category_id", float("inf")), "id 17: category_id must be a whole number, not inf"),
    "true for an id": (of_first("category_id", True), "id 17: category_id must be a whole number, not True"),
    "no category": (of_first("category_id", ...), "id 17: lacks 'category_id'"),
    "an area of NaN": (of_first("area", float("nan")), "id 17: area must be a finite number, not nan"),
    "a negative area": (of_first("area", -4), "id 17: area must be 0 or more, not -4"),
    "half a crowd": (of_first("iscrowd", 2), "id 17: iscrowd must be 0 or 1, not 2"),
    "a box of text": (of_first("bbox", "5555"), "id 17: bbox must be a list, not '5555'"),
    "an entry that is none": (changed(("annotations", 0), 3), "annotations[0]: is 3, no JSON object"),
    "an image twice": (changed(("images", 1, "id"), 1), "image 1 is there more than once"),
    "a category twice": (changed(("categories", 1, "id"), 1), "category 1 is there more than once"),
    "no categories": (changed(("categories",), []), "has no categories"),
    "a height of text": (changed(("images", 0, "height"), "40"), "images[0], id 1: height must be a whole number, not '40'"),
    "a height of none": (changed(("images", 0, "height"), 0), "images[0], id 1: height must be 1 to 65535 pixels, not 0"),
    "a height of many": (changed(("images", 0, "height"), 10**12), "images[0], id 1: height must be 1 to"),
    "a list of nothing": ([], "has no list 'annotations'"),
    "no JSON": (b"{", "is not JSON"),
    "deep JSON": (b"[" * 100_000, "nested too deep"),
    "deep polygons": (b'{"images": [], "categories": [], "annotations": [' + b"[" * 900 + b"]" * 900 + b"]}", "no JSON object"),
}  # fmt: skip


def runs(counts: Any, size: Any = (HIGH, WIDE)) -> Documents:
    return of_first("segmentation", {"size": list(size), "counts": counts})


RUNS_REFUSED: dict[str, tuple[Any, str]] = {
    "too few": (runs([5, 5]), "id 17: its mask cannot be read (run lengths sum to 10"),
    "one negative": (runs([2500, -100]), "id 17: its mask cannot be read (a run length is -100"),
    "round the corner of 64 bits": (runs([2**62] * 4 + [HIGH * WIDE]), "id 17: segmentation must have counts that are whole"),
    "round it by small steps": (
        runs([2**53] * 2048 + [HIGH * WIDE]),
        "id 17: its mask cannot be read (a run length is 9007199",
    ),
    "halves": (runs([0.5, 2399.5]), "id 17: segmentation must have counts that are whole numbers"),
    "texts": (runs(["5", "2395"]), "id 17: segmentation must have counts that are a text or a list of whole numbers"),
    "none": (runs([]), "id 17: its mask cannot be read (run lengths sum to 0"),
    "a string that ends early": (runs("o"), "id 17: its mask cannot be read (not a COCO run-length string"),
    "a string of one endless run": (runs("o" * 30 + "0"), "more than 10 digits"),
    "of another size": (runs([2400], (60, 40)), "id 17: its mask cannot be read (it is of [60, 40] pixels"),
    "of no size": (runs([2400], ()), "id 17: segmentation must have a size of height and width"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken(case: str, folder: Path) -> None:
    assert both(folder, TAKEN[case]) == [1.0, 1.0]


@pytest.mark.parametrize("case", [*REFUSED, *RUNS_REFUSED])
def test_what_is_refused_is_refused_by_all_in_the_same_words(case: str, folder: Path) -> None:
    document, message = {**REFUSED, **RUNS_REFUSED}[case]
    first, second = both(folder, document)
    assert isinstance(first, str)
    assert isinstance(second, str)
    assert message in first
    assert message in second
    assert first.startswith("/truth.json")


def test_a_mask_gives_the_area_and_the_box_that_are_missing(folder: Path) -> None:
    document = truth_document()
    for field in ("id", "bbox", "area"):
        document["annotations"][0].pop(field)
    (folder / "truth.json").write_text(json.dumps(document))
    dataset = open_own(folder / "truth.json")
    truth = dataset.truth(dataset.samples[0], "instance")
    assert isinstance(truth, Instances)
    assert (truth.things[0].area, truth.things[0].box) == (400.0, (5.0, 5.0, 20.0, 20.0))


def test_what_is_wrong_with_one_picture_is_its_own(folder: Path) -> None:
    source = folder / "truth.json"
    source.write_text(json.dumps(of_first("area", -1)))
    dataset = open_own(source)
    dataset.truth(dataset.samples[1], "instance")
    with pytest.raises(DataError, match="area must be 0 or more"):
        dataset.truth(dataset.samples[0], "instance")
    assert len(score_instances(folder / "found.json", source, keep_going=True).problems) == 1


def test_lvis_has_both_lists_or_none(folder: Path) -> None:
    document = truth_document()
    document["images"][0] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    document["images"][1] |= {"neg_category_ids": []}
    first, second = both(folder, document)
    assert first == second
    assert "images[1], id 2: lacks 'not_exhaustive_category_ids'" in str(first)


def test_results_are_checked_as_truths_are(folder: Path) -> None:
    (folder / "truth.json").write_text(json.dumps(truth_document()))
    for field, value, message in (
        ("score", float("nan"), "entry 0, image 1: score must be a finite number, not nan"),
        ("segmentation", [[5, 5, 20, 20]], "entry 0, image 1: segmentation has a polygon of 4 numbers"),
        ("image_id", None, "entry 0: lacks 'image_id'"),
    ):
        results = results_document()
        results[0][field] = value
        (folder / "found.json").write_text(json.dumps(results))
        with pytest.raises(DataError, match=r"found\.json") as caught:
            score_instances(folder / "found.json", folder / "truth.json")
        assert message in str(caught.value)


def panoptic(folder: Path, mode: str = "RGB", *, beside: bool = False) -> Documents:
    colours = np.zeros((HIGH, WIDE, 3), np.uint8)
    colours[:20, :, 0], colours[20:, :, 1] = 7, 1
    pngs = folder if beside else folder / "truth"
    pngs.mkdir(exist_ok=True)
    picture = Image.fromarray(colours)
    (picture.quantize(2) if mode == "P" else picture.convert(mode)).save(pngs / "a.png")
    segments = [{"id": 7, "category_id": 1, "area": 1200}, {"id": 256, "category_id": 2}]
    return {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 1, "name": "dog", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }


def both_panoptic(folder: Path, document: Documents) -> list[float | str]:
    source = folder / "truth.json"
    source.write_text(json.dumps(document))
    said: list[float | str] = []
    for command in ("evaluate", "metrics"):
        try:
            if command == "evaluate":
                dataset = open_own(source)
                metric = PanopticQuality(len(dataset.vocabulary), dataset.vocabulary.things)
                truth: Any = dataset.truth(dataset.samples[0], "panoptic")
                metric.update(0, truth, truth)
                said.append(metric.result()["PQ"])
            else:
                said.append(score_panoptic(source, source).metric.result()["PQ"])
        except DataError as error:
            said.append(str(error).removeprefix(str(folder)))
    return said


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("beside", [False, True])
def test_panoptic_pngs(mode: str, beside: bool, folder: Path) -> None:
    assert both_panoptic(folder, panoptic(folder, mode, beside=beside)) == [1.0, 1.0]


PANOPTIC_REFUSED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "isthing": (("categories", 1, "isthing"), ..., "categories[1], id 2: lacks 'isthing'"),
    "a segment twice": (("annotations", 0, "segments_info", 1, "id"), 7, "annotations[0], image 1: segment 7 is there more"),
    "segment 0": (("annotations", 0, "segments_info", 1, "id"), 0, "id 0: id must be 1 to 16777215 (0 is void)"),
    "a segment no colour has": (("annotations", 0, "segments_info", 1, "id"), 2**40, "id must be 1 to 16777215"),
    "an area of text": (("annotations", 0, "segments_info", 0, "area"), "x", "segments_info[0], id 7: area must be a finite"),
    "segments that are none": (("annotations", 0, "segments_info"), 7, "image 1: segments_info must be a list, not 7"),
    "a segment that is none": (("annotations", 0, "segments_info", 0), 7, "segments_info[0]: is 7, no JSON object"),
    "a PNG that is a number": (("annotations", 0, "file_name"), 7, "annotations[0], image 1: file_name must be a text, not 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", PANOPTIC_REFUSED)
def test_what_is_refused_of_panoptic_files(case: str, folder: Path) -> None:
    path, value, message = PANOPTIC_REFUSED[case]
    document = panoptic(folder)
    inner: Any = document
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    first, second = both_panoptic(folder, document)
    assert first == second
    assert message in str(first)


def test_a_grey_png_is_refused(folder: Path) -> None:
    first, second = both_panoptic(folder, panoptic(folder, "L"))
    assert first == second
    assert "is not in colour (L)" in str(first)


def test_a_document_is_of_one_kind(folder: Path) -> None:
    source = folder / "truth.json"
    source.write_text(json.dumps(truth_document()))
    assert not read_coco(source).panoptic
    assert "lacks 'segments_info'" in read_coco(source, panoptic=True).faults[1]
