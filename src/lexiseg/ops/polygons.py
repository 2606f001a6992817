"""Polygons as COCO's masks, pixel for pixel those of the official tools.

COCO's masks of polygons are neither "pixel centres inside" nor "pixels touched": the outline is drawn on a grid five times
finer, and a column of pixels changes between outside and inside where that outline crosses the column's centre line. Scores
depend on it in the third digit, so it is done the same here, by `hotcoco`.

The outline takes memory by its length, also where it leaves the picture. So a polygon that goes far beyond the picture is
first cut to a frame around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.ops.rle import Counts, decompress
from lexiseg.structures import Size

CORNERS = 3  # a polygon has at least so many
FRAME = 1000  # pixels around the picture; no polygon of a data set goes farther, which is then drawn as it is
LARGEST = 2.0**53  # what a coordinate can be; NaN is not
LONGEST = 2_000_000  # pixels of outline, which take some hundred bytes each

Polygon = Sequence[float] | NDArray[np.float64]


def polygons_counts(polygons: Sequence[Polygon], size: Size) -> Counts:
    """Runs (see `lexiseg.ops.rle`) of the area inside any of some polygons.

    Args:
        polygons: each x0, y0, x1, y1, … in pixels; the last corner is joined to the first.
        size: (height, width) of the mask.

    Raises:
        UsageError: if there is no polygon; if one has fewer than three corners or half a corner, a number that is not finite,
            or an outline too long to be drawn.
    """
    if not len(polygons):
        raise UsageError("there is no polygon")
    corners = [cut_to_frame(_corners(polygon), size) for polygon in polygons]
    for each in corners:
        if len(each) * (max(size) + 2 * FRAME) <= LONGEST:  # then its outline is shorter, too
            continue
        if (length := np.abs(each - np.roll(each, -1, axis=0)).max(axis=1).sum()) > LONGEST:
            raise UsageError(
                f"a polygon's outline is {length:.0f} pixels long, more than {LONGEST}; give the mask as run lengths"
            )
    masks = coco_mask.frPyObjects([each.ravel().tolist() for each in corners], *size)
    return decompress((masks[0] if len(masks) == 1 else coco_mask.merge(masks))["counts"].decode("ascii"))


def cut_to_frame(corners: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """A polygon [N, 2] of which nothing lies farther than `FRAME` from the picture: what did is laid along the frame.

    Inside the picture nothing changes. A polygon within the frame is returned as it is.
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
                share = (sign * limit - corners[:, axis]) / (after[:, axis] - corners[:, axis])
                crossing = corners + share[:, None] * (after - corners)
            crossing[:, axis] = sign * limit
            corners = np.where(beyond[:, None] & (np.arange(2) == axis), sign * limit, corners)
            places = np.flatnonzero(crosses)
            corners = np.insert(corners, places + 1, crossing[places], axis=0)
    return corners


def _corners(polygon: Polygon) -> NDArray[np.float64]:
    numbers = np.asarray(polygon, np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 * CORNERS or len(numbers) % 2 or not (np.abs(numbers) <= LARGEST).all():
        raise UsageError(f"a polygon needs {CORNERS} corners or more, two finite numbers each; this has {numbers.size} numbers")
    return numbers.reshape(-1, 2)
