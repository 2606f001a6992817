"""Mask losses on sampled points: cross-entropy and dice (Cheng et al., 2022, Masked-attention Mask Transformer).

Points are (x, y) in 0..1 over the area of the grid; most of them are sampled where the mask is least certain (Kirillov et
al., 2020, PointRend).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples [N, P] of maps [N, h, w] at points [N, P, 2], or at points [P, 2] shared by all maps.

    Corners are not aligned; padding is zero, so samples within half a cell of an edge fade.
    """
    coordinates = 2 * points.to(maps.dtype) - 1
    shared = points.ndim == 2
    batch, grid = (maps[None], coordinates[None, None]) if shared else (maps[:, None], coordinates[:, None])
    samples = functional.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples[0, :, 0] if shared else samples[:, 0, 0]


def uncertain_points(masks: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Select [N, count, 2] of the candidates [N, P, 2], those where mask logits [N, h, w] are nearest to zero, in order."""
    with torch.no_grad():
        chosen = sample_points(masks, candidates).abs().topk(count, dim=1, largest=False).indices
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))


def mask_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy [N] of logits [N, P] and targets [N, P] in 0..1, the mean over points."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss [N], 1 - (2 Σ m t + 1) / (Σ m + Σ t + 1), of logits [N, P] with probabilities m and targets t [N, P] in 0..1.

    The constants 1 make the loss of an empty mask for an empty target zero.
    """
    probability = logits.sigmoid()
    return 1 - (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + targets.sum(1) + 1)
