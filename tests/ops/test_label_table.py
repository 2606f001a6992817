"""Label tables: each value has the label that the table says, whatever kind of number it is and however large ids are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lexiseg.errors import DataError
from lexiseg.ops.label_table import LabelTable
from lexiseg.structures import IGNORED


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("far", [0, 200_000])
def test_a_map_has_the_labels_of_its_values(dtype: type[np.integer], far: int) -> None:
    far = min(far, int(np.iinfo(dtype).max))
    ids = (7, 0, 254, 3, far) if far else (7, 0, 254, 3)
    table = LabelTable.of_ids(ids, void=[9], ignored=200)
    values = np.random.default_rng(0).choice(np.array([*ids, 9, 200], dtype), (13, 17))
    expected = [[IGNORED if value in (9, 200) else ids.index(value) for value in row] for row in values.tolist()]
    np.testing.assert_array_equal(table.map(values, "a.png"), expected)
    values[2, 3] = 11
    with pytest.raises(DataError, match=r"a\.png: unknown class id 11 \(1 pixels\); known are "):
        table.map(values, "a.png")


@pytest.mark.parametrize("values", [np.zeros((4, 4), np.uint8), np.full((4, 4), 2**31 - 1, np.int32), np.array([[0, 2**53]])])
def test_huge_ids_need_no_memory(values: np.ndarray) -> None:
    table = LabelTable({0: 0, 2**31 - 1: 1, 2**53: 2}, frozenset({-(2**53)}))
    tracemalloc.start()
    try:
        labels = table.map(values, "a.png")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert labels.tolist() == [[{0: 0, 2**31 - 1: 1, 2**53: 2}[value] for value in row] for row in values.tolist()]


@pytest.mark.parametrize(
    ("ids", "void", "ignored"), [((0, 254), (), 255), ((255,), (), 65535), ((0,), (255,), 65535), ((3,), (11,), 255)]
)
def test_the_highest_value_of_as_many_bits_as_ids_need_is_ignored(
    ids: tuple[int, ...], void: tuple[int, ...], ignored: int
) -> None:
    assert LabelTable.of_ids(ids, void).ignored == {ignored, *void}
    assert LabelTable.of_ids(ids, void, ignored=17).ignored == {17, *void}
