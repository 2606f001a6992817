"""Where SAM should be asked, from ground truth: the targets of the sparse point prompter (SAM-MI, Eq. 3-5).

Two assumptions: points near the skeleton of a mask say most about it, and a larger mask may need more of them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from lexiseg.structures import MaskTarget

SIDE = 32  # d_h = d_w, of the grid of points


def target_probabilities(masks: Tensor, *, density: float = 5.0, limit: int = 10) -> Tensor:
    """The probability p of each point of the grid to be sampled, [d_h, d_w] in 0..1.

    Args:
        masks: [K, d_h, d_w] bool on the CPU, the classes' masks at the points of the grid; they do not overlap.
        density: g_p, points of the grid for one that is sampled.
        limit: m_p, points a mask can expect.
    """
    total = np.zeros(masks.shape[1:])
    for mask in masks.numpy():
        if mask.any():
            total += expected_points(mask, density, limit) * point_weights(mask)
    return torch.from_numpy(total.clip(0, 1)).float()


def expected_points(mask: NDArray[np.bool_], density: float, limit: int) -> int:
    """P_k, how many points a mask gets."""
    return min(math.ceil(mask.sum() / density), limit)  # Eq. (5)


def point_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of its points that each point of a mask gets; they sum to 1."""
    from skimage.morphology import skeletonize  # with the training's packages

    skeleton = skeletonize(mask)
    distance = distance_transform_edt(~skeleton) if skeleton.any() else np.zeros(mask.shape)
    sigma = distance[mask].max() / 3  # Eq. (4)
    near = np.exp(-(distance**2) / (2 * sigma**2)) if sigma > 0 else distance == 0
    weights = np.where(mask, near, 0.0)
    return weights / weights.sum()  # Eq. (3), but for P_k


def masks_on_grid(target: MaskTarget, side: int = SIDE) -> Tensor:
    """The masks of the classes in an image at the points of a grid, [K', side, side] bool on the CPU, ascending by class."""
    points = at_centres(target.masks.cpu(), side)
    labels = target.labels.cpu()
    return torch.stack([points[labels == label].any(0) for label in labels.unique()]) if len(labels) else points


def at_centres(masks: Tensor, side: int) -> Tensor:
    """Masks [N, H, W] at the centres of the cells of a grid, [N, side, side]."""
    rows, columns = ((((torch.arange(side) + 0.5) * length) / side).long() for length in masks.shape[-2:])
    return masks[:, rows][:, :, columns]
