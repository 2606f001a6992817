"""One result out of the predictions of tiles.

* **Pixels** (semantic results, and panoptic ones of methods without masks): class scores are averaged by the tiles' weights
  (`lexiseg.inference.tiles.window_weights`), then post-processed as those of a whole picture.
* **Segments** (panoptic results and instances): each tile is post-processed by itself, so thresholds hold in it, and at most
  `Policy.detections` instances come from it. A pixel belongs to the segments of the tile in whose core it lies. Two segments of
  neighbouring tiles are one if they have the same class and agree where the tiles overlap: their masks there have an IoU above
  `AGREEMENT`. This is the rule by which panoptic quality matches segments (Kirillov et al., Panoptic Segmentation, CVPR 2019,
  Sec. 4.1): of disjoint segments no two agree with the same one. Instances may overlap: pairs are taken by descending IoU, each
  segment at most once for each pair of tiles. A segment may so continue over any number of tiles. Stuff of a class is one
  segment. The score is the highest of the parts. [decided, but for the threshold]

Memory: the predictions of two rows of tiles, and masks of one bit a pixel. No array of all classes has the size of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lexiseg import postprocess
from lexiseg.inference.tiles import Grid, Tile
from lexiseg.ops.packed import PackedMask, common
from lexiseg.ops.progress import part_of
from lexiseg.postprocess import PIXELS, VOID, Policy, Region, RowScores
from lexiseg.structures import MaskPrediction, PixelPrediction, Task, masks_of

AGREEMENT = 0.5  # segments of two tiles are one if the IoU of their masks in the overlap exceeds it

Prediction = MaskPrediction | PixelPrediction


@dataclass
class MergedRegion:
    """Region of a picture.

    Attributes:
        label: its class.
        score: in 0..1.
        pieces: its mask, in parts that do not overlap.
    """

    label: int
    score: float
    pieces: list[PackedMask] = field(default_factory=list)

    @property
    def area(self) -> int:
        """Pixels."""
        return sum(piece.area for piece in self.pieces)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels."""
        left, top = (min(lines) for lines in zip(*((p.columns.start, p.rows.start) for p in self.pieces), strict=True))
        right, bottom = (max(lines) for lines in zip(*((p.columns.stop, p.rows.stop) for p in self.pieces), strict=True))
        return left, top, right - left, bottom - top


@torch.no_grad()
def merge_tiles(
    grid: Grid,
    predict: Callable[[slice, slice], Prediction],
    regions_of: Callable[[Prediction], Sequence[Region]],
    task: Task,
    things: Sequence[bool],
    policy: Policy,
) -> list[MergedRegion]:
    """Predict the tiles of a picture row by row, and merge them; reports the stage "tiles".

    Args:
        grid: the tiles.
        predict: predicts the tile of some rows and columns.
        regions_of: post-processes the prediction of a tile into regions of the task, by ``policy``.
        task: the task. Panoptic results of predictions without masks are merged as semantic ones, a region per class.
        things: K flags, True for things.
        policy: post-processing.

    Returns:
        The regions: of "instance" by descending score, of "panoptic" in the order of the tiles, else by label.
    """
    merger: _Merger | None = None
    for number, rows in enumerate(grid.rows):
        for position, columns in enumerate(grid.columns):
            with part_of("tiles", number * len(grid.columns) + position, len(grid)):
                prediction = predict(rows.pixels, columns.pixels)
                if merger is None:
                    of_pixels = task == "semantic" or (task == "panoptic" and masks_of(prediction) is None)
                    merger = PixelMerger(grid.size[1], policy) if of_pixels else SegmentMerger(regions_of, things)
                merger.add(Tile(rows, columns), prediction)
        assert merger is not None
        merger.settle(grid.rows[number + 1].pixels.start if number + 1 < len(grid.rows) else grid.size[0])
    assert merger is not None
    regions = [region for region in merger.regions() if region.pieces]
    return sorted(regions, key=lambda region: -region.score) if task == "instance" else regions


class _Merger(Protocol):
    """Merges tiles, which come row by row."""

    def add(self, tile: Tile, prediction: Prediction) -> None:
        """Take in the prediction of a tile."""
        ...

    def settle(self, until: int) -> None:
        """No further tile covers rows before ``until``."""
        ...

    def regions(self) -> list[MergedRegion]:
        """The regions of the picture, when all tiles are in."""
        ...


