"""Names and legend can be read on pictures of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.errors import UsageError
from lexiseg.segmentation import Segmentation
from lexiseg.structures import Segment
from lexiseg.visualise import lettering
from lexiseg.visualise.lettering import BASE
from lexiseg.visualise.overlay import _dark, overlay
from lexiseg.visualise.palette import class_colour


def whole(height: int, width: int, name: str = "dog") -> tuple[np.ndarray, list[Segment], np.ndarray]:
    """A black picture that is all one region."""
    segment = Segment(id=1, label=0, name=name, thing=True, score=1.0, area=height * width, box=(0, 0, width, height))
    return np.zeros((height, width, 3), np.uint8), [segment], np.ones((1, height, width), bool)


def extent(drawn: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int]:
    """(height, width) of what has a colour."""
    rows, columns = np.nonzero((np.asarray(drawn) == colour).all(-1))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


@pytest.mark.parametrize("size", [(150, 200), (600, 800), (3000, 4000), (600, 3200), (2000, 500)])
def test_names_and_swatches_keep_their_share_of_the_picture(size: tuple[int, int]) -> None:
    drawn = overlay(*whole(*size))
    side = (size[0] * size[1] * (drawn.width / size[1]) ** 2) ** 0.5
    plate, swatch = extent(drawn, _dark(class_colour(0)))[0], extent(drawn, class_colour(0))[0]
    assert 1 / 60 < plate / side < 1 / 20
    assert 1 / 75 < swatch / side < 1 / 30
    assert plate >= 13
    assert swatch >= 11


def test_lines_between_regions_grow_with_the_picture() -> None:
    def line(side: int) -> int:
        image, (segment,), masks = whole(side, side)
        masks[:, :, side // 2 :] = False
        return int((np.asarray(overlay(image, [segment], masks))[5] == 255).all(-1).sum())

    assert line(480) == 1
    assert 2 <= line(1920) <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (30, 2000)])
def test_a_name_never_breaks_a_picture_that_is_too_small_for_it(size: tuple[int, int]) -> None:
    drawn = overlay(*whole(*size, name="a name that is longer than the picture is wide"))
    assert drawn.width % size[1] == 0
    assert drawn.height > size[0]


def test_the_legend_counts_segments_of_long_names_too() -> None:
    image, (segment,), masks = whole(480, 640, name="dog " * 40)
    twice = overlay(image, [segment, segment], np.concatenate([masks, masks]))
    once = overlay(image, [segment], masks)
    assert np.asarray(twice)[482:].tobytes() != np.asarray(once)[482:].tobytes()


def test_a_result_is_drawn_in_the_font_given(tmp_path: Path) -> None:
    image, segments, masks = whole(48, 64)
    found = Segmentation("panoptic", image, ("dog",), (True,), tuple(segments), masks)
    assert found.overlay(BASE).tobytes() == found.overlay().tobytes()
    for call in (lambda: found.overlay(tmp_path / "no.ttf"), lambda: found.save(tmp_path / "out", font=tmp_path / "no.ttf")):
        with pytest.raises(UsageError, match=r"no\.ttf: is not a usable font"):
            call()


def test_letters_that_cannot_be_drawn_are_a_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_noticed", set())
    picture = whole(48, 64, name="\ue000")
    with pytest.warns(UserWarning, match="\ue000"):
        overlay(*picture)
    overlay(*picture)  # a second warning would be an error
