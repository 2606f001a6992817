"""k-means of many subsets of the same points at once."""

from __future__ import annotations

import torch
from torch import Tensor


def clusters_of(points: Tensor, inside: Tensor, first: Tensor, count: int, *, iterations: int = 10) -> Tensor:
    """Which cluster each point of each subset belongs to (Lloyd's algorithm; nothing is drawn at random).

    The first centre is given, each further one starts at the point of the subset farthest from all before. A subset of fewer
    than ``count`` different points leaves clusters empty.

    Args:
        points: [L, 2].
        inside: [N, L] bool, the subsets.
        first: [N], the point of each subset where its first cluster starts.
        count: k.
        iterations: as many, always.

    Returns:
        [N, k, L] bool, disjoint; together they are ``inside``.
    """
    centres = points[first].unsqueeze(1)  # [N, 1.., 2]
    for _ in range(1, count):
        nearest = torch.cdist(points.expand(len(inside), -1, -1), centres).amin(-1)
        farthest = nearest.masked_fill(~inside, -1).argmax(-1)
        centres = torch.cat([centres, points[farthest].unsqueeze(1)], dim=1)
    members = _members(points, inside, centres)
    for _ in range(iterations):
        weights = members.to(points.dtype)
        size = weights.sum(-1, keepdim=True)
        centres = torch.where(size > 0, weights @ points / size.clamp(min=1), centres)
        members = _members(points, inside, centres)
    return members


def _members(points: Tensor, inside: Tensor, centres: Tensor) -> Tensor:
    """The points nearest to each centre [N, k, 2], [N, k, L] bool; of two as near the first."""
    nearest = torch.cdist(centres, points.expand(len(inside), -1, -1)).argmin(1)
    numbers = torch.arange(centres.shape[1], device=points.device)
    return (nearest.unsqueeze(1) == numbers[:, None]) & inside.unsqueeze(1)
