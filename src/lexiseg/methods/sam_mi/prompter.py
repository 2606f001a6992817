"""TSPP, text-guided sparse point prompter: point prompts for SAM, predicted from the cost volume (SAM-MI, Sec. 3.2).

S      cost volume, detached
S_en   S embedded, with an MLP and attention over space and over classes
p      probability of each grid point to be a prompt, from all classes
M^text class mask of each class, by which SAM's masks are aggregated (`aggregation.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.cost_aggregation import linear_attention
from lexiseg.methods.sam_mi.targets import SIDE, at_centres, masks_on_grid, target_probabilities
from lexiseg.ops.points import unit_grid
from lexiseg.structures import MaskTarget

UNLABELLED = -100  # ignore index of unlabelled cells


@dataclass(frozen=True)
class Prompts:
    """Output of the prompter for B images.

    Attributes:
        points: logits [B, d_h, d_w] of the grid points.
        classes: class logits [B, K, h, w] of the cells.
    """

    points: Tensor
    classes: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Probabilities p of the grid points, [B, d_h, d_w]."""
        return self.points.sigmoid()

    @property
    def text_masks(self) -> Tensor:
        """One-hot masks of the best class of each cell, M^text [B, K, h, w] bool."""
        best = self.classes.argmax(1, keepdim=True)
        return torch.zeros_like(self.classes, dtype=torch.bool).scatter(1, best, value=True)


class ContextAttention(nn.Module):
    """Linear attention and an MLP, pre-norm with residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend within each sequence of tokens [N, L, C]."""
        normed = self.attention_norm(tokens)
        projections = (self.query, self.key, self.value)
        parts = [project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in projections]
        tokens = tokens + linear_attention(parts[0], parts[1], parts[2]).transpose(1, 2).flatten(2)
        output: Tensor = tokens + self.mlp(self.norm(tokens))
        return output


class SparsePrompter(nn.Module):
    """Text-guided sparse point prompter.

    Args:
        width: C, channels of the embedded costs.
        heads: attention heads.
        side: side of the point grid, d_h = d_w.
        at_once: classes per chunk in attention over space, and rows of cells per chunk over classes; None: all.
    """

    def __init__(self, width: int = 128, *, heads: int = 4, side: int = SIDE, at_once: int | None = None) -> None:
        super().__init__()
        self.side, self.at_once = side, at_once
        self.embedding = nn.Conv2d(1, width, 7, padding=3)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.space, self.classes = ContextAttention(width, heads), ContextAttention(width, heads)
        self.point_head, self.class_head = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, costs: Tensor) -> Prompts:
        """Predict prompts from costs S [B, K, h, w], which are detached."""
        outputs = [self._of_image(image_costs) for image_costs in costs.detach()]
        points, classes = (torch.stack(each) for each in zip(*outputs, strict=True))
        return Prompts(points, classes)

    def _of_image(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        size = costs.shape[-2:]
        tokens = torch.cat([self._over_space(some) for some in costs.split(self.at_once or len(costs))])  # [K, h · w, C]
        rows = tokens.transpose(0, 1).split((self.at_once or size[0]) * size[1])
        enriched = torch.cat([self.classes(some) for some in rows])  # S_en [h · w, K, C]
        points = self.point_head(enriched)[..., 0].amax(1).unflatten(0, size)  # maximum over classes  # [decided]
        points = functional.interpolate(points[None, None], (self.side, self.side), mode="bilinear", align_corners=False)
        return points[0, 0], self.class_head(enriched)[..., 0].mT.unflatten(1, size)

    def _over_space(self, costs: Tensor) -> Tensor:
        tokens = self.embedding(costs[:, None]).flatten(2).mT
        attended: Tensor = self.space(tokens + self.mlp(tokens))
        return attended


# --- sampling -------------------------------------------------------------------------------------------------------


def sampled_points(probabilities: Tensor, numbers: Tensor, how: Literal["chance", "top"] = "chance") -> Tensor:
    """Sample point prompts, [P, 2] double on the CPU, (x, y) in 0..1 of the image; at least one.

    Args:
        probabilities: p [d_h, d_w].
        numbers: uniform random numbers [d_h · d_w] in 0..1.
        how: "chance" takes the points whose random number is below their probability; "top" takes the most probable points,
            as many as expected.
    """
    flat = probabilities.detach().flatten().cpu().double()
    if how == "chance":
        chosen = numbers.cpu() < flat
    else:
        count = max(1, round(float(flat.sum())))  # Eq. (2)
        likeliest = flat.argsort(descending=True, stable=True)[:count]
        chosen = torch.zeros(len(flat), dtype=torch.bool).index_fill(0, likeliest, value=True)
    if not chosen.any():
        chosen[flat.argmax()] = True
    return unit_grid(probabilities.shape[-1])[chosen]


# --- loss -----------------------------------------------------------------------------------------------------------


def prompter_losses(
    prompts: Prompts, targets: Sequence[MaskTarget], *, density: float, limit: int, mse: float
) -> dict[str, Tensor]:
    """Compute the two weighted terms of L_tspp; their sum is minimised.

    Args:
        prompts: of B images.
        targets: one per image.
        density, limit: g_p and m_p, see `target_probabilities`.
        mse: lambda_mse.

    Returns:
        ``prompter_classes``, the cross-entropy of cells with a labelled centre, and ``prompter_points``. Both are means over
        all cells or points, so that the mean over processes equals the loss of all their images.
    """
    points, classes = prompts.points, prompts.classes
    grids = [masks_on_grid(target, points.shape[-1]) for target in targets]
    wanted = torch.stack([target_probabilities(grid, density=density, limit=limit) for grid in grids]).to(points)
    difference = functional.mse_loss(prompts.probabilities, wanted)
    labels = torch.stack([cell_labels(target, classes.shape[-2]) for target in targets]).to(classes.device)
    entropies = functional.cross_entropy(classes, labels, ignore_index=UNLABELLED, reduction="none")
    return {"prompter_classes": entropies.mean(), "prompter_points": mse * difference}


def cell_labels(target: MaskTarget, side: int) -> Tensor:
    """Class at the centre of each cell, [side, side]; `UNLABELLED` if there is none."""
    labels = torch.full((side, side), UNLABELLED, device=target.masks.device)
    for label, mask in zip(target.labels, at_centres(target.masks, side), strict=True):
        labels[mask] = label
    return labels
