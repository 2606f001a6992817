"""Masks of large pictures in little memory: pieces in their smallest boxes, one bit a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lexiseg.ops.outlines import bounds
from lexiseg.structures import Size


@dataclass(frozen=True)
class PackedMask:
    """Non-empty part of a mask.

    Attributes:
        rows, columns: its smallest box in the picture.
        area: its pixels.
        bits: the pixels of the box, row by row, eight a byte.
    """

    rows: slice
    columns: slice
    area: int
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], top: int = 0, left: int = 0) -> Self | None:
        """Pack a mask [h, w] whose first pixel is at ``top``, ``left`` of the picture; None if it is empty."""
        rows, columns = bounds(mask)
        inside = mask[rows, columns]
        if not inside.size:
            return None
        area = int(np.count_nonzero(inside))
        return cls(_moved(rows, top), _moved(columns, left), area, np.packbits(inside))

    def unpacked(self) -> NDArray[np.bool_]:
        """The pixels of the box, [h, w] bool."""
        high, wide = self.rows.stop - self.rows.start, self.columns.stop - self.columns.start
        return np.unpackbits(self.bits, count=high * wide).reshape(high, wide).view(np.bool_)

    def within(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """The mask in a window of the picture, [rows, columns] bool."""
        window = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
        both = common(self.rows, rows), common(self.columns, columns)
        if both[0] is not None and both[1] is not None:
            inside = self.unpacked()[_moved(both[0], -self.rows.start), _moved(both[1], -self.columns.start)]
            window[_moved(both[0], -rows.start), _moved(both[1], -columns.start)] = inside
        return window

    def overlap(self, other: PackedMask) -> int:
        """Number of pixels that are in both masks."""
        rows, columns = common(self.rows, other.rows), common(self.columns, other.columns)
        if rows is None or columns is None:
            return 0
        return int(np.count_nonzero(self.within(rows, columns) & other.within(rows, columns)))


def common(first: slice, second: slice) -> slice | None:
    """The rows (or columns) that two slices have in common; None if there are none."""
    start, stop = max(first.start, second.start), min(first.stop, second.stop)
    return slice(start, stop) if start < stop else None


def _moved(lines: slice, by: int) -> slice:
    return slice(lines.start + by, lines.stop + by)


class PackedMasks(Sequence[NDArray[np.bool_]]):
    """N masks [H, W] bool, unpacked one at a time when they are read; NumPy takes it as an array [N, H, W].

    Args:
        size: (height, width) of the picture.
        pieces: of each mask its parts, which do not overlap.
    """

    def __init__(self, size: Size, pieces: Sequence[Sequence[PackedMask]]) -> None:
        self.size, self.pieces = size, pieces

    @property
    def shape(self) -> tuple[int, int, int]:
        """N, H and W."""
        return (len(self.pieces), *self.size)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: Any) -> Any:
        """The mask of a number, [H, W]."""
        mask = np.zeros(self.size, np.bool_)
        for piece in self.pieces[index]:
            mask[piece.rows, piece.columns] |= piece.unpacked()
        return mask

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        masks = np.zeros(self.shape, np.bool_)
        for number, mask in enumerate(self):
            masks[number] = mask
        return masks if dtype is None else masks.astype(dtype)


Masks = NDArray[np.bool_] | PackedMasks


def painted(size: Size, masks: Masks, numbers: Sequence[int]) -> NDArray[np.int32]:
    """Map [H, W] with the number of the mask at each pixel, 0 where there is none; the first of overlapping masks is on top.

    Args:
        size: (height, width) of the map.
        masks: N masks [H, W].
        numbers: of the N masks.
    """
    ids = np.zeros(size, np.int32)
    for index in range(len(numbers) - 1, -1, -1):
        if isinstance(masks, PackedMasks):
            for piece in masks.pieces[index]:
                ids[piece.rows, piece.columns][piece.unpacked()] = numbers[index]
        else:
            ids[masks[index]] = numbers[index]
    return ids
