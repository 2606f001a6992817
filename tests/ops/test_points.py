"""Unit points."""

from __future__ import annotations

import pytest
import torch

from lexiseg.errors import UsageError
from lexiseg.ops.points import unit_grid, unit_random


def test_grid_is_the_cell_centres_row_by_row() -> None:
    assert unit_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert unit_grid(1).tolist() == [[0.5, 0.5]]


def test_random_points_are_a_function_of_the_seed() -> None:
    first = unit_random(500, seed=3)
    assert first.shape == (500, 2)
    assert bool(((first >= 0) & (first < 1)).all())
    assert torch.equal(first, unit_random(500, seed=3))
    assert not torch.equal(first, unit_random(500, seed=4))
    assert torch.allclose(first.mean(dim=0), torch.full((2,), 0.5, dtype=torch.float64), atol=0.05)


def test_no_points_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least one point a side, not 0"):
        unit_grid(0)
    with pytest.raises(UsageError, match="not -1"):
        unit_random(-1, seed=0)
