"""COCO instances: the masks come back by a decoder written from the format's description alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.exports import categories, image_record, instance_annotations, write_ground_truth, write_predictions
from lexiseg.structures import Segment

HIGH, WIDE = 23, 37


def decode(segmentation: dict[str, object]) -> NDArray[np.bool_]:
    """Character by character: 6 bits each from '0', 5 of value, 1 for more; signed; from the fourth run on a difference."""
    high, wide = segmentation["size"]
    runs: list[int] = []
    text, position = str(segmentation["counts"]), 0
    while position < len(text):
        value = shift = 0
        while True:
            digit = ord(text[position]) - 48
            position += 1
            value |= (digit & 31) << shift
            shift += 5
            if not digit & 32:
                break
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    pixels: list[bool] = []
    for number, run in enumerate(runs):
        pixels += [number % 2 == 1] * run
    return np.array([[pixels[x * high + y] for x in range(wide)] for y in range(high)])


@pytest.fixture(scope="module")
def masks() -> NDArray[np.bool_]:
    rng = np.random.default_rng(0)
    stack = np.zeros((6, HIGH, WIDE), bool)
    stack[0, 3:9, 5:30] = True
    stack[1] = rng.random((HIGH, WIDE)) < 0.5
    stack[2] = True
    stack[3, 0, 0] = stack[3, -1, -1] = True
    stack[4] = np.hypot(*np.mgrid[-11:12, -18:19]) < 9
    return stack  # the last one is empty


@pytest.fixture(scope="module")
def segments(masks: NDArray[np.bool_]) -> list[Segment]:
    return [
        Segment(number, number % 3, f"name {number % 3}", True, 1 - number / 8, int(mask.sum()), (number, 2, 3, 4))
        for number, mask in enumerate(masks, start=1)
    ]


def test_masks_come_back_and_records_are_complete(masks: NDArray[np.bool_], segments: list[Segment]) -> None:
    annotations = instance_annotations(masks, segments, image_id=7)
    for annotation, mask, segment in zip(annotations, masks, segments, strict=True):
        assert np.array_equal(decode(annotation["segmentation"]), mask)
        assert annotation["segmentation"]["size"] == [HIGH, WIDE]
        del annotation["segmentation"]
        assert annotation == {
            "id": segment.id,
            "image_id": 7,
            "category_id": segment.label + 1,
            "area": int(mask.sum()),
            "bbox": [segment.id, 2, 3, 4],
            "iscrowd": 0,
            "score": segment.score,
        }


def test_a_data_set_s_own_ids(masks: NDArray[np.bool_], segments: list[Segment]) -> None:
    annotations = instance_annotations(masks, segments, 7, category_ids=[1, 90, 44])
    assert [annotation["category_id"] for annotation in annotations] == [90, 44, 1, 90, 44, 1]
    assert categories(["cat", "sky"], [True, False], [17, 90]) == [
        {"id": 17, "name": "cat", "isthing": 1},
        {"id": 90, "name": "sky", "isthing": 0},
    ]


def test_no_instance_and_mismatched_counts(masks: NDArray[np.bool_], segments: list[Segment]) -> None:
    assert instance_annotations(masks[:0], [], 7) == []
    with pytest.raises(UsageError, match="6 masks for 5 segments"):
        instance_annotations(masks, segments[:5], 7)


def test_predictions_hold_what_coco_asks_for_and_no_box(
    tmp_path: Path, masks: NDArray[np.bool_], segments: list[Segment]
) -> None:
    write_predictions(tmp_path / "predictions.json", instance_annotations(masks, segments, 7))
    document = json.loads((tmp_path / "predictions.json").read_text())
    assert [sorted(entry) for entry in document] == [["category_id", "image_id", "score", "segmentation"]] * 6
    assert np.array_equal(decode(document[1]["segmentation"]), masks[1])


def test_ground_truth_is_one_document_with_ids_of_its_own(
    tmp_path: Path, masks: NDArray[np.bool_], segments: list[Segment]
) -> None:
    images = [image_record(7, "a.jpg", (HIGH, WIDE)), image_record(8, "b.jpg", (HIGH, WIDE))]
    annotations = [entry for image in (7, 8) for entry in instance_annotations(masks, segments, image)]
    write_ground_truth(tmp_path / "truth.json", images, annotations, categories(["dog", "犬", "cat"], [True] * 3))
    document = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    assert document["images"][1] == {"id": 8, "file_name": "b.jpg", "height": HIGH, "width": WIDE}
    assert [entry["id"] for entry in document["annotations"]] == list(range(1, 13))
    assert [entry["image_id"] for entry in document["annotations"]] == [7] * 6 + [8] * 6
    assert [entry["name"] for entry in document["categories"]] == ["dog", "犬", "cat"]
