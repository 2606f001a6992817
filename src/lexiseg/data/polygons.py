"""Polygons as COCO's masks, pixel for pixel those of the official tools.

COCO's masks of polygons are neither "pixel centres inside" nor "pixels touched": the outline is drawn on a grid five times
finer, and a column of pixels changes between outside and inside where that outline crosses the column's centre line. Scores
depend on it in the third digit, so it is done the same here (the method of ``rleFrPoly`` in the COCO API).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lexiseg.errors import UsageError
from lexiseg.structures import Size

FINER = 5  # fine cells a pixel


def polygon_counts(polygon: Sequence[float], size: Size) -> NDArray[np.int64]:
    """Runs (see `lexiseg.ops.rle`) of the area inside a polygon.

    Args:
        polygon: x0, y0, x1, y1, … in pixels; the last corner is joined to the first.
        size: (height, width) of the mask.

    Raises:
        UsageError: if there are fewer than three corners or half a corner, or a number is not finite.
    """
    high, wide = size
    corners = np.asarray(polygon, np.float64)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
        raise UsageError(f"a polygon needs three corners or more, two finite numbers each; this has {corners.size} numbers")
    fine = np.trunc(FINER * corners.reshape(-1, 2) + 0.5).astype(np.int64)
    columns, rows = _outline(fine)
    before, after = columns[:-1], columns[1:]
    moved = before != after
    column = ((np.minimum(before, after)[moved]) + 0.5) / FINER - 0.5
    row = (np.minimum(rows[:-1], rows[1:])[moved] + 0.5) / FINER - 0.5
    crosses = (column == np.floor(column)) & (column >= 0) & (column <= wide - 1)
    places = column[crosses].astype(np.int64) * high + np.ceil(np.clip(row[crosses], 0, high)).astype(np.int64)
    return _runs(np.sort(places), high * wide)


def _outline(corners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The fine cells (columns, rows) along the closed outline, both ends of each side included."""
    columns, rows = [], []
    for (x, y), (next_x, next_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        steps = max(abs(next_x - x), abs(next_y - y))
        flat = abs(next_x - x) >= abs(next_y - y)
        # A side is drawn from its left (steep: upper) end, whichever way it is walked: rounding is not symmetric.
        walked = np.arange(steps + 1)
        turned = next_x < x if flat else next_y < y
        along = steps - walked if turned else walked
        first_x, first_y, last_x, last_y = (next_x, next_y, x, y) if turned else (x, y, next_x, next_y)
        if flat:
            slope = (last_y - first_y) / steps if steps else 0.0
            columns.append(first_x + along)
            rows.append(np.trunc(first_y + slope * along + 0.5).astype(np.int64))
        else:
            slope = (last_x - first_x) / steps
            rows.append(first_y + along)
            columns.append(np.trunc(first_x + slope * along + 0.5).astype(np.int64))
    return np.concatenate(columns), np.concatenate(rows)


def _runs(places: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Runs of a mask that changes at each of the sorted ``places``; two changes at one place are none."""
    distinct, times = np.unique(places, return_counts=True)
    changes = distinct[times % 2 == 1]
    changes = changes[changes < total]
    return np.diff(changes, prepend=0, append=total).astype(np.int64)
