"""Losses of masks on points: sampling, cross-entropy and dice (Cheng et al., 2022, Masked-attention Mask Transformer).

Points are (x, y) in 0..1 over the area that a grid covers; three in four lie where the mask is least sure of itself
(Kirillov et al., 2020, PointRend).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps [N, h, w] at points [N, P, 2], or [P, 2] for all maps alike: [N, P].

    Corners are not aligned; beyond the maps all is zero, so a sample within half a cell of an edge fades.
    """
    places = 2 * points.to(maps.dtype) - 1
    shared = points.ndim == 2
    batch, grid = (maps[None], places[None, None]) if shared else (maps[:, None], places[:, None])
    samples = functional.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples[0, :, 0] if shared else samples[:, 0, 0]


def uncertain_points(masks: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Of candidates [N, P, 2] the ``count`` where mask logits [N, h, w] are nearest to zero, nearest first: [N, count, 2]."""
    with torch.no_grad():
        chosen = sample_points(masks, candidates).abs().topk(count, dim=1, largest=False).indices
    return candidates.gather(1, chosen[..., None].expand(-1, -1, 2))


def mask_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits [N, P] against targets [N, P] in 0..1, mean over the points: [N]."""
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 Σ m t + 1) / (Σ m + Σ t + 1) of the probabilities m of logits [N, P] and targets t [N, P] in 0..1: [N].

    The ones make the loss of an empty mask of an empty target zero.
    """
    probability = logits.sigmoid()
    return 1 - (2 * (probability * targets).sum(1) + 1) / (probability.sum(1) + targets.sum(1) + 1)
