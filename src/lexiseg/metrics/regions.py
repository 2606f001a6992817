"""Masks of all regions of a map at once, and the overlaps of masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from lexiseg.errors import DataError
from lexiseg.structures import Size

Counts = NDArray[np.int64]


def runs_of_regions(values: NDArray[np.integer[Any]]) -> dict[int, Counts]:
    """The mask of each value in a map [H, W], as runs (see `lexiseg.ops.rle`)."""
    column_by_column = values.T.ravel()
    starts = np.flatnonzero(np.diff(column_by_column, prepend=column_by_column[:1] - 1))
    ends = np.append(starts[1:], column_by_column.size)
    run_values = column_by_column[starts]
    order = np.argsort(run_values, kind="stable")
    different, first = np.unique(run_values[order], return_index=True)
    runs = {}
    for value, places in zip(different.tolist(), np.split(order, first[1:]), strict=True):
        borders = np.stack([starts[places], ends[places]], axis=1).ravel()
        rest = column_by_column.size - borders[-1:]
        runs[value] = np.concatenate([np.diff(borders, prepend=0), rest[rest > 0]])
    return runs


def common_runs(
    first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]], NDArray[np.int64]]:
    """Row by row, the runs of pixels in which neither of two maps [H, W] changes.

    Returns:
        the value in the first map, the value in the second, and the length of each run: a few thousand in place of all the
        pixels, which makes counting several times faster.
    """
    first, second = first.ravel(), second.ravel()
    changes = first[1:] != first[:-1]
    changes |= second[1:] != second[:-1]
    inner = np.flatnonzero(changes)
    borders = np.empty(len(inner) + 2, np.int64)
    borders[0], borders[-1] = 0, first.size
    np.add(inner, 1, out=borders[1:-1])
    starts = borders[:-1]
    return first.take(starts), second.take(starts), borders[1:] - starts


def compress_all(masks: Sequence[Counts]) -> list[bytes]:
    """COCO's strings (see `lexiseg.ops.rle.compress`) of many masks at once, ten times faster than one by one."""
    if not masks:
        return []
    lengths = np.array([len(runs) for runs in masks])
    first = np.cumsum(lengths) - lengths
    runs = np.concatenate(masks)
    if len(runs) and runs.max() <= np.iinfo(np.int32).max:
        runs = runs.astype(np.int32)  # half the memory to go through
    values = runs.copy()
    values[2:] -= runs[:-2]
    for place in range(3):  # the first three runs of a mask are stored as they are
        plain = (first + place)[lengths > place]
        values[plain] = runs[plain]
    magnitude = np.where(values < 0, ~values, values)
    digits = np.ones(len(values), np.uint8)
    for bits in range(4, int(magnitude.max()).bit_length() + 1, 5):  # four bits and a sign, then five a digit
        digits += magnitude >= 1 << bits
    ends = np.cumsum(digits, dtype=np.int64)
    places = ends - digits
    borders = [*places[first].tolist(), int(ends[-1])]
    text = np.empty(borders[-1], np.uint8)
    while len(values):
        more = digits > 1
        text[places] = (values & 31) + 32 * more.view(np.uint8) + 48
        values, places, digits = values[more] >> 5, places[more] + 1, digits[more] - np.uint8(1)
    return [text[begin:end].tobytes() for begin, end in pairwise(borders)]


def coco_masks(masks: Sequence[Counts], size: Size) -> list[dict[str, Any]]:
    """Masks as hotcoco takes them.

    Raises:
        DataError: if the runs of a mask do not make an image of that size.
    """
    lengths = [len(runs) for runs in masks]
    if masks:
        runs, pixels = np.concatenate([*masks, [0]]), size[0] * size[1]  # the last for a mask without runs at the end
        sums = np.add.reduceat(runs, np.cumsum([0, *lengths[:-1]]))
        if runs.min() < 0 or min(lengths) == 0 or (sums != pixels).any():
            raise DataError(f"a mask has runs that do not make an image of {size[0]} × {size[1]} pixels")
    shape = list(size)
    return [{"size": shape, "counts": text} for text in compress_all(masks)]


def overlaps(found: Sequence[Counts], truth: Sequence[Counts], size: Size) -> NDArray[np.float64]:
    """IoU [N, M] of N masks with M others, all of one size."""
    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    return coco_mask.iou(coco_masks(found, size), coco_masks(truth, size), [0] * len(truth))
