"""Outlines of masks are exact: by rasterisers written from the rules, and by the programs that read them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from shapely import Polygon, contains_xy
from shapely.ops import unary_union
from supervision import polygon_to_mask

from lexiseg.ops.outlines import Along, Ring, bridged, polygons_of_mask

Mask = NDArray[np.bool_]


def masks() -> dict[str, Mask]:
    rng = np.random.default_rng(0)
    board = np.indices((7, 9)).sum(0) % 2 == 0
    y, x = np.mgrid[-15:16, -20:21]
    rings = np.isin(np.hypot(x, y) // 3, (0, 2, 4))
    drawn = {
        name: np.zeros((11, 13), bool) for name in ("empty", "pixel", "corner", "border", "line", "two", "stairs", "nested")
    }
    drawn["pixel"][4, 5] = True
    drawn["corner"][-1, -1] = True
    drawn["border"][[0, -1]] = drawn["border"][:, [0, -1]] = True
    drawn["line"][3, 2:9] = True
    drawn["two"][1:4, 1:4] = drawn["two"][6:9, 5:12] = True
    drawn["stairs"][np.arange(9), np.arange(9)] = True
    drawn["nested"][:, :] = True
    drawn["nested"][1:10, 1:12] = False
    drawn["nested"][2:9, 2:11] = True
    drawn["nested"][3:8, 3:10] = False
    drawn["nested"][5, 5] = True
    holes = np.ones((12, 14), bool)
    holes[2, 3] = holes[3, 4] = holes[5, 3:6] = holes[7, 4] = holes[8:10, 9] = holes[2:4, 9] = False  # some touch in a corner
    holes[2, 6] = holes[2, 8] = holes[4, 6] = False  # two bridges to one edge
    noise = {f"noise {density}": rng.random((23, 29)) < density for density in (0.1, 0.3, 0.5, 0.7, 0.9)}
    return {**drawn, "full": np.ones((3, 4), bool), "board": board, "rings": rings, "holes": holes, **noise}


MASKS = masks()
names = pytest.mark.parametrize("name", MASKS)


def even_odd(rings: list[Ring], shape: tuple[int, int]) -> Mask:
    """A pixel is inside if a ray from its centre to the left crosses an odd number of edges."""
    crossings = np.zeros(shape, int)
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
            if y0 != y1:
                at = x0 + (ys - y0) / (y1 - y0) * (x1 - x0)
                crossings += (min(y0, y1) < ys) & (ys < max(y0, y1)) & (at < xs)
    return crossings % 2 == 1


@names
def test_polygons_are_valid_and_hold_the_mask(name: str) -> None:
    mask = MASKS[name]
    polygons = [Polygon(rings[0], rings[1:]) for rings in polygons_of_mask(mask)]
    assert all(polygon.is_valid for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    assert np.array_equal(contains_xy(unary_union(polygons), x + 0.5, y + 0.5), mask)
    assert np.array_equal(even_odd([ring for rings in polygons_of_mask(mask) for ring in rings], mask.shape), mask)
    assert all(polygon.exterior.is_ccw for polygon in polygons)  # with y downwards, clockwise
    assert not any(hole.is_ccw for polygon in polygons for hole in polygon.interiors)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools
@names
def test_bridged_borders_are_the_mask_by_the_rule_and_in_pycocotools(name: str) -> None:
    mask = MASKS[name]
    rings = bridged(mask, "borders")
    assert np.array_equal(even_odd(rings, mask.shape), mask)
    if rings:
        runs = coco_mask.frPyObjects([ring.ravel().astype(float).tolist() for ring in rings], *mask.shape)
        assert np.array_equal(coco_mask.decode(coco_mask.merge(runs)).astype(bool), mask)


@names
def test_bridged_centres_are_the_mask_where_the_outline_is_filled_too(name: str) -> None:
    mask = MASKS[name]
    rings = bridged(mask, "centres")
    drawn = [polygon_to_mask(ring, mask.shape[::-1]).astype(bool) for ring in rings]
    assert np.array_equal(np.any(drawn, axis=0) if drawn else np.zeros_like(mask), mask)
    assert sum(int(each.sum()) for each in drawn) == mask.sum()  # regions are disjoint


@pytest.mark.parametrize("along", ["borders", "centres"])
def test_regions_that_touch_in_a_corner_are_one_ring(along: Along) -> None:
    assert len(bridged(MASKS["stairs"], along)) == 1
    assert len(bridged(MASKS["two"], along)) == 2
    assert len(polygons_of_mask(MASKS["stairs"])) == 9
