"""Polygons: those of pycocotools, wherever they lie, in memory that the picture bounds."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from pycocotools import mask as official

from lexiseg.errors import UsageError
from lexiseg.ops.polygons import FRAME, polygons_counts
from lexiseg.ops.rle import decode_counts, decompress

SIZE = (23, 31)
CORNER = some.tuples(some.integers(-80, 380), some.integers(-80, 300))  # tenths of pixels, outside of the picture too
FAR = some.tuples(some.integers(-9 * FRAME, 9 * FRAME), some.integers(-9 * FRAME, 9 * FRAME))


@given(some.lists(CORNER, min_size=3, max_size=9), some.sampled_from([10, 5, 20]))
def test_polygons_are_those_of_pycocotools(corners: list[tuple[int, int]], scale: int) -> None:
    polygon = [number / scale for corner in corners for number in corner]
    (runs,) = official.frPyObjects([polygon], *SIZE)
    np.testing.assert_array_equal(polygons_counts([polygon], SIZE), decompress(runs["counts"].decode()))


def test_several_polygons_are_one_mask() -> None:
    polygons = [[2.5, 3, 20, 4, 12, 19.2], [10, 1, 30, 2, 29, 15, 8, 14]]
    expected = official.merge(official.frPyObjects(polygons, *SIZE))["counts"].decode()
    np.testing.assert_array_equal(polygons_counts(polygons, SIZE), decompress(expected))


@given(some.lists(FAR, min_size=3, max_size=9))
def test_polygons_that_leave_the_frame_are_the_same_inside_but_for_a_rounding(corners: list[tuple[int, int]]) -> None:
    polygon = [float(number) for corner in corners for number in corner]
    expected = decompress(official.frPyObjects([polygon], *SIZE)[0]["counts"].decode())
    different = decode_counts(polygons_counts([polygon], SIZE), SIZE) != decode_counts(expected, SIZE)
    assert different.sum() <= 2 * len(corners), "a fine cell at most where a side crosses a column"


def test_far_corners_take_no_memory() -> None:
    tracemalloc.start()
    everywhere = polygons_counts([[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]], (16, 20))
    nowhere = polygons_counts([[1e9, 1e9, 2e15, 1e9, 2e15, 3e15]], (16, 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (everywhere.tolist(), nowhere.tolist()) == ([0, 320], [320])
    assert peak < 1e6


@pytest.mark.parametrize("polygon", [[0, 0, 5, 5], [0, 0, 5, 5, 1], [0, 0, 5, 5, 1, float("nan")], [0, 0, 5, 5, 1, 1e300], []])
def test_what_is_no_polygon_is_refused(polygon: list[float]) -> None:
    with pytest.raises(UsageError, match="3 corners or more"):
        polygons_counts([polygon], SIZE)


def test_an_outline_too_long_to_be_drawn_is_refused() -> None:
    with pytest.raises(UsageError, match="outline is"):
        polygons_counts([[0, 0, 60_000, 1] * 40], (2, 60_000))
    with pytest.raises(UsageError, match="no polygon"):
        polygons_counts([], SIZE)
