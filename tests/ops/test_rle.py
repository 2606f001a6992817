"""COCO run lengths against a pixel-by-pixel reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.ops.rle import area_of_counts, compress, decode_counts, decompress, encode_masks


def slow_counts(mask: Tensor) -> list[int]:
    counts, value, run = [], False, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                counts.append(run)
                value, run = not value, 0
            run += 1
    return [*counts, run]


def slow_compress(counts: list[int]) -> str:
    text = ""
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        while True:
            digit = rest % 32
            rest = (rest - digit) // 32
            done = rest == (-1 if digit >= 16 else 0)
            text += chr(48 + digit + (0 if done else 32))
            if done:
                break
    return text


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    high, wide = draw(shapes)
    bits = draw(st.lists(st.booleans(), min_size=high * wide, max_size=high * wide))
    return torch.tensor(bits).reshape(high, wide)


@settings(max_examples=150, deadline=None)
@given(masks())
def test_runs_equal_the_pixel_loop_and_decode_to_the_mask(mask: Tensor) -> None:
    counts = encode_masks(mask[None])[0]
    assert counts.tolist() == slow_counts(mask)
    assert torch.equal(decode_counts(counts, (mask.shape[0], mask.shape[1])), mask)
    assert area_of_counts(counts) == int(mask.sum())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=12))
def test_strings_equal_the_digit_loop_and_expand_to_the_runs(counts: list[int]) -> None:
    text = compress(counts)
    assert text == slow_compress(counts)
    assert decompress(text).tolist() == counts


def test_a_batch_is_its_masks_one_by_one() -> None:
    batch = torch.rand(7, 5, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    batch[2], batch[3] = False, True
    together = encode_masks(batch)
    assert [counts.tolist() for counts in together] == [slow_counts(mask) for mask in batch]
    assert together[2].tolist() == [30]
    assert together[3].tolist() == [0, 30]
    assert encode_masks(batch[:0]) == []


def test_known_strings() -> None:
    assert compress([5120]) == "PP5"  # recorded from pycocotools
    assert compress([0, 5120]) == "0PP5"
    assert compress([]) == ""
    assert decompress("").tolist() == []


def test_nonsense_is_an_error() -> None:
    with pytest.raises(UsageError, match="sum to 5, which is no mask of 2 × 3"):
        decode_counts([2, 3], (2, 3))
    with pytest.raises(UsageError, match="no mask"):
        decode_counts(np.array([-1, 7]), (2, 3))
    for text in ("\n", "é", "P"):  # below the alphabet, beyond it, a number that does not end
        with pytest.raises(UsageError, match="not a COCO run-length string"):
            decompress(text)
