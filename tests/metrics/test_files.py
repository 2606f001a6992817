"""Files of predictions: what is read, and that everything wrong is said with file and image."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexiseg.cli import main
from lexiseg.cli import metrics as command
from lexiseg.data.own import open_own
from lexiseg.errors import DataError, RunError, UsageError
from lexiseg.metrics import Score, files, score_instances, score_panoptic, score_semantic
from lexiseg.metrics.files import _read_ahead
from lexiseg.ops.label_table import LabelTable

NAMES = ("sky", "dog")
SQUARE = {"size": [4, 4], "counts": [5, 2, 2, 2, 5]}  # the four pixels in the middle
Documents = dict[str, Any]


def truth_document() -> Documents:
    return {
        "images": [{"id": 7, "height": 4, "width": 4}, {"id": 30, "height": 4, "width": 4}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "segmentation": SQUARE, "area": 4, "iscrowd": 0},
            {"id": 2, "image_id": 30, "category_id": 5, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]], "area": 4},
        ],
        "categories": [{"id": 5, "name": "dog", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }


def results_document() -> list[Documents]:
    return [
        {"image_id": image, "category_id": 5, "segmentation": copy.deepcopy(SQUARE), "score": score}
        for image, score in ((30, 0.5), (7, 0.75))
    ]


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_ids(path: Path, ids: list[list[int]]) -> None:
    values = np.array(ids)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.stack([values & 255, values >> 8 & 255, values >> 16], -1).astype(np.uint8)).save(path)


def test_runs_strings_and_polygons_are_the_same_mask(tmp_path: Path) -> None:
    results = results_document()
    results[0]["segmentation"]["counts"] = "52203"  # the same as COCO's string
    score = score_instances(write(tmp_path / "found.json", results), write(tmp_path / "truth.json", truth_document()))
    assert score.names == NAMES
    assert score.metric.result()["AP"] == pytest.approx(1)
    assert score.problems == ()
    assert [row["truths"] for row in score.document()["classes"]] == [0, 2]


def test_a_truth_with_negative_categories_is_measured_by_the_rules_of_lvis(tmp_path: Path) -> None:
    truth = truth_document()
    for record in truth["images"]:
        record |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    truth["categories"][0]["frequency"], truth["categories"][1]["frequency"] = "r", "f"
    result = score_instances(
        write(tmp_path / "found.json", results_document()), write(tmp_path / "truth.json", truth)
    ).metric.result()
    assert result["groups"]["rare"]["AP"] == pytest.approx(1)
    assert result["groups"]["frequent"]["AP"] is None
    assert result["rules"].startswith("LVIS")


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("which", "path", "value", "message"),
    [
        ("found", (0, "image_id"), 8, r"found\.json: has predictions of image 8"),
        ("found", (0, "category_id"), 9, r"found\.json, entry 0, image 30: category 9 is not"),
        ("found", (0, "segmentation", "size"), [4, 5], r"found\.json, entry 0, image 30: .*of \[4, 5\] pixels"),
        ("found", (0, "segmentation", "counts"), [5, 5], r"found\.json, entry 0, image 30: .*run lengths sum to 10"),
        ("found", (0, "segmentation", "counts"), "\t", r"found\.json, entry 0, image 30: .*not a COCO run-length"),
        ("found", (0, "segmentation"), {}, r"found\.json, entry 0, image 30: segmentation must have a size"),
        ("found", (0, "score"), None, r"found\.json, entry 0, image 30: lacks 'score'"),
        ("truth", ("annotations", 1, "category_id"), 9, r"truth\.json, annotations\[1\], id 2: category 9"),
        (
            "truth",
            ("annotations", 1, "segmentation"),
            "polygon",
            r"truth\.json, annotations\[1\], id 2: segmentation must be polygons",
        ),
        ("truth", ("images", 1, "height"), "4", r"truth\.json, images\[1\], id 30: height must be a whole number, not '4'"),
    ],
)
def test_what_is_wrong_with_an_image_is_said_or_left_out(
    tmp_path: Path, which: str, path: tuple[Any, ...], value: Any, message: str
) -> None:
    documents = {"found": results_document(), "truth": truth_document()}
    changed(documents[which], path, value)
    files = [write(tmp_path / f"{name}.json", documents[name]) for name in ("found", "truth")]
    with pytest.raises(DataError, match=message):
        score_instances(*files)
    score = score_instances(*files, keep_going=True)
    assert len(score.problems) == 1
    assert score.metric.images == ({0, 1} if "image 8" in message else {0})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images", 1, "id"), 7, "image 7 is there more than once"),
        (("categories", 1, "id"), 5, "category 5 is there more than once"),
        (("categories",), [], "no categories"),
        (("annotations",), [], "no annotation"),
        (("annotations",), {}, "has no list 'annotations'"),
        (("annotations", 0), 3, "no JSON object"),
    ],
)
def test_a_truth_that_cannot_be_measured_against(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str) -> None:
    truth = write(tmp_path / "truth.json", changed(truth_document(), path, value))
    with pytest.raises(DataError, match=rf"truth\.json.*{message}"):
        score_instances(write(tmp_path / "found.json", results_document()), truth, keep_going=True)


def test_files_that_are_no_documents(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", truth_document())
    with pytest.raises(DataError, match=r"nothing\.json: no such file"):
        score_instances(tmp_path / "nothing.json", truth)
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.json: is not JSON"):
        score_instances(broken, truth)
    with pytest.raises(DataError, match="expected a list of predictions"):
        score_instances(truth, truth)


def panoptic_files(folder: Path) -> tuple[Path, Path]:
    categories = truth_document()["categories"]
    annotations = [
        {"image_id": image, "file_name": f"{image}.png",
         "segments_info": [{"id": 300, "category_id": 5, "iscrowd": 0}, {"id": 1, "category_id": 2}]}
        for image in ("a", "b")
    ]  # fmt: skip
    for name in ("found", "truth"):
        for image in ("a", "b"):
            write_ids(folder / name / f"{image}.png", [[300, 300], [1, 0]])
        write(folder / f"{name}.json", {"annotations": annotations, "categories": categories})
    return folder / "found.json", folder / "truth.json"


def edit(path: Path, change: Callable[[Documents], None]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    write(path, document)


def test_panoptic_files(tmp_path: Path) -> None:
    score = score_panoptic(*panoptic_files(tmp_path))
    assert score.metric.result()["PQ"] == 1
    assert score.metric.result()["groups"]["things"]["classes"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: write_ids(folder / "found/a.png", [[300, 300]]), r"found\.json, image a: the truth is 2 × 2 pixels"),
        (lambda folder: write_ids(folder / "found/a.png", [[300, 5], [1, 0]]), r"found\.json, image a: .*segment 5"),
        (lambda folder: (folder / "found/a.png").write_bytes(b"\x89PNG\r\n"), r"found/a\.png: is not a picture"),
        (lambda folder: (folder / "found/a.png").unlink(), r"found/a\.png: no such file"),
        (lambda folder: Image.new("L", (2, 2)).save(folder / "found/a.png"), r"found/a\.png: is not in colour"),
        (lambda folder: edit(folder / "found.json", lambda found: found["annotations"].pop(0)), "no prediction for image a"),
        (
            lambda folder: edit(
                folder / "truth.json", lambda truth: truth["annotations"][0]["segments_info"][0].update(area=0)
            ),
            r"found\.json, image a: the truth states an area of 0",
        ),
        (
            lambda folder: edit(folder / "truth.json", lambda truth: truth["annotations"].pop(0)),
            r"found\.json: has predictions of image a",
        ),
    ],
)
def test_what_is_wrong_with_a_panoptic_image(tmp_path: Path, change: Callable[[Path], Any], message: str) -> None:
    files = panoptic_files(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        score_panoptic(*files)
    score = score_panoptic(*files, keep_going=True)
    assert len(score.problems) == 1
    assert (score.metric.result()["PQ"], score.metric.result()["images"]) == (1, 1)


@pytest.mark.parametrize("name", ["../truth/a.png", "..\\truth\\a.png", "/etc/a.png", 3])
def test_a_png_of_another_folder_is_refused(tmp_path: Path, name: Any) -> None:
    files = panoptic_files(tmp_path)
    edit(files[0], lambda found: found["annotations"][0].update(file_name=name))
    with pytest.raises(DataError, match=r"found\.json, annotations\[0\], image 'a': .*(the name|file_name)"):
        score_panoptic(*files)
    assert len(score_panoptic(*files, keep_going=True).problems) == 1


def label_maps(folder: Path) -> tuple[Path, Path]:
    for name, values in (("found", [[0, 1], [1, 255]]), ("truth", [[0, 1], [255, 1]])):
        (folder / name / "city").mkdir(parents=True)
        for image in ("a", "b"):
            Image.fromarray(np.array(values, np.uint8)).save(folder / name / "city" / f"{image}.png")
    return folder / "found", folder / "truth"


def test_label_maps(tmp_path: Path) -> None:
    result = score_semantic(*label_maps(tmp_path), NAMES).metric.result()
    assert result["pixel_accuracy"] == pytest.approx(2 / 3)  # of four pixels one is not measured, one is not found
    assert result["mIoU"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["absent_classes"] == "official"
    assert "detectron2" in result["absent_classes_rule"]


def test_every_label_map_is_found_and_nothing_hidden_is(tmp_path: Path) -> None:
    found, truth = label_maps(tmp_path)
    right = score_semantic(found, truth, NAMES).metric.result()
    (found / "city/a.png").rename(found / "city/a.PNG")
    (truth / "city/b.png").rename(truth / "city/b.Png")
    for hidden in ("._a.png", ".trash/a.png"):
        (truth / hidden).parent.mkdir(exist_ok=True)
        (truth / hidden).write_bytes(b"\0\5\x16\7")
    assert score_semantic(found, truth, NAMES).metric.result() == right
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(truth / "city/b.tif")
    with pytest.raises(DataError, match=r"label maps with the same name"):
        score_semantic(found, truth, NAMES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0, 2], [0, 0]], r"found/city/a\.png: unknown class id 2 \(1 pixels\); known are 0\.\.1, ignored 255"),
        ([[0, 1, 0]], r"city/a\.png: the truth is 2 × 2 pixels, the result 1 × 3"),
        ([[[0, 0, 0]]], r"city/a\.png: is in colour"),
        (None, r"no prediction city/a;"),
    ],
)
def test_what_is_wrong_with_a_label_map(tmp_path: Path, values: list[Any] | None, message: str) -> None:
    files = label_maps(tmp_path)
    wrong = tmp_path / "found/city/a.png"
    wrong.unlink()
    if values is not None:
        Image.fromarray(np.array(values, np.uint8)).save(wrong)
    with pytest.raises(DataError, match=message):
        score_semantic(*files, NAMES)
    score = score_semantic(*files, NAMES, keep_going=True)
    assert len(score.problems) == 1
    assert score.metric.images == frozenset({1})


def instance_files(folder: Path) -> tuple[Path, Path]:
    return write(folder / "found.json", results_document()), write(folder / "truth.json", truth_document())


FAULTS = [
    (MemoryError(), "there is not enough memory for it"),
    (RuntimeError("a decoder fell over"), r"unexpected RuntimeError: a decoder fell over \(metrics/files\.py:\d+\)"),
    (KeyError("x"), "unexpected KeyError"),
]


@pytest.mark.parametrize(("error", "said"), FAULTS)
@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_a_fault_of_any_kind_is_one_image_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, error: Exception, said: str
) -> None:
    name, read, score, place = {
        "semantic": ("read_values", files.read_values, lambda **how: score_semantic(*paths, NAMES, **how), r"a\.png"),
        "panoptic": ("_panoptic", files._panoptic, lambda **how: score_panoptic(*paths, **how), "image "),
        "instance": ("_instances", files._instances, lambda **how: score_instances(*paths, **how), "image "),
    }[task]
    paths = {"semantic": label_maps, "panoptic": panoptic_files, "instance": instance_files}[task](tmp_path)
    calls: list[object] = []

    def fails(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return read(*arguments, **options)

    complete = score().metric.images
    monkeypatch.setattr(files.os, "cpu_count", lambda: 1)  # one reader, so that the first call is that of the first image
    monkeypatch.setattr(files, name, fails)
    with pytest.raises(RunError, match=f"{place}.*: {said}"):
        score()
    calls.clear()
    partly = score(keep_going=True)
    (problem,) = partly.problems
    assert re.search(f"{place}.*: {said}", problem)
    assert "\n" not in problem
    assert partly.metric.images == complete - {0}


def test_folders_without_label_maps(tmp_path: Path) -> None:
    found, truth = label_maps(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: has no PNG or TIFF"):
        score_semantic(found, tmp_path / "empty", NAMES, keep_going=True)
    with pytest.raises(DataError, match="nowhere: is not a folder"):
        score_semantic(tmp_path / "nowhere", truth, NAMES)


def called(**options: Any) -> argparse.Namespace:
    defaults = {"vocabulary": None, "json": False, "output": None, "keep_going": False, "ignore": None}
    return argparse.Namespace(**{**defaults, **options})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = panoptic_files(tmp_path)
    output = tmp_path / "score.json"
    assert command.run(called(task="panoptic", predictions=found, ground_truth=truth, json=True, output=output)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(output.read_text(encoding="utf-8"))
    assert (document["result"]["PQ"], document["task"], set(document["versions"])) == (
        1, "panoptic", {"lexiseg", "hotcoco", "numpy"},
    )  # fmt: skip

    edit(found, lambda document: document["annotations"].pop())
    options = {"task": "panoptic", "predictions": found, "ground_truth": truth}
    assert command.run(called(**options, keep_going=True)) == 1
    printed = capsys.readouterr()
    assert "no prediction for image b" in printed.err
    assert "100.000" in printed.out

    found, truth = label_maps(tmp_path / "maps")
    names = tmp_path / "names.txt"
    names.write_text("sky\ndog\n", encoding="utf-8")
    options = {"task": "semantic", "predictions": found, "ground_truth": truth}
    assert command.run(called(**options, vocabulary=str(names))) == 0
    assert "66.667" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--vocabulary"):
        command.run(called(**options))
    files = write(tmp_path / "results.json", results_document()), write(tmp_path / "gt.json", truth_document())
    assert command.run(called(task="instance", predictions=files[0], ground_truth=files[1])) == 0
    assert "AP50" in capsys.readouterr().out


def test_the_command_names_the_classes_that_are_not_in_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, truth = label_maps(tmp_path)
    (tmp_path / "names.txt").write_text("sky\ndog\nzebra\n", encoding="utf-8")
    options = {"task": "semantic", "predictions": found, "ground_truth": truth, "vocabulary": str(tmp_path / "names.txt")}
    command.run(called(**options))
    assert "Classes that are not in the truth: 1 (zebra)." in capsys.readouterr().out
    command.run(called(**options, json=True))
    assert json.loads(capsys.readouterr().out)["absent"] == ["zebra"]


VALUES = [[3, 3, 0, 1], [3, 255, 255, 1], [700, 700, 9, 1]]
LISTS = {
    "lines": "0: void\n3: sky, heaven\n9:void\n700: dog\n1: car\n2: cat\n255: void\n",
    "objects": json.dumps(
        [{"id": n, "name": name} for n, name in ((3, "sky"), (700, "dog"), (1, "car"), (2, "cat"), (0, "void"), (9, "void"))]
        + [{"id": 255, "name": "void"}]
    ),
    "id to name": json.dumps({"3": "sky", "700": "dog", "1": "car", "2": "cat", "0": "void", "9": "void", "255": "void"}),
}


@pytest.mark.parametrize("form", LISTS)
def test_values_are_the_same_classes_to_metrics_and_to_evaluate(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, values in (("images", np.zeros((3, 4, 3), np.uint8)), ("labels", np.array(VALUES, np.uint16))):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png")
    names = tmp_path / "classes.txt"
    names.write_text(LISTS[form], encoding="utf-8")
    dataset = open_own(tmp_path)
    truth = dataset.truth(dataset.samples[0], "semantic")
    assert dataset.vocabulary.names == ("sky", "dog", "car", "cat")
    labels = tmp_path / "labels"
    assert main(["metrics", "--task", "semantic", "--predictions", str(labels), "--ground-truth", str(labels),
                 "--vocabulary", str(names), "--json"]) == 0  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["classes"]
    assert [row["name"] for row in rows] == list(dataset.vocabulary.names)
    assert [row["truth_pixels"] for row in rows] == [int((truth == label).sum()) for label in range(4)] == [3, 2, 3, 0]
    assert [row["IoU"] for row in rows] == [1, 1, 1, None]


def test_what_a_prediction_calls_void_is_not_found(tmp_path: Path) -> None:
    for folder, values in (("truth", [[3, 3, 0, 255]]), ("found", [[3, 0, 3, 3]])):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array(values, np.uint8)).save(tmp_path / folder / "a.png")
    score = score_semantic(tmp_path / "found", tmp_path / "truth", ("sky",), table=LabelTable.of_ids([3], [0]))
    assert score.metric.result()["mIoU"] == 1 / 2


def test_the_help_says_what_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["metrics", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: 255, or 65535 where the vocabulary has an id of 255 or more)" in shown
    for count, ignored in ((255, 255), (256, 65535)):
        path = tmp_path / "a.png"
        Image.fromarray(np.array([[0, ignored]], np.uint16)).save(path)
        assert score_semantic(tmp_path, tmp_path, [str(n) for n in range(count)]).metric.result()["pixels"] == 1
    for value in ("x", "1.5", "9" * 5000):
        with pytest.raises(SystemExit):
            main(["metrics", "--task", "semantic", "--predictions", "a", "--ground-truth", "b", "--ignore", value])
        assert "is not a value that label maps can have" in capsys.readouterr().err


def test_a_score_is_plain_json(tmp_path: Path) -> None:
    score = score_panoptic(*panoptic_files(tmp_path))
    assert isinstance(score, Score)
    assert json.loads(json.dumps(score.document(), allow_nan=False)) == score.document()


def test_pictures_are_read_a_few_ahead_and_in_order() -> None:
    started: list[int] = []

    def read(number: int) -> tuple[int, int]:
        started.append(number)
        if number == 5:
            raise DataError("the sixth is damaged")
        return number, -number

    found = _read_ahead(read, range(1000))
    assert [pair.result() for _, pair in islice(found, 5)] == [(number, -number) for number in range(5)]
    number, damaged = next(found)
    assert number == 5
    with pytest.raises(DataError, match="sixth"):
        damaged.result()
    found.close()  # type: ignore[attr-defined]
    assert len(started) < 100, "who stops early does not read the rest"
