"""Large pictures in tiles: where the tiles lie, and how much each counts at a pixel.

Tiles of `Tiling.tile` pixels a side are spread evenly, so that neighbours overlap by at least `Tiling.overlap` pixels [decided:
in mmsegmentation's sliding window the last tile is moved back to the border instead, and overlaps by any amount]. The method
sees each tile as a picture of its own; `lexiseg.inference.merging` makes the tiles' predictions one result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import pi

import torch
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.structures import Size

LEAST_TILE = 64  # pixels
OVERLAPS = 8  # the default overlap is the tile's side divided by this


@dataclass(frozen=True)
class Tiling:
    """Sizes in pixels.

    Attributes:
        tile: side of a tile, at least `LEAST_TILE`.
        overlap: least overlap of neighbours, from 1 to half of ``tile``.
    """

    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if self.tile < LEAST_TILE:
            raise UsageError(f"tile {self.tile}: a tile has at least {LEAST_TILE} pixels a side")
        if not 1 <= self.overlap <= self.tile // 2:
            raise UsageError(
                f"overlap {self.overlap}: neighbours of tiles of {self.tile} pixels overlap by 1 to {self.tile // 2} pixels "
                "(half of a tile); choose another overlap or a larger tile"
            )

    @classmethod
    def of(cls, tile: int | None, overlap: int | None) -> Tiling | None:
        """The tiling of a call; None without a tile.

        Args:
            tile: side of a tile.
            overlap: None: an eighth of ``tile``.

        Raises:
            UsageError: an overlap without a tile, or an invalid size.
        """
        if tile is None:
            if overlap is not None:
                raise UsageError(f"overlap {overlap}: is of tiles; give their size, tile, too")
            return None
        return cls(tile, tile // OVERLAPS if overlap is None else overlap)

    def grid(self, size: Size) -> Grid:
        """The tiles of a picture of ``size``, (height, width)."""
        return Grid(*(tuple(self._spans(length)) for length in size))

    def _spans(self, length: int) -> list[Span]:
        count = max(1, -(-(length - self.overlap) // (self.tile - self.overlap)))
        starts = [number * (length - self.tile) // (count - 1) for number in range(count)] if count > 1 else [0]
        stops = [min(start + self.tile, length) for start in starts]
        # Halfway between the borders of neighbours is where their cores meet.
        cuts = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops, strict=False)), length]
        return [
            Span(slice(start, stop), slice(cuts[number], cuts[number + 1]), weights)
            for number, (start, stop, weights) in enumerate(
                zip(starts, stops, window_weights(starts, stops, self.overlap), strict=True)
            )
        ]


@dataclass(frozen=True)
class Span:
    """Rows, or columns, of a tile.

    Attributes:
        pixels: all of them, in the picture.
        core: those nearer to this tile's centre than to a neighbour's; the cores of all tiles divide the picture.
        weights: of each of its pixels in averages over tiles, see `window_weights`.
    """

    pixels: slice
    core: slice
    weights: Tensor


def window_weights(starts: list[int], stops: list[int], overlap: int) -> list[Tensor]:
    """Weight of each tile at each of its pixels, along one side of a picture; at every pixel they sum to 1.

    A weight rises from the tile's border inside the picture as a half period of sin² over ``overlap`` pixels (the Hann window),
    so that the average has no seam; two such slopes sum to 1 where the overlap is exactly that [decided; elsewhere, and where
    three tiles overlap, weights are divided by their sum]. Where a tile is alone its weight is exactly 1.

    Args:
        starts, stops: first pixel and the one after the last of each tile, ascending.
        overlap: in pixels.
    """
    total = torch.zeros(stops[-1], dtype=torch.float64)
    windows = []
    for start, stop in zip(starts, stops, strict=True):
        position = torch.arange(stop - start, dtype=torch.float64) + 0.5
        rising = position if start > 0 else torch.full_like(position, overlap)
        falling = (stop - start) - position if stop < stops[-1] else torch.full_like(position, overlap)
        window = (torch.minimum(rising, falling) / overlap).clamp(max=1).mul(pi / 2).sin().square()
        windows.append(window)
        total[start:stop] += window
    return [(window / total[start:][: len(window)]).float() for start, window in zip(starts, windows, strict=True)]


@dataclass(frozen=True)
class Tile:
    """Tile of a picture: its rows and columns."""

    rows: Span
    columns: Span


@dataclass(frozen=True)
class Grid:
    """Tiles of a picture, one for each of the spans of ``rows`` and each of ``columns``."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @cached_property
    def size(self) -> Size:
        """(height, width) of the picture."""
        return self.rows[-1].pixels.stop, self.columns[-1].pixels.stop

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)
