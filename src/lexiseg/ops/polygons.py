"""Rasterisation of polygons, identical to COCO's official tools.

COCO's masks of polygons are neither "pixel centres inside" nor "pixels touched": the outline is drawn on a grid five times
finer, and a column of pixels changes between outside and inside where that outline crosses the column's centre line. Scores
depend on it in the third digit, so `hotcoco`, which does the same, is used here.

The memory is proportional to the length of the outline, also outside the picture. So a polygon that extends far beyond the
picture is first clipped to a frame around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.ops.rle import Counts, decompress
from lexiseg.structures import Size

CORNERS = 3  # minimum of a polygon
FRAME = 1000  # pixels around the picture; polygons of data sets lie within it and are not clipped
LARGEST = 2.0**53  # maximum coordinate
LONGEST = 2_000_000  # pixels of outline, which need some hundred bytes each

Polygon = Sequence[float] | NDArray[np.float64]


def polygons_counts(polygons: Sequence[Polygon], size: Size) -> Counts:
    """Rasterise the union of polygons to run lengths (see `lexiseg.ops.rle`).

    Args:
        polygons: each x0, y0, x1, y1, … in pixels; the last corner is joined to the first.
        size: (height, width) of the mask.

    Raises:
        UsageError: no polygons; or a polygon with fewer than three corners, an odd count of numbers, a number that is not
            finite, or a too long outline.
    """
    if not len(polygons):
        raise UsageError("there is no polygon")
    corners = [cut_to_frame(_corners(polygon), size) for polygon in polygons]
    for polygon in corners:
        if len(polygon) * (max(size) + 2 * FRAME) <= LONGEST:  # an upper bound of the outline
            continue
        if (length := np.abs(polygon - np.roll(polygon, -1, axis=0)).max(axis=1).sum()) > LONGEST:
            raise UsageError(
                f"a polygon's outline is {length:.0f} pixels long, more than {LONGEST}; give the mask as run lengths"
            )
    masks = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in corners], *size)
    return decompress((masks[0] if len(masks) == 1 else coco_mask.merge(masks))["counts"].decode("ascii"))


def cut_to_frame(corners: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Clip a polygon [N, 2] to the frame of `FRAME` pixels around the picture; the mask of the picture is unchanged.

    A polygon within the frame is returned unchanged.
    """
    high, wide = size
    if corners.min() >= -FRAME and corners.max() <= min(size) + FRAME:
        return corners
    for axis, side in enumerate((wide, high)):
        for sign, limit in ((1.0, side + FRAME), (-1.0, FRAME)):
            beyond = sign * corners[:, axis] > limit
            if not beyond.any():
                continue
            after = np.roll(corners, -1, axis=0)
            crosses = beyond != np.roll(beyond, -1)
            with np.errstate(divide="ignore", invalid="ignore"):
                fraction = (sign * limit - corners[:, axis]) / (after[:, axis] - corners[:, axis])
                crossing = corners + fraction[:, None] * (after - corners)
            crossing[:, axis] = sign * limit
            corners = np.where(beyond[:, None] & (np.arange(2) == axis), sign * limit, corners)
            edges = np.flatnonzero(crosses)
            corners = np.insert(corners, edges + 1, crossing[edges], axis=0)
    return corners


def _corners(polygon: Polygon) -> NDArray[np.float64]:
    numbers = np.asarray(polygon, np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 * CORNERS or len(numbers) % 2 or not (np.abs(numbers) <= LARGEST).all():
        raise UsageError(f"a polygon needs {CORNERS} corners or more, two finite numbers each; this has {numbers.size} numbers")
    return numbers.reshape(-1, 2)
