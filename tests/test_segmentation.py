"""A result as files: called after its picture, in the folder given, and never in the picture's place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.errors import DataError, OutputError
from lexiseg.formats import result_files
from lexiseg.ops.names import result_name
from lexiseg.segmentation import Segmentation


def result(source: Path | None, task: str = "semantic") -> Segmentation:
    pixels = np.zeros((8, 9, 3), np.uint8)
    return Segmentation(
        task, pixels, ("dog",), (True,), (), np.zeros((0, 8, 9), bool), source=None if source is None else str(source)
    )


@pytest.mark.parametrize(
    ("task", "endings"),
    [
        ("semantic", (".overlay.png", ".json", ".labels.png")),
        ("panoptic", (".overlay.png", ".json", ".panoptic.png")),
        ("instance", (".overlay.png", ".json")),
    ],
)
def test_files_are_called_after_the_picture_unless_told_otherwise(task: str, endings: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "photo.jpg"
    for found, stem, given in (
        (result(source, task), result_name(source), None),
        (result(None, task), "image", None),
        (result(source, task), "sub/mine", "sub/mine"),
    ):
        written = found.save(tmp_path / "out", given)
        assert written == [tmp_path / "out" / f"{stem}{ending}" for ending in endings]
        assert written == result_files(tmp_path / "out", stem, task)
        assert all(path.is_file() for path in written)


@pytest.mark.parametrize("stem", ["../photo", "/tmp/photo", "a/../../photo", "C:photo"])
def test_a_stem_never_leaves_the_folder(stem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results in .*out: the name"):
        result(None).save(tmp_path / "out", stem)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("linked", [False, True])
def test_a_result_never_takes_the_place_of_its_picture(linked: bool, tmp_path: Path) -> None:
    picture = tmp_path / "photo.overlay.png"
    Image.new("RGB", (9, 8), "red").save(picture)
    before = picture.read_bytes()
    source = picture
    if linked:
        source = tmp_path / "link.png"
        source.symlink_to(picture.name)
    with pytest.raises(OutputError, match="is the picture itself"):
        result(source).save(tmp_path, "photo")
    assert picture.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {picture.name, source.name}
