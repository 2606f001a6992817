"""Outlines of binary masks as polygons, exact: rasterised again they are the same mask.

Two kinds of outline, for two kinds of rasteriser:

* along the *borders* of pixels, with corners from (0, 0) to (W, H): a pixel is inside if its centre is. Shapely, SVG and COCO's
  tools read it so.
* through the *centres* of the outermost pixels, with corners from (0, 0) to (W - 1, H - 1): the outline belongs to the polygon.
  OpenCV's ``fillPoly`` and with it YOLO's tools read it so.

A region has an exterior and holes. For formats without holes, `bridged` joins each hole to the ring above it by a bridge of no
width, traversed in both directions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

Along = Literal["borders", "centres"]
Ring = NDArray[np.int64]  # [N, 2], x and y; the last corner is joined to the first


def bounds(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box around a mask [H, W]; empty ones for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def polygons_of_mask(mask: NDArray[np.bool_]) -> list[list[Ring]]:
    """Return the regions of a mask as polygons along the borders of pixels: of each its exterior, then its holes.

    A region's pixels are connected by their sides. No ring crosses or touches itself, and rings of a polygon touch at most in
    corners, so the polygons are valid in the sense of Simple Features. With y downwards exteriors run clockwise, holes
    counter-clockwise.

    Args:
        mask: [H, W] bool.
    """
    tracer = _Tracer.of(mask, diagonal=False)
    numbers, _ = label(tracer.mask)
    regions: dict[int, list[Ring]] = defaultdict(list)
    for edges in tracer.rings:
        rings = regions[numbers[tracer.pixel(edges)]]
        for ring in _split(tracer.corners(edges)):
            rings.insert(0 if signed_area(ring) > 0 else len(rings), ring)
    return [[ring + tracer.offset for ring in rings] for rings in regions.values()]


def bridged(mask: NDArray[np.bool_], along: Along) -> list[Ring]:
    """Return one ring per region of a mask, its holes joined to it by bridges.

    A region's pixels are connected by their sides or corners. By the even-odd rule the ring is exactly the region.

    Args:
        mask: [H, W] bool.
        along: where the outline runs; see the module. Rings along "centres" of one or two pixels repeat their corners.
    """
    tracer = _Tracer.of(mask, diagonal=True)
    return [ring + tracer.offset for ring in tracer.bridged_rings(along)]


def signed_area(ring: NDArray[Any]) -> float:
    """Signed area of a ring [N, 2], x and y; positive if it runs clockwise with y downwards."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2


def _split(ring: Ring) -> Iterator[Ring]:
    """Split a ring that visits a corner twice into rings that touch there."""
    path: list[tuple[int, int]] = []
    position: dict[tuple[int, int], int] = {}
    for corner in map(tuple, ring.tolist()):
        if corner in position:
            start = position[corner]
            yield np.array(path[start:], np.int64)
            for passed in path[start:]:
                del position[passed]
            del path[start:]
        position[corner] = len(path)
        path.append(corner)
    yield np.array(path, np.int64)


