"""TSPP: where to ask SAM, learnt from the costs between image and text (SAM-MI, Sec. 3.2).

S      costs of cells and classes, cut off from CLIP's gradients
S_en   the same, embedded, with an MLP and with attention over space and over classes
p      the probability of each point of a grid to be asked, from all classes together
M^text which class each cell is of, by which SAM's masks are put together (`aggregation.py`)
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

UNLABELLED = -100  # of cells; cross-entropy passes them over


@dataclass(frozen=True)
class Prompts:
    """What the prompter makes of the costs of B images.

    Attributes:
        points: [B, d_h, d_w] logits, of each point of the grid to be asked.
        classes: [B, K, h, w] logits, of each cell to be of a class.
    """

    points: Tensor
    classes: Tensor

    @property
    def probabilities(self) -> Tensor:
        """p [B, d_h, d_w]."""
        return self.points.sigmoid()

    @property
    def text_masks(self) -> Tensor:
        """M^text [B, K, h, w] bool: of each cell its likeliest class."""
        best = self.classes.argmax(1, keepdim=True)
        return torch.zeros_like(self.classes, dtype=torch.bool).scatter(1, best, value=True)


class ContextAttention(nn.Module):
    """Attention whose cost grows with the number of tokens, and an MLP, each behind a norm and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [N, L, C], each row by itself -> [N, L, C]."""
        seen = self.attention_norm(tokens)
        parts = [each(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        tokens = tokens + linear_attention(parts[0], parts[1], parts[2]).transpose(1, 2).flatten(2)
        output: Tensor = tokens + self.mlp(self.norm(tokens))
        return output


class SparsePrompter(nn.Module):
    """The text-guided sparse point prompter.

    Args:
        width: C, of the embedded costs.
        heads: of its attention.
        side: of the grid of points, d_h = d_w.
        at_once: classes in attention over space, and rows of cells over classes; None takes all at once.
    """

    def __init__(self, width: int = 128, *, heads: int = 4, side: int = SIDE, at_once: int | None = None) -> None:
        super().__init__()
        self.side, self.at_once = side, at_once
        self.embedding = nn.Conv2d(1, width, 7, padding=3)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.space, self.classes = ContextAttention(width, heads), ContextAttention(width, heads)
        self.point_head, self.class_head = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, costs: Tensor) -> Prompts:
        """Of costs S [B, K, h, w]; no gradient reaches them."""
        found = [self._of_one(one) for one in costs.detach()]
        points, classes = (torch.stack(each) for each in zip(*found, strict=True))
        return Prompts(points, classes)

    def _of_one(self, costs: Tensor) -> tuple[Tensor, Tensor]:
        size = costs.shape[-2:]
        tokens = torch.cat([self._over_space(some) for some in costs.split(self.at_once or len(costs))])  # [K, h · w, C]
        rows = tokens.transpose(0, 1).split((self.at_once or size[0]) * size[1])
        enriched = torch.cat([self.classes(some) for some in rows])  # S_en [h · w, K, C]
        points = self.point_head(enriched)[..., 0].amax(1).unflatten(0, size)  # over the classes  # [decided]
        points = functional.interpolate(points[None, None], (self.side, self.side), mode="bilinear", align_corners=False)
        return points[0, 0], self.class_head(enriched)[..., 0].mT.unflatten(1, size)

    def _over_space(self, costs: Tensor) -> Tensor:
        tokens = self.embedding(costs[:, None]).flatten(2).mT
        attended: Tensor = self.space(tokens + self.mlp(tokens))
        return attended


# --- sampling -------------------------------------------------------------------------------------------------------


def sampled_points(probabilities: Tensor, numbers: Tensor, how: Literal["chance", "top"] = "chance") -> Tensor:
    """The points SAM is asked at, [P, 2] double on the CPU, (x, y) in 0..1 of the image; at least one.

    Args:
        probabilities: p [d_h, d_w].
        numbers: [d_h · d_w] in 0..1, what chance is made of.
        how: "chance" takes each point whose number is below its probability; "top" the likeliest ones, as many as expected.
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
    """The two terms of L_tspp, weighted; their sum is to be minimised.

    Args:
        prompts: of B images.
        targets: one an image.
        density, limit: g_p and m_p, see `target_probabilities`.
        mse: lambda_mse.

    Returns:
        ``prompter_classes``, the cross-entropy of the cells whose centre is labelled, and ``prompter_points``. Either is the
        mean over all cells or points, so the mean over processes is that of all their images.
    """
    points, classes = prompts.points, prompts.classes
    grids = [masks_on_grid(target, points.shape[-1]) for target in targets]
    wanted = torch.stack([target_probabilities(grid, density=density, limit=limit) for grid in grids]).to(points)
    difference = functional.mse_loss(prompts.probabilities, wanted)
    labels = torch.stack([cell_labels(target, classes.shape[-2]) for target in targets]).to(classes.device)
    entropies = functional.cross_entropy(classes, labels, ignore_index=UNLABELLED, reduction="none")
    return {"prompter_classes": entropies.mean(), "prompter_points": mse * difference}


def cell_labels(target: MaskTarget, side: int) -> Tensor:
    """The class at the centre of each cell, [side, side]; `UNLABELLED` where there is none."""
    labels = torch.full((side, side), UNLABELLED, device=target.masks.device)
    for label, mask in zip(target.labels, at_centres(target.masks, side), strict=True):
        labels[mask] = label
    return labels
