"""Two-dimensional sine position encodings (Vaswani et al., 2017), normalised as in DETR (Carion et al., 2020)."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from lexiseg.structures import Size

TEMPERATURE = 10_000.0
EPSILON = 1e-6


def sine_positions(size: Size, channels: int, *, like: Tensor) -> Tensor:
    """Sine position encoding of a grid, [1, C, h, w].

    Rows and columns are counted from 1 and divided by their number, so that the encoding of a position in the image hardly
    depends on the resolution. The first half of the channels encodes the row, the second the column; in each, sines and
    cosines of decreasing frequency alternate.

    Args:
        size: (h, w) cells.
        channels: C, divisible by 4.
        like: tensor whose device and dtype the result takes.
    """
    assert channels % 4 == 0, f"row and column need pairs of channels: {channels} is not divisible by 4"
    height, width = size
    rows = _axis(height, channels // 2, like.device)[:, :, None].expand(-1, -1, width)
    columns = _axis(width, channels // 2, like.device)[:, None, :].expand(-1, height, -1)
    return torch.cat([rows, columns])[None].to(like.dtype)


def _axis(length: int, channels: int, device: torch.device) -> Tensor:
    """The encoding of one coordinate, [channels, length]."""
    phases = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + EPSILON) * 2 * pi
    pair = torch.arange(channels // 2, dtype=torch.float32, device=device)
    angles = phases / TEMPERATURE ** (2 * pair / channels)[:, None]
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)