class PixelMerger:
    """Averages class scores, and keeps the best class of each pixel.

    Args:
        width: of the picture, in pixels.
        policy: post-processing.
    """

    def __init__(self, width: int, policy: Policy) -> None:
        self._width, self._policy, self._settled = width, policy, 0
        self._tiles: list[tuple[Tile, RowScores]] = []
        self._regions: dict[int, MergedRegion] = {}  # by label; the score is a sum over pixels

    def add(self, tile: Tile, prediction: Prediction) -> None:
        self._tiles += [(tile, scores) for _, scores in postprocess.scores_of_rows(prediction)]

    def settle(self, until: int) -> None:
        high = max(1, PIXELS // max(len(tile.columns.weights) for tile, _ in self._tiles))
        bands = [self._best(top, min(top + high, until)) for top in range(self._settled, until, high)]
        score, label = torch.cat([best for best, _ in bands]), torch.cat([label for _, label in bands])
        scores, numbers = score.cpu(), postprocess.label_map(score, label, self._policy).cpu()
        for present in sorted(set(numbers.unique().tolist()) - {VOID}):
            mask = numbers == present
            region = self._regions.setdefault(present, MergedRegion(present, 0.0))
            region.score += float(scores[mask].sum(dtype=torch.float64))
            region.pieces += _packed(mask.numpy(), self._settled, 0)
        self._settled = until
        self._tiles = [(tile, rows) for tile, rows in self._tiles if tile.rows.pixels.stop > until]

    def _best(self, top: int, bottom: int) -> tuple[Tensor, Tensor]:
        """Highest average score of some rows of the picture, and its class, [rows, W]."""
        total: Tensor | None = None
        for tile, scores in self._tiles:
            rows = common(tile.rows.pixels, slice(top, bottom))
            if rows is None:
                continue
            first, last = rows.start - tile.rows.pixels.start, rows.stop - tile.rows.pixels.start
            band = scores(first, last)
            weights = tile.rows.weights[first:last, None] * tile.columns.weights
            if total is None:
                total = band.new_zeros(len(band), bottom - top, self._width)
            total[:, rows.start - top : rows.stop - top, tile.columns.pixels] += band * weights.to(band.device)
        assert total is not None  # tiles cover the picture
        score, label = total.max(0)
        return score, label.int()

    def regions(self) -> list[MergedRegion]:
        regions = (self._regions[label] for label in sorted(self._regions))
        return [MergedRegion(region.label, region.score / region.area, region.pieces) for region in regions]


@dataclass(frozen=True)
class _Part:
    """Segment of a tile.

    Attributes:
        number: among the parts of all tiles.
        label, score: of the segment.
        mask: all of it.
    """

    number: int
    label: int
    score: float
    mask: PackedMask


class SegmentMerger:
    """Joins the segments of tiles that agree where the tiles overlap.

    Args:
        regions_of: post-processes the prediction of a tile.
        things: K flags, True for things.
    """

    def __init__(self, regions_of: Callable[[Prediction], Sequence[Region]], things: Sequence[bool]) -> None:
        self._regions_of, self._things = regions_of, things
        self._parts: list[MergedRegion] = []  # what lies in the cores of their tiles
        self._tiles: list[tuple[Tile, list[_Part]]] = []  # those that further tiles may overlap
        self._links: list[tuple[int, int]] = []
        self._stuff: dict[int, int] = {}

    def add(self, tile: Tile, prediction: Prediction) -> None:
        parts: list[_Part] = []
        rows, columns = tile.rows, tile.columns
        for region in self._regions_of(prediction):
            mask = PackedMask.of(region.mask.cpu().numpy(), rows.pixels.start, columns.pixels.start)
            if mask is None:
                continue
            part = _Part(len(self._parts), region.label, region.score, mask)
            core = _packed(mask.within(rows.core, columns.core), rows.core.start, columns.core.start)
            self._parts.append(MergedRegion(region.label, region.score, core))
            if self._things[region.label]:
                parts.append(part)
            else:
                self._links.append((self._stuff.setdefault(region.label, part.number), part.number))
        for earlier, others in self._tiles:
            self._links += agreements(earlier, others, tile, parts)
        self._tiles.append((tile, parts))

    def settle(self, until: int) -> None:
        self._tiles = [(tile, parts) for tile, parts in self._tiles if tile.rows.pixels.stop > until]

    def regions(self) -> list[MergedRegion]:
        count = len(self._parts)
        if not count:
            return []
        first, second = np.array(self._links, int).reshape(-1, 2).T
        links = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
        _, groups = connected_components(links, directed=False)
        merged: dict[int, MergedRegion] = {}
        for group, part in zip(groups.tolist(), self._parts, strict=True):
            region = merged.setdefault(group, MergedRegion(part.label, part.score))
            region.score = max(region.score, part.score)
            region.pieces += part.pieces
        return list(merged.values())


def agreements(earlier: Tile, others: Sequence[_Part], later: Tile, parts: Sequence[_Part]) -> Iterator[tuple[int, int]]:
    """Numbers of the segments of two tiles that are one, see the module."""
    rows, columns = common(earlier.rows.pixels, later.rows.pixels), common(earlier.columns.pixels, later.columns.pixels)
    if rows is None or columns is None:
        return
    before, after = ([(part, part.mask.within(rows, columns)) for part in each] for each in (others, parts))
    pairs = [
        (-agreement, first.number, second.number)
        for first, first_mask in before
        for second, second_mask in after
        if first.label == second.label and (agreement := iou(first_mask, second_mask)) > AGREEMENT
    ]
    taken: set[int] = set()
    for _, first_number, second_number in sorted(pairs):
        if not taken & {first_number, second_number}:
            taken |= {first_number, second_number}
            yield first_number, second_number


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of one shape; 0 if both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0


def _packed(mask: NDArray[np.bool_], top: int, left: int) -> list[PackedMask]:
    """The mask as a list of a piece, or of none if it is empty."""
    piece = PackedMask.of(mask, top, left)
    return [] if piece is None else [piece]
