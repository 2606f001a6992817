"""Points of masks: sampling against a bilinear surface written out, choice of the uncertain ones, the two losses."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from lexiseg.losses.masks import dice_loss, mask_cross_entropy, sample_points, uncertain_points


def surface(values: torch.Tensor, x: float, y: float) -> float:
    """The bilinear surface of one map at (x, y) in 0..1, zero beyond the cells' centres of an endless frame of zeros."""
    height, width = values.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += float(values[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def test_samples_are_those_of_the_bilinear_surface():
    maps, points = torch.randn(3, 4, 5), torch.rand(3, 20, 2) * 1.4 - 0.2
    found = sample_points(maps, points)
    expected = torch.tensor(
        [[surface(values, *xy) for xy in places.tolist()] for values, places in zip(maps, points, strict=True)]
    )
    assert_close(found, expected)
    assert_close(sample_points(maps, points[1])[2], sample_points(maps[2:], points[1:2])[0])


def test_the_uncertain_points_are_those_with_the_smallest_logits():
    masks, candidates = torch.randn(2, 6, 6), torch.rand(2, 30, 2)
    found = uncertain_points(masks, candidates, 7)
    sizes = sample_points(masks, candidates).abs()
    assert_close(sample_points(masks, found).abs(), sizes.sort(1).values[:, :7])
    assert uncertain_points(masks, candidates, 0).shape == (2, 0, 2)


def test_losses_of_perfect_wrong_and_empty_masks():
    target = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    logits = 60 * torch.tensor([[1.0, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, -1, -1]])
    assert_close(mask_cross_entropy(logits, target), torch.tensor([0.0, 60, 0]))
    assert_close(dice_loss(logits, target), torch.tensor([0.0, 1 - 1 / 5, 0]))
    assert_close(mask_cross_entropy(torch.zeros(1, 4), target[:1]), torch.tensor([math.log(2)]))
    assert_close(dice_loss(torch.zeros(1, 4), target[:1]), torch.tensor([1 - 3 / 5]))
