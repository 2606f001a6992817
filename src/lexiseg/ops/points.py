"""Point prompts in the unit square, before they are scaled to an image."""

from __future__ import annotations

import torch
from torch import Tensor

from lexiseg.errors import UsageError


def unit_grid(side: int) -> Tensor:
    """Return the centres of ``side`` × ``side`` equal cells, [side², 2] double, (x, y) in 0..1, row by row.

    Raises:
        UsageError: ``side`` is not positive.
    """
    if side < 1:
        raise UsageError(f"a grid of points needs at least one point a side, not {side}")
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def unit_random(count: int, seed: int) -> Tensor:
    """Draw ``count`` uniform points, [count, 2] double, (x, y) in 0..1; determined by the seed.

    Raises:
        UsageError: ``count`` is not positive.
    """
    if count < 1:
        raise UsageError(f"random prompts need at least one point, not {count}")
    return torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
