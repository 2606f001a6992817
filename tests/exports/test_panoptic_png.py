"""Panoptic PNGs: ids as colours and back, also beyond 16 bits, and the JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.errors import OutputError, UsageError
from lexiseg.exports import (
    categories,
    ids_to_colours,
    image_record,
    panoptic_annotation,
    read_panoptic_png,
    write_panoptic_json,
    write_panoptic_png,
)
from lexiseg.ops.colours import ids_of_picture
from lexiseg.structures import Segment

IDS = np.array([[0, 1, 255], [256, 65535, 65536], [70001, 3_226_105, (1 << 24) - 1]])


def test_colours_are_the_digits_of_the_id_in_base_256() -> None:
    for id, colour in zip(IDS.flatten(), ids_to_colours(IDS).reshape(-1, 3).tolist(), strict=True):
        assert colour[0] + 256 * colour[1] + 256 * 256 * colour[2] == id
    assert np.array_equal(ids_of_picture(Image.fromarray(ids_to_colours(IDS))), IDS)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_picture_kept_in_another_way_has_the_same_ids(mode: str) -> None:
    picture = Image.fromarray(ids_to_colours(IDS)).convert("RGBA")
    if mode == "P":  # a palette of as many colours as there are
        picture = picture.convert("RGB").quantize(IDS.size, dither=Image.Dither.NONE)
        assert np.array_equal(np.asarray(picture.convert("RGB")), ids_to_colours(IDS))
    assert np.array_equal(ids_of_picture(picture), IDS)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_files_come_back(tmp_path: Path, dtype: type[np.integer]) -> None:
    write_panoptic_png(tmp_path / "a.png", IDS.astype(dtype))
    assert np.array_equal(read_panoptic_png(tmp_path / "a.png"), IDS)
    with Image.open(tmp_path / "a.png") as opened:
        assert (opened.format, opened.mode, opened.getpixel((0, 2))) == ("PNG", "RGB", (70001 % 256, 70001 // 256 % 256, 1))


def test_narrow_ids_do_not_overflow(tmp_path: Path) -> None:
    ids = np.array([[200, 255]], np.uint8)
    write_panoptic_png(tmp_path / "a.png", ids)
    assert np.array_equal(read_panoptic_png(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("id", [-1, 1 << 24])
def test_ids_that_do_not_fit_are_refused(tmp_path: Path, id: int) -> None:
    with pytest.raises(UsageError, match="segment ids from"):
        write_panoptic_png(tmp_path / "a.png", np.array([[3, id]]))
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*a\.png"):
        write_panoptic_png(tmp_path / "file" / "a.png", IDS)


def test_the_document_explains_every_id(tmp_path: Path) -> None:
    segments = [Segment(1, 1, "sky", False, 0.75, 6, (0, 0, 3, 2)), Segment(70001, 0, "dog", True, 0.5, 3, (0, 2, 3, 1))]
    write_panoptic_json(
        tmp_path / "panoptic.json",
        [image_record(4, "a.jpg", (3, 3))],
        [panoptic_annotation(4, "a.png", segments)],
        categories(["dog", "sky"], [True, False]),
    )
    document = json.loads((tmp_path / "panoptic.json").read_text())
    assert sorted(document) == ["annotations", "categories", "images"]
    (annotation,) = document["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (4, "a.png")
    keys = ("id", "category_id", "area", "bbox", "iscrowd", "isthing", "score")
    assert [tuple(entry[key] for key in keys) for entry in annotation["segments_info"]] == [
        (1, 2, 6, [0, 0, 3, 2], 0, 0, 0.75),
        (70001, 1, 3, [0, 2, 3, 1], 0, 1, 0.5),
    ]