@dataclass(frozen=True)
class _Tracer:
    """Horizontal edges of a mask's border, in the order of rows and columns, and the rings that they form.

    Every edge has the mask on its right, as seen along it. A vertical edge leads from its end to the start of the next one.

    Attributes:
        mask: the mask's bounding box, [h, w] bool.
        offset: (x, y) of its corner in the picture.
        y, start, end: of each of the E edges its row and the columns of its two ends.
        rings: edges of each ring, in its order.
    """

    mask: NDArray[np.bool_]
    offset: NDArray[np.int64]
    y: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    rings: list[NDArray[np.int64]]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], *, diagonal: bool) -> _Tracer:
        """Trace a mask; ``diagonal``: pixels that touch at a corner are connected."""
        rows, columns = bounds(mask)
        inner = mask[rows, columns]
        pixels = np.pad(inner, 1)
        above_left, above_right, below_left, below_right = pixels[:-1, :-1], pixels[:-1, 1:], pixels[1:, :-1], pixels[1:, 1:]
        to_left, to_right = above_left != below_left, above_right != below_right  # edges that leave a corner horizontally
        double = to_left & to_right & (above_left != above_right)  # four edges meet
        y, x = np.nonzero((to_left != to_right) | double)
        twice = double[y, x]
        second = np.repeat(np.arange(len(y)), 1 + twice)  # a corner of four edges is two corners of two edges
        y, x, twice = y[second], x[second], twice[second]
        closing = np.zeros(len(y), bool)  # of two corners in one point the first ends an edge from the left
        closing[:-1] = twice[:-1] & (second[:-1] == second[1:])
        upwards = np.where(closing, above_left[y, x] != diagonal, above_left[y, x] == diagonal)  # which vertical edge it has
        order = np.lexsort((twice & ~upwards, y, x))
        across = np.empty(len(y), np.int64)  # the corner at the other end of a corner's vertical edge
        across[order[0::2]], across[order[1::2]] = order[1::2], order[0::2]
        # Corners of a row are ends of edges in pairs: edge n joins corners 2n and 2n + 1.
        below = below_right[y[0::2], x[0::2]]
        first = np.arange(0, len(y), 2) + ~below
        last = first ^ 1
        following = across[last] // 2
        return cls(inner, np.array([columns.start, rows.start]), y[0::2], x[first], x[last], _cycles(following))

    def corners(self, edges: NDArray[np.int64]) -> Ring:
        """Corners of a ring along the borders of pixels."""
        ends = np.stack([self.start[edges], self.end[edges]], axis=1)
        return np.stack([ends, np.broadcast_to(self.y[edges, None], ends.shape)], axis=2).reshape(-1, 2)

    def pixel(self, edges: NDArray[np.int64]) -> tuple[int, int]:
        """Row and column of a pixel of the region that a ring bounds."""
        start, end = int(self.start[edges[0]]), int(self.end[edges[0]])
        return int(self.y[edges[0]]) - (start > end), min(start, end)

    def bridged_rings(self, along: Along) -> list[Ring]:
        """Exterior rings, each with its holes joined to it."""
        tops = [(edges, int(self.y[edges].min())) for edges in self.rings]
        width = self.mask.shape[1] + 1
        keys = self.y * width + np.minimum(self.start, self.end)  # ascending
        joined: dict[int, list[tuple[int, Ring]]] = defaultdict(list)  # by edge: column of the bridge, and the hole
        exteriors: list[Ring] = []
        for edges, top in sorted(tops, key=lambda pair: -pair[1]):  # a hole's bridge leads upwards, to a ring that comes later
            uppermost = np.flatnonzero(self.y[edges] == top)
            begin = int(uppermost[self.end[edges[uppermost]].argmin()])
            if self.start[edges[begin]] < self.end[edges[begin]]:  # the mask is below the topmost edge: an exterior
                exteriors.append(self._points(edges, along, joined))
                continue
            column = int(self.end[edges[begin]])
            ring = self._points(np.roll(edges, -1 - begin), along, joined)
            if along == "centres":
                ring = np.roll(ring, 2, axis=0)  # the vertical edge after the topmost one
            ring = np.concatenate([ring[-1:], ring])  # from the bridge once around to the bridge
            gaps = np.flatnonzero(~self.mask[:top, column])
            ceiling = int(gaps[-1]) + 1 if len(gaps) else 0
            above = int(np.searchsorted(keys, ceiling * width + column, "right")) - 1
            joined[above].append((column, ring))
        return [_without_repetition(ring) for ring in reversed(exteriors)]

    def _points(self, edges: NDArray[np.int64], along: Along, joined: dict[int, list[tuple[int, Ring]]]) -> Ring:
        """Points of a ring from the start of its first edge to the end of its last, with the holes joined to its edges."""
        y, start, end = self.y[edges], self.start[edges], self.end[edges]
        if along == "borders":
            points = np.stack([start, y, end, y], axis=1).reshape(len(edges), 2, 2)
        else:  # the outermost pixels of the mask along each edge, and along the vertical one after it
            right, next_y = start < end, np.roll(y, -1)
            down = y < next_y
            row, column = y - ~right, end - down
            points = np.stack(
                [start - ~right, row, end - right, row, column, y - ~down, column, next_y - down], axis=1
            ).reshape(len(edges), 4, 2)
        pieces: list[Ring] = []
        done = 0
        for position, edge in enumerate(edges.tolist()):
            if edge in joined:
                pieces += [points[done:position].reshape(-1, 2), points[position, :1]]
                for bridge_x, hole in sorted(joined[edge], key=lambda pair: pair[0]):
                    bridge = np.array([[bridge_x, points[position, 0, 1]]])
                    pieces += [bridge, hole, bridge]
                pieces.append(points[position, 1:])
                done = position + 1
        return np.concatenate([*pieces, points[done:].reshape(-1, 2)])


def _cycles(following: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cycles of a permutation."""
    successors, rings = following.tolist(), []
    seen = bytearray(len(successors))
    for first in range(len(successors)):
        if seen[first]:
            continue
        ring, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            ring.append(edge)
            edge = successors[edge]
        rings.append(np.array(ring, np.int64))
    return rings


def _without_repetition(ring: Ring) -> Ring:
    """Remove points that repeat the one before; at least three are kept."""
    kept = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
    return kept if len(kept) > 2 else np.concatenate([kept, np.repeat(ring[:1], 3 - len(kept), axis=0)])
