"""DMI: masks guide the aggregation of costs instead of being given labels (SAM-MI, Sec. 3.4).

    low frequency     what a mask covers has one meaning: CLIP's coarse map, from which the appearance guidance is made
    high frequency    where a mask ends an object ends: CLIP's two shallow maps, which guide the decoder

Each takes one image at a time, for images differ in their number of masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6


def mask_embeddings(features: Tensor, masks: Tensor) -> Tensor:
    """The mean of a map under each mask, the paper's M calligraphic [N, D] of Eq. (8); zeros under an empty one.

    Args:
        features: F [D, h, w].
        masks: [N, h, w], binary or the share of each cell that is covered, by which cells are weighted then.  # [decided]
    """
    weights = masks.flatten(1).to(features.dtype)
    return weights @ features.flatten(1).mT / weights.sum(1, keepdim=True).clamp(min=EPSILON)  # Eq. (8)


def intra_mask(features: Tensor, masks: Tensor, embeddings: Tensor) -> Tensor:
    """A map [D, h, w] to which in every cell the embeddings [N, D] of the masks that contain it are added, F_intra."""
    return features + torch.einsum("nhw,nd->dhw", masks.to(features.dtype), embeddings)  # Eq. (9)


class LowFrequencyInjection(nn.Module):
    """F_mcr, the mask contextual representation.

    Args:
        width: D.
        heads: of the attention between masks.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features [D, h, w] and masks [N, h, w] -> [D, h, w]; without masks the features as they are."""
        if len(masks) == 0:  # in the graph all the same: processes wait for a gradient of every weight they share
            return features + 0.0 * torch.stack([weight.sum() for weight in self.parameters()]).sum()
        embeddings = mask_embeddings(features, masks)
        intra = intra_mask(features, masks, embeddings)
        query = intra.flatten(1).mT[None]
        inter, _ = self.attention(query, embeddings[None], embeddings[None], need_weights=False)  # Eq. (10)
        return intra + inter[0].mT.view_as(features)


class HighFrequencyInjection(nn.Module):
    """Details of masks in a shallow map.

    Args:
        width: G, of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width + 1, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.mlp = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features F_h [G, s, s] and masks [N, s, s] bool -> F_h."""
        seen = torch.cat([features, self.embedded(features, masks)])  # Eq. (11)
        found = self.depthwise(self.mlp(seen[None]))[0]
        return features + self.gamma[:, None, None] * found  # Eq. (12)

    def embedded(self, features: Tensor, masks: Tensor) -> Tensor:
        """``proj`` of Eq. (11): any number of masks as one map [G, s, s].

        An MLP makes two vectors of each mask, of its area and of the features' mean under it; in each pixel the first
        ones of all masks that contain it are added, and the second ones of those whose border it is.  # [decided]
        """
        inside = masks.to(features.dtype)
        area = inside.flatten(1).mean(1, keepdim=True)
        of_inside, of_border = self.project(torch.cat([mask_embeddings(features, inside), area], dim=1)).chunk(2, dim=1)
        border = inside - eroded(inside)
        return torch.einsum("nhw,ng->ghw", inside, of_inside) + torch.einsum("nhw,ng->ghw", border, of_border)


def eroded(masks: Tensor) -> Tensor:
    """Binary masks [N, s, s] without pixels one of whose eight neighbours is not theirs; the edge of the map is no border."""
    if len(masks) == 0:
        return masks
    return -functional.max_pool2d(-masks[:, None], 3, stride=1, padding=1)[:, 0]
