"""COCO's run-length encoding of masks: column by column, the first run counts zeros.

``counts`` are the runs as integers ("uncompressed"); COCO files also hold them as a string, in which each run from the
fourth on is stored as the difference to the run two before, in base 32 with a sign, one printable character a digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.ops.memory import masks_at_once
from lexiseg.structures import Size

Counts = NDArray[np.int64]

_DIGIT_BITS, _SIGN, _MORE, _FIRST_CHARACTER = 5, 0x10, 0x20, 48
_DIGITS = 10  # of one run at most: 50 bits


def encode_masks(masks: Tensor) -> list[Counts]:
    """Encode binary masks [N, H, W] as N arrays of runs; those of a mask sum to H · W, the first one, of zeros, may be 0."""
    number, high, wide = masks.shape
    if number == 0:
        return []
    if number > (some := masks_at_once((high, wide))):
        return [counts for part in masks.split(some) for counts in encode_masks(part)]
    pixels = masks.to(device="cpu", dtype=torch.bool).transpose(1, 2).reshape(number, high * wide).numpy()
    total = high * wide
    starts = np.zeros((number, total + 1), bool)  # a run starts where a pixel differs from the previous one
    starts[:, 0] = pixels[:, 0]
    np.not_equal(pixels[:, 1:], pixels[:, :-1], out=starts[:, 1:total])
    starts[:, total] = True
    mask, position = np.nonzero(starts)
    ends = np.searchsorted(mask, np.arange(number + 1))
    return [np.diff(position[first:last], prepend=0).astype(np.int64) for first, last in pairwise(ends)]


def encode_mask(mask: NDArray[np.bool_]) -> Counts:
    """Encode a mask [H, W] as `encode_masks` does, from the columns that are not empty alone."""
    (high, wide), columns = mask.shape, np.flatnonzero(mask.any(0))
    if not len(columns):
        return np.array([high * wide], np.int64)
    left, right = int(columns[0]), int(columns[-1]) + 1
    (counts,) = encode_masks(torch.from_numpy(mask[None, :, left:right]))
    counts[0] += left * high
    empty = (wide - right) * high
    if len(counts) % 2:  # the last run is of zeros
        counts[-1] += empty
    return np.append(counts, empty) if empty and len(counts) % 2 == 0 else counts


def check_counts(counts: Sequence[int] | Counts, size: Size) -> Counts:
    """Validate the runs of a mask of this size.

    Raises:
        UsageError: the runs do not sum to H · W, or one is negative.
    """
    runs, (high, wide) = np.asarray(counts, np.int64), size
    # No run may be longer than the mask: sums of longer ones could overflow 64 bits to the right number.
    if runs.size and not 0 <= runs.min() <= runs.max() <= high * wide:
        wrong = runs.min() if runs.min() < 0 else runs.max()
        raise UsageError(f"a run length is {wrong}, which no mask of {high} × {wide} pixels has")
    if int(runs.sum()) != high * wide:
        raise UsageError(f"run lengths sum to {int(runs.sum())}, which is no mask of {high} × {wide} pixels")
    return runs


def decode_counts(counts: Sequence[int] | Counts, size: Size) -> Tensor:
    """Decode runs as a binary mask [H, W].

    Raises:
        UsageError: as `check_counts`.
    """
    runs, (high, wide) = check_counts(counts, size), size
    values = np.arange(len(runs)) % 2 == 1
    return torch.from_numpy(np.repeat(values, runs).reshape(wide, high).T.copy())


def area_of_counts(counts: Sequence[int] | Counts) -> int:
    """Return the area of a mask in pixels."""
    return int(np.asarray(counts, np.int64)[1::2].sum())


def compress(counts: Sequence[int] | Counts) -> str:
    """Encode runs as COCO's string."""
    differences = np.array(counts, np.int64)
    differences[3:] -= np.asarray(counts, np.int64)[1:-2]
    characters, valid = [], []
    rest, more = differences, np.ones(len(differences), bool)
    while more.any():
        digit, rest = rest & (_SIGN | (_SIGN - 1)), rest >> _DIGIT_BITS
        valid.append(more)
        more = more & np.where(digit & _SIGN, rest != -1, rest != 0)
        characters.append(digit + np.where(more, _MORE, 0) + _FIRST_CHARACTER)
    if not characters:
        return ""
    return bytes(np.stack(characters, axis=1)[np.stack(valid, axis=1)].astype(np.uint8)).decode("ascii")


def decompress(text: str) -> Counts:
    """Decode COCO's string to runs.

    Raises:
        UsageError: not a valid string.
    """
    digits = np.array([ord(character) for character in text], np.int64) - _FIRST_CHARACTER
    last = (digits & _MORE) == 0
    if (digits < 0).any() or (digits >= 2 * _MORE).any() or (len(digits) and not last[-1]):
        raise UsageError(f"not a COCO run-length string: {text[:40]!r}")
    if len(digits) == 0:
        return digits
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _DIGITS:
        raise UsageError(f"a COCO run-length string with a run of more than {_DIGITS} digits: {text[:40]!r}")
    exponent = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((digits & (_MORE - 1)) << (_DIGIT_BITS * exponent), starts)
    negative = (digits[ends] & _SIGN) != 0
    values -= np.where(negative, np.int64(1) << (_DIGIT_BITS * (exponent[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
