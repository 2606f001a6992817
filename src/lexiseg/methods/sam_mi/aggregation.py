"""SMAgg: SAM's masks of one class become one (SAM-MI, Sec. 3.3).

SAM cuts finer than a class. What the prompter takes for the classes, coarse as it is, says which masks belong together.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6


def matching_scores(masks: Tensor, text_masks: Tensor) -> Tensor:
    """Which share of each mask lies in each class, O [N, K] of Eq. (6).

    Args:
        masks: [N, h, w], binary or the share of each cell that is covered.
        text_masks: [K, h, w], binary.
    """
    area, classes = masks.flatten(1).float(), text_masks.flatten(1).float()
    return area @ classes.mT / (area.sum(1, keepdim=True) + EPSILON)  # Eq. (6)


def members(scores: Tensor, threshold: float) -> Tensor:
    """Which masks each aggregated mask is made of, [N_m, N] bool, N_m <= N + K.

    First the classes that a mask joins, ascending; then the masks that join none, as they are, in their order.

    Args:
        scores: O [N, K].
        threshold: alpha_sma; a mask may join several classes below 0.5, none of them at 1.
    """
    joined = (scores > threshold).mT  # Eq. (7), its condition
    alone = torch.eye(len(scores), dtype=torch.bool, device=scores.device)[~joined.any(0)]
    return torch.cat([joined[joined.any(1)], alone])


def aggregate(masks: Tensor, groups: Tensor) -> Tensor:
    """The unions of groups of masks, [N_m, H, W] bool.

    Args:
        masks: [N, H, W] bool.
        groups: [N_m, N] bool, of `members`.
    """
    counts = groups.float() @ masks.flatten(1).float()
    return (counts > 0).view(len(groups), *masks.shape[1:])  # Eq. (7), its union
