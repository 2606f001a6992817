"""Batched k-means on subsets of the same points."""

from __future__ import annotations

import torch
from torch import Tensor


def clusters_of(points: Tensor, inside: Tensor, first: Tensor, count: int, *, iterations: int = 10) -> Tensor:
    """Cluster the points of each subset by Lloyd's algorithm, deterministically.

    The first centre is given, each further one starts at the point of the subset farthest from all previous ones. A subset
    with fewer than ``count`` distinct points has empty clusters.

    Args:
        points: [L, 2].
        inside: [N, L] bool, the subsets.
        first: [N], index of each subset's first centre.
        count: k.
        iterations: number of iterations, without early stopping.

    Returns:
        [N, k, L] bool, the disjoint clusters, whose union is ``inside``.
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
    """Assign points to the nearest of the centres [N, k, 2], ties to the first, [N, k, L] bool."""
    nearest = torch.cdist(centres, points.expand(len(inside), -1, -1)).argmin(1)
    indices = torch.arange(centres.shape[1], device=points.device)
    return (nearest.unsqueeze(1) == indices[:, None]) & inside.unsqueeze(1)
