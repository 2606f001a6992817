"""The report says what its numbers hide: classes nobody looked at, masks read as void, pictures that were turned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.own import open_own
from lexiseg.inference import report
from lexiseg.inference.evaluation import Protocol, collect, evaluate, new_metrics
from lexiseg.inference.pipeline import Pipeline
from tests.inference.test_evaluation import Colours

STORED = np.zeros((6, 8), np.uint8)
STORED[:2, :3], STORED[5, 4:] = 1, 2
SQUARE = np.pad(STORED, ((0, 2), (0, 0)))


def add(folder: Path, name: str, labels: np.ndarray, truth: np.ndarray, orientation: int = 1) -> None:
    """A picture of three colours, stored as ``labels``, and its label map."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = (255 * (labels[..., None] == (0, 1, 2))).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"images/{name}.png", exif=exif)
    Image.fromarray(truth).save(folder / f"labels/{name}.png")


def reported(folder: Path, **options: Any) -> tuple[dict[str, Any], str]:
    (folder / "classes.txt").write_text("red\ngreen\nblue\n")
    dataset = open_own(folder)
    output = folder / "-".join(["out", str(len(dataset.samples)), *options.values()])
    protocol = Protocol("colours", str(folder), ("semantic",), **options)
    evaluate(Pipeline(Colours()), dataset, protocol, output)
    document = report.document(protocol, *collect(dataset, protocol, output), dataset, command="lexiseg evaluate")
    return document, report.markdown(document)


def test_classes_that_are_not_in_the_truth_are_named(tmp_path: Path) -> None:
    add(tmp_path, "a", STORED, np.minimum(STORED, 1))
    document, page = reported(tmp_path)
    assert document["absent"] == {"semantic": ["blue"]}
    assert "Classes that are not in the truth: 1 (blue)." in page
    add(tmp_path, "b", STORED, STORED)
    document, page = reported(tmp_path)
    assert document["absent"] == {"semantic": []}
    assert "not in the truth" not in page
    assert document["notes"] == []


@pytest.mark.parametrize(
    ("values", "classes", "told"),
    [
        ([(0, 255)], "red\ngreen\n", True),
        ([(0, 255), (255,), (0,)], "red\ngreen\nblue\n", True),
        ([(0,)], "red\ngreen\n", False),  # nothing is void
        ([(0, 255), (0, 1, 255)], "red\ngreen\n", False),
        ([(0, 255), (0, 2, 255)], "0: red\n1: green\n2: void\n", False),
        ([(0, 255)], "red\n", False),  # a class and void
        ([(0, 255)], "0: red\n255: green\n", False),  # as the note says
        ([(1, 255)], "0: red\n1: green\n", False),
    ],
)
def test_masks_of_0_and_255_are_told_from_classes(
    values: list[tuple[int, ...]], classes: str, told: bool, tmp_path: Path
) -> None:
    for number, each in enumerate(values):
        add(tmp_path, str(number), STORED, np.resize(np.array(each, np.uint8), STORED.shape))
    (tmp_path / "classes.txt").write_text(classes)
    dataset, protocol = open_own(tmp_path), Protocol("none", str(tmp_path), ("semantic",))
    metrics = new_metrics(dataset, protocol)
    for number, sample in enumerate(dataset.samples):
        truth = dataset.truth(sample, "semantic")
        metrics["semantic"].update(number, truth, truth)
    document = report.document(protocol, metrics, {}, dataset, command="lexiseg evaluate")
    page = report.markdown(document)
    assert any("'0: red' and '255: green'" in note for note in document["notes"]) == told
    assert all(note in page for note in document["notes"])


def test_pictures_that_are_turned_are_counted(tmp_path: Path) -> None:
    add(tmp_path, "plain", STORED, STORED)
    assert reported(tmp_path)[0]["orientations"] == {"pictures": 0, "upright": 0, "stored": 0, "undecided": 0}
    add(tmp_path, "stored", STORED, STORED, 6)
    add(tmp_path, "upright", STORED, np.rot90(STORED, -1), 6)
    document, page = reported(tmp_path)
    assert document["orientations"] == {"pictures": 2, "upright": 1, "stored": 1, "undecided": 0}
    assert document["results"]["semantic"]["mIoU"] == 1
    assert "are turned as well: 1." in page
    assert "--exif" not in page


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_where_sizes_do_not_tell_the_option_does_and_the_report_says_so(orientation: int, tmp_path: Path) -> None:
    add(tmp_path, "a", SQUARE, SQUARE, orientation)
    scores = {}
    for exif, other in (("upright", "stored"), ("stored", "upright")):
        document, page = reported(tmp_path, exif=exif)
        assert document["orientations"]["undecided"] == document["orientations"]["pictures"] == 1
        assert document["protocol"]["exif"] == exif
        assert f"--exif {other} " in page
        scores[exif] = document["results"]["semantic"]["mIoU"]
    assert scores["upright"] < scores["stored"] == 1


def test_data_sets_of_the_catalogue_are_not_searched_for_orientations(tmp_path: Path) -> None:
    add(tmp_path, "a", SQUARE, SQUARE, 3)
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    dataset, protocol = open_own(tmp_path), Protocol("colours", "ade20k-150", ("semantic",))
    evaluate(Pipeline(Colours()), dataset, protocol, tmp_path / "out")
    document = report.document(protocol, *collect(dataset, protocol, tmp_path / "out"), dataset, command="")
    assert document["orientations"] is None
