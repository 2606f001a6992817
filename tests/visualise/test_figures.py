"""The panels say what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lexiseg.visualise.figures import WIDE, boxed, clusters, heat, painted, sheet, stacked


def test_heat_is_brighter_where_the_value_is_higher() -> None:
    image = np.full((4, 11, 3), 128, np.uint8)
    drawn = np.asarray(heat(image, np.tile(np.linspace(0, 1, 11), (4, 1)))).sum(-1).astype(int)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert np.array_equal(np.asarray(heat(image, np.full((4, 11), np.nan))), np.asarray(heat(image, np.zeros((4, 11)))))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_clusters_are_regions_of_like_direction(scale: float) -> None:
    truth = np.zeros((12, 16), int)
    truth[:5], truth[8:, :6] = 1, 2
    directions = np.eye(6)[:3] * np.array([1.0, 5.0, 2.0])[:, None]  # lengths do not count
    features = directions[truth].transpose(2, 0, 1) + 0.01 * np.random.default_rng(0).normal(size=(6, 12, 16))
    order = np.argsort(-np.bincount(truth.ravel()))
    assert np.array_equal(order[clusters(scale * features, 3)], truth)


def test_fewer_cells_than_clusters_and_features_without_differences() -> None:
    assert sorted(clusters(np.random.default_rng(0).normal(size=(4, 1, 2)), 8).ravel()) == [0, 1]
    assert set(clusters(np.ones((4, 3, 3)), 2).ravel().tolist()) <= {0, 1}


def test_numbers_and_boxes_are_told_apart() -> None:
    labels = np.arange(6).reshape(2, 3)
    assert len(np.unique(np.asarray(painted(labels)).reshape(-1, 3), axis=0)) == 6
    image = np.zeros((20, 30, 3), np.uint8)
    drawn = np.asarray(boxed(image, [(2, 3, 10, 12)])).any(-1)
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (2, 3, 10, 12)
    assert not drawn[4:12, 3:10].any()


def test_small_masks_lie_over_large_ones() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1, 1], masks[1, :3], masks[2, 2:, :2] = True, True, True
    assert stacked(masks).tolist() == [[2] * 6, [2, 1, 2, 2, 2, 2], [3, 3, 2, 2, 2, 2], [3, 3, 0, 0, 0, 0]]
    assert not stacked(masks[:0]).any()


def test_a_sheet_has_room_for_every_panel() -> None:
    red, tall = Image.new("RGB", (10, 10), "red"), Image.new("RGB", (10, 20), "blue")
    drawn = np.asarray(sheet(["one", "two"], [("a", [red, red]), ("longer", [red, tall])]))
    for colour, sides in (((255, 0, 0), 3 * WIDE * WIDE), ((0, 0, 255), 2 * WIDE * WIDE)):
        assert (drawn == colour).all(-1).sum() == sides
