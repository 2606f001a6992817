"""Bipartite matching of queries and targets by the Hungarian algorithm (Carion et al., 2020, DETR).

Masks are compared on points, sampled once per image and shared by all its masks (Cheng et al., 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.losses.masks import sample_points
from lexiseg.ops.options import NonNegative, options
from lexiseg.structures import MaskPrediction, MaskTarget, Size

PointSource = Callable[[int, int, int], Tensor]  # (number of the image, N, P) -> points [N, P, 2], (x, y) in 0..1
PROHIBITIVE = 1e9  # replaces non-finite costs


@options(frozen=True)
class Costs:
    """Weights of the matching cost; the defaults are Mask2Former's."""

    classes: NonNegative = 2.0
    """Weight of the class probability."""
    mask: NonNegative = 5.0
    """Weight of the binary cross-entropy of the masks."""
    dice: NonNegative = 5.0
    """Weight of the dice loss of the masks."""


@dataclass(frozen=True)
class Match:
    """Matched pairs of one image: query ``queries[n]`` with target ``targets[n]``, both [M] int64, queries ascending."""

    queries: Tensor
    targets: Tensor


def uniform_points(device: torch.device) -> PointSource:
    """Uniformly random points from the default generator of ``device``."""
    return lambda _image, rows, count: torch.rand(rows, count, 2, device=device)


@torch.no_grad()
def match(
    prediction: MaskPrediction,
    targets: Sequence[MaskTarget],
    *,
    points: int = 12_544,
    costs: Costs = Costs(),
    draw: PointSource | None = None,
) -> list[Match]:
    """Match predictions and targets of each image at minimal cost; min(Q, N) pairs per image.

    Args:
        prediction: of B images; its ``auxiliary`` predictions are not used.
        targets: one per image, possibly empty.
        points: P, number of points on which masks are compared.
        costs: see `Costs`.
        draw: source of the points; called once per image with targets, with N = 1.
    """
    from scipy.optimize import linear_sum_assignment  # heavy, and only trainings match

    draw = draw or uniform_points(prediction.masks.device)
    matches = []
    for index, target in enumerate(targets):
        rows = prediction_rows(prediction, index)
        if len(target) == 0 or len(rows) == 0:
            matches.append(Match(rows[:0], rows[:0]))
            continue
        cost = matching_cost(
            prediction.masks[index, rows],
            prediction.classes[index, rows],
            target,
            draw(index, 1, points)[0],
            prediction.geometries[index].padded_size,
            costs,
        )
        queries, chosen = (torch.from_numpy(numbers).to(rows.device) for numbers in linear_sum_assignment(cost.cpu().numpy()))
        matches.append(Match(rows[queries], chosen))
    return matches


def matching_cost(
    masks: Tensor, classes: Tensor, target: MaskTarget, points: Tensor, padded_size: Size, costs: Costs = Costs()
) -> Tensor:
    """Cost of each pair: weighted sum of -probability of the target's class, mask cross-entropy and dice loss.

    Args:
        masks: logits [Q, h, w] over ``padded_size`` (height, width) pixels.
        classes: log-probabilities [Q, K + 1], or logits, which give the same.
        target: ground truth with N masks.
        points: [P, 2], see `lexiseg.losses.masks`.

    Returns:
        [Q, N], at least float32, always finite.
    """
    with torch.autocast(masks.device.type, enabled=False):
        logits = sample_points(in_full_precision(masks), points)
        truth = sample_target(target.masks.to(logits.dtype), points, padded_size)
        entropy = functional.softplus(logits).mean(1)[:, None] - logits @ truth.T / logits.shape[1]
        probability = logits.sigmoid()
        overlap = 2 * probability @ truth.T + 1
        dice = 1 - overlap / (probability.sum(1)[:, None] + truth.sum(1) + 1)
        named = -in_full_precision(classes).softmax(-1)[:, target.labels]
        cost = costs.classes * named + costs.mask * entropy + costs.dice * dice
    # A diverged model shall be reported by its loss, which is not finite either, not by a crash here.
    return cost.nan_to_num(PROHIBITIVE, PROHIBITIVE, PROHIBITIVE)


def sample_target(masks: Tensor, points: Tensor, padded_size: Size) -> Tensor:
    """Sample target masks [N, H, W] at points over ``padded_size`` (see `sample_points`); zero beyond H × W."""
    height, width = masks.shape[-2:]
    return sample_points(masks, points * points.new_tensor([padded_size[1] / width, padded_size[0] / height]))


def prediction_rows(prediction: MaskPrediction, index: int) -> Tensor:
    """Indices of the valid queries of image ``index``."""
    rows = torch.arange(prediction.masks.shape[1], device=prediction.masks.device)
    return rows if prediction.valid is None else rows[prediction.valid[index]]


def in_full_precision(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; other dtypes are kept."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
