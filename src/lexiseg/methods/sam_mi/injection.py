"""DMI, decoupled mask injection: SAM's masks modify the guides of cost aggregation (SAM-MI, Sec. 3.4).

    costs             mask contents, into the cost maps S themselves (`intra_costs`), a reading of "to inject M into S"
    low frequency     mask contents, into CLIP's coarse features, the appearance guide
    high frequency    mask boundaries, into CLIP's two shallow feature maps, the decoder guides

They process one image at a time, as images have different numbers of masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6


def mask_embeddings(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature inside each mask, [N, D], Eq. (8) (the paper's calligraphic M); zeros for an empty mask.

    Args:
        features: F [D, h, w].
        masks: [N, h, w], binary or the covered fraction of each cell, its weight in the mean.  # [decided]
    """
    weights = masks.flatten(1).to(features.dtype)
    return weights @ features.flatten(1).mT / weights.sum(1, keepdim=True).clamp(min=EPSILON)  # Eq. (8)


def intra_mask(features: Tensor, masks: Tensor, embeddings: Tensor) -> Tensor:
    """Add to each cell of a map [D, h, w] the embeddings [N, D] of the masks that contain it, F_intra of Eq. (9)."""
    return features + torch.einsum("nhw,nd->dhw", masks.to(features.dtype), embeddings)  # Eq. (9)


def intra_costs(costs: Tensor, masks: Tensor) -> Tensor:
    """Intra-mask context of cost maps S [K, h, w]: the mean of a cell's costs and of those of the masks that contain it.

    It is Eq. (8) and (9) for S in place of F, divided by the number of terms so that costs remain cosines.  # [decided]

    Args:
        costs: S [K, h, w].
        masks: [N, h, w], binary or the covered fraction of each cell.
    """
    terms = intra_mask(costs, masks, mask_embeddings(costs, masks))
    return terms / (1 + masks.to(costs.dtype).sum(0))


class LowFrequencyInjection(nn.Module):
    """Low-frequency injection: mask contextual representation F_mcr.

    Args:
        width: D.
        heads: heads of the inter-mask attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Inject masks [N, h, w] into features [D, h, w]; without masks the features are unchanged."""
        if len(masks) == 0:  # keeps the parameters in the graph, as DistributedDataParallel requires
            return features + 0.0 * torch.stack([weight.sum() for weight in self.parameters()]).sum()
        embeddings = mask_embeddings(features, masks)
        intra = intra_mask(features, masks, embeddings)
        query = intra.flatten(1).mT[None]
        inter, _ = self.attention(query, embeddings[None], embeddings[None], need_weights=False)  # Eq. (10)
        return intra + inter[0].mT.view_as(features)


class HighFrequencyInjection(nn.Module):
    """High-frequency injection into a shallow feature map.

    Args:
        width: G, channels of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width + 1, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.mlp = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Inject masks [N, s, s] bool into features F_h [G, s, s]."""
        fused = torch.cat([features, self.embedded(features, masks)])  # Eq. (11)
        details = self.depthwise(self.mlp(fused[None]))[0]
        return features + self.gamma[:, None, None] * details  # Eq. (12)

    def embedded(self, features: Tensor, masks: Tensor) -> Tensor:
        """Project any number of masks to one map [G, s, s], ``proj`` of Eq. (11).

        An MLP maps area and mean feature of each mask to two vectors; the first is added to all pixels of the mask, the
        second to the pixels of its border.  # [decided]
        """
        inside = masks.to(features.dtype)
        area = inside.flatten(1).mean(1, keepdim=True)
        of_inside, of_border = self.project(torch.cat([mask_embeddings(features, inside), area], dim=1)).chunk(2, dim=1)
        border = inside - eroded(inside)
        return torch.einsum("nhw,ng->ghw", inside, of_inside) + torch.einsum("nhw,ng->ghw", border, of_border)


def eroded(masks: Tensor) -> Tensor:
    """Erode binary masks [N, s, s] by one pixel (3 × 3); the edge of the map does not erode."""
    if len(masks) == 0:
        return masks
    return -functional.max_pool2d(-masks[:, None], 3, stride=1, padding=1)[:, 0]
