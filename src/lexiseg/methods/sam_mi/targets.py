"""Targets of the sparse point prompter from ground-truth masks (SAM-MI, Eq. 3-5).

Two assumptions: points near the skeleton of a mask are the best prompts, and larger masks need more points.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from lexiseg.structures import MaskTarget

SIDE = 32  # side of the point grid, d_h = d_w


def target_probabilities(masks: Tensor, *, density: float = 5.0, limit: int = 10) -> Tensor:
    """Target probability p of each grid point, [d_h, d_w] in 0..1.

    Args:
        masks: non-overlapping class masks at the grid points, [K, d_h, d_w] bool on the CPU.
        density: g_p, grid points per expected prompt.
        limit: m_p, maximum number of expected prompts per mask.
    """
    total = np.zeros(masks.shape[1:])
    for mask in masks.numpy():
        if mask.any():
            total += expected_points(mask, density, limit) * point_weights(mask)
    return torch.from_numpy(total.clip(0, 1)).float()


def expected_points(mask: NDArray[np.bool_], density: float, limit: int) -> int:
    """Expected number of prompts of a mask, P_k."""
    return min(math.ceil(mask.sum() / density), limit)  # Eq. (5)


def point_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weight of each point of a mask; the weights sum to 1."""
    from skimage.morphology import skeletonize  # optional dependency of the extra [train]

    skeleton = skeletonize(mask)
    distance = distance_transform_edt(~skeleton) if skeleton.any() else np.zeros(mask.shape)
    sigma = distance[mask].max() / 3  # Eq. (4)
    near = np.exp(-(distance**2) / (2 * sigma**2)) if sigma > 0 else distance == 0
    weights = np.where(mask, near, 0.0)
    return weights / weights.sum()  # Eq. (3) without P_k


def masks_on_grid(target: MaskTarget, side: int = SIDE) -> Tensor:
    """Class masks of an image at the grid points, [K', side, side] bool on the CPU, ascending by class."""
    points = at_centres(target.masks.cpu(), side)
    labels = target.labels.cpu()
    return torch.stack([points[labels == label].any(0) for label in labels.unique()]) if len(labels) else points


def at_centres(masks: Tensor, side: int) -> Tensor:
    """Sample masks [N, H, W] at the cell centres of a grid, [N, side, side]."""
    rows, columns = ((((torch.arange(side) + 0.5) * length) / side).long() for length in masks.shape[-2:])
    return masks[:, rows][:, :, columns]
