"""Panoptic and instance results of SAM-MI from SAM's masks, the paper's future work (Sec. 5).  # [decided]

SAM's masks separate instances, the pixels' class probabilities name them:

    p(k | q) = mean of p(k | pixel) over mask q   Eq. (8) for probabilities in place of F
    score    = pred_iou_q p(k | q)                of overlapping masks the best score wins, as in SAM + CLIP
    cells that no mask covers                     one mask for each of their classes, as in CAT-Seg, if it is not a sliver
"""

from __future__ import annotations

import torch
from torch import Tensor

from lexiseg.methods.sam_mi.injection import mask_embeddings
from lexiseg.structures import OUTSIDE, Geometry, MaskPrediction

INSIDE = 20.0  # logit inside the masks of cells that no mask of SAM covers
SLIVER = 0.02  # fraction of the image below which cells of a class that no mask covers remain void  # [decided]
LEAST = 1e-6  # minimum of probabilities and predicted IoU, so that their logarithms are finite


def classified_masks(logits: Tensor, pred_iou: Tensor, cells: Tensor, geometry: Geometry) -> MaskPrediction:
    """Name the masks of an image by the class probabilities of its cells.

    Args:
        logits: N masks of SAM, [N, m, m].
        pred_iou: their predicted IoU [N].
        cells: class probabilities on their grid, [K, m, m]; 0 outside the image.
        geometry: of the grid.
    """
    inside = (cells > 0).any(0)
    uncovered = inside & ~(logits > 0).any(0)
    labels = cells.argmax(0)
    rest, areas = labels[uncovered].unique(return_counts=True)
    rest = rest[areas >= SLIVER * inside.sum()]
    remaining = torch.where((labels == rest[:, None, None]) & uncovered, INSIDE, OUTSIDE).to(logits.dtype)
    masks = torch.cat([logits, remaining])
    scores = mask_embeddings(cells, masks > 0).clamp(min=LEAST).log()
    quality = torch.cat([pred_iou.clamp(LEAST, 1), pred_iou.new_ones(len(rest))]).log()
    return MaskPrediction(masks[None], (scores + quality[:, None])[None], False, (geometry,))
