"""SMAgg, shallow mask aggregation: merge SAM's masks of one class (SAM-MI, Sec. 3.3).

SAM's masks are finer than classes. The coarse class masks of the prompter decide which of them are merged.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6


def matching_scores(masks: Tensor, text_masks: Tensor) -> Tensor:
    """Fraction of each mask inside each class mask, O [N, K] of Eq. (6).

    Args:
        masks: [N, h, w], binary or the covered fraction of each cell.
        text_masks: [K, h, w], binary.
    """
    area, classes = masks.flatten(1).float(), text_masks.flatten(1).float()
    return area @ classes.mT / (area.sum(1, keepdim=True) + EPSILON)  # Eq. (6)


def members(scores: Tensor, threshold: float) -> Tensor:
    """Group masks: members of each aggregated mask, [N_m, N] bool, N_m <= N + K.

    First one group per class with members, ascending; then masks that join no class, each a group of its own, in order.

    Args:
        scores: O [N, K].
        threshold: alpha_sma; below 0.5 a mask may join several classes, at 1 it joins none.
    """
    joined = (scores > threshold).mT  # Eq. (7), condition
    alone = torch.eye(len(scores), dtype=torch.bool, device=scores.device)[~joined.any(0)]
    return torch.cat([joined[joined.any(1)], alone])


def aggregate(masks: Tensor, groups: Tensor) -> Tensor:
    """Union of the masks of each group, [N_m, H, W] bool.

    Args:
        masks: [N, H, W] bool.
        groups: [N_m, N] bool, see `members`.
    """
    counts = groups.float() @ masks.flatten(1).float()
    return (counts > 0).view(len(groups), *masks.shape[1:])  # Eq. (7), union
