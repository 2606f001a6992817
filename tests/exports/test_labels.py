"""Label maps: 8 or 16 bits by the number of classes, void at the top, and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.errors import UsageError
from lexiseg.exports import read_labels, write_classes, write_labels
from lexiseg.text import Vocabulary


@pytest.mark.parametrize(
    ("classes", "dtype", "void"), [(1, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 65535), (65535, np.uint16, 65535)]
)
def test_maps_come_back_with_their_void(tmp_path: Path, classes: int, dtype: type[np.integer], void: int) -> None:
    labels = np.random.default_rng(0).integers(-1, classes, (19, 31))
    labels[0, :2] = -1, classes - 1
    write_labels(tmp_path / "a.png", labels, classes)
    assert np.array_equal(read_labels(tmp_path / "a.png"), labels)
    with Image.open(tmp_path / "a.png") as opened:
        values = np.asarray(opened)
    assert values.dtype == dtype
    assert np.array_equal(values, np.where(labels < 0, void, labels))


def test_labels_without_a_class_and_too_many_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label 3 in a map of 3 classes"):
        write_labels(tmp_path / "a.png", np.array([[0, 3]]), 3)
    with pytest.raises(UsageError, match="65536 classes"):
        write_labels(tmp_path / "a.png", np.array([[0, 3]]), 65536)
    assert list(tmp_path.iterdir()) == []


def test_the_names_beside_the_maps_are_a_vocabulary(tmp_path: Path) -> None:
    vocabulary = Vocabulary.parse("dog; grass; 犬; table | stuff")
    write_classes(tmp_path, vocabulary.names, vocabulary.things)
    assert Vocabulary.from_file(tmp_path / "classes.txt") == vocabulary
    document = json.loads((tmp_path / "classes.json").read_text(encoding="utf-8"))
    assert document["void"] == 255
    assert document["classes"][1] == {"label": 1, "name": "grass", "thing": False}
    assert [entry["label"] for entry in document["classes"]] == [0, 1, 2, 3]
