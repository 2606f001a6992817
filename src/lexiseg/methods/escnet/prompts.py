"""Pseudo Prompt Generator (Sec. 3.3, Fig. 3), and SAM's prompt encoder for a grid of any size.

    (a) correlation map of a class -> (b) probabilities -> (c) binary mask -> (d) regions, by k-means over the cells
    (e) the probabilities in each region: its highest cell is a pseudo point, its map a pseudo mask

Letters: N classes (of all images), O regions per class, h × h cells, C channels of SAM.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from math import pi
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.sam import SamFamily
from lexiseg.errors import UsageError
from lexiseg.ops.kmeans import clusters_of
from lexiseg.ops.points import unit_grid

Probability = Literal["classes", "space"]
MaskPrompts = Literal["union", "mean"]

KINDS = ("points", "boxes", "masks")
MASK_LOGIT = 10.0  # maximum absolute logit of mask prompts, about that of SAM's masks  # [decided]
FINER = 4  # resolution of SAM's mask prompts, relative to the image embedding


@dataclass(frozen=True)
class PseudoPrompts:
    """Pseudo prompts of N classes.

    Attributes:
        members: [N, O, h, h] bool, the cells of each region.
        regions: [N, O, h, h], pseudo masks: probabilities inside each region, 0 outside; differentiable.
        points: [N, O, 2], pseudo points, (x, y) in 0..1: the centre of the most probable cell of each region.
        boxes: [N, O, 4], bounding boxes (left, top, right, bottom) in 0..1.
        valid: [N, O] bool, False for empty regions of a class with fewer than O regions.
    """

    members: Tensor
    regions: Tensor
    points: Tensor
    boxes: Tensor
    valid: Tensor


def probabilities(C_vl: Tensor, scale: Tensor | float, over: Probability = "classes", *, normalise: bool = False) -> Tensor:
    """Class probabilities of cells [B, K, h, w], Fig. 3 (b).

    Args:
        C_vl: correlation maps [B, K, h, w].
        scale: CLIP's logit scale, 1 / τ.
        over: axis of the softmax.
        normalise: whether each class is normalised to 0..1 over the cells, so that a threshold means the same for any K.
    """
    logits = C_vl * scale
    probability = logits.softmax(1) if over == "classes" else logits.flatten(2).softmax(-1).view_as(logits)
    if not normalise:
        return probability
    low, high = probability.amin((-2, -1), keepdim=True), probability.amax((-2, -1), keepdim=True)
    even = high - low <= torch.finfo(probability.dtype).tiny  # K = 1: all cells are equally probable
    return torch.where(even, torch.ones_like(probability), (probability - low) / (high - low).masked_fill(even, 1))


def pseudo_prompts(probability: Tensor, regions: int, threshold: float, *, never_empty: bool = False) -> PseudoPrompts:
    """Compute pseudo prompts of all classes, Fig. 3 (c) to (e).

    Args:
        probability: [N, h, h], see `probabilities`.
        regions: O.
        threshold: α.
        never_empty: whether the most probable cell of a class is always in its mask.
    """
    side, flat = probability.shape[-1], probability.detach().flatten(1)
    cells = unit_grid(side).to(flat) * side  # centres, in cells
    best = flat.argmax(1)
    inside = flat > threshold  # (c)
    if never_empty:
        inside = inside.scatter(1, best[:, None], True)
    members = clusters_of(cells, inside, best, regions)  # (d)
    points = cells[(flat.unsqueeze(1) * members).masked_fill(~members, -1).argmax(-1)]  # (e)
    valid = members.any(-1)
    each = torch.where(members.unsqueeze(-1), cells, points.unsqueeze(2))  # [N, O, h · w, 2]
    boxes = torch.cat([each.amin(2) - 0.5, each.amax(2) + 0.5], dim=-1)
    members = members.unflatten(-1, (side, side))
    return PseudoPrompts(members, probability.unsqueeze(1) * members, points / side, boxes / side, valid)


class PromptEncoder(nn.Module):
    """Copy of the modules of SAM's prompt encoder that pseudo prompts need.

    Args:
        sam: SAM to copy from.
        kinds: kinds of prompts, of `KINDS`.
        masks: whether SAM embeds the union of a class's pseudo masks, or each of them, of which the mean is taken.
    """

    frequencies: Tensor  # [2, C / 2]

    def __init__(self, sam: SamFamily, kinds: Collection[str] = ("points", "masks"), masks: MaskPrompts = "union") -> None:
        super().__init__()
        self.mask_prompts = masks
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise UsageError(f"unknown prompts '{unknown[0]}'; choose from {', '.join(KINDS)}")
        if not set(kinds) & {"points", "boxes"}:
            raise UsageError("SAM's blocks need prompt tokens: give points, boxes or both, with or without masks")
        encoder: Any = sam.model.prompt_encoder
        self.register_buffer("frequencies", encoder.shared_embedding.positional_embedding.detach().clone())
        self.nothing: nn.Embedding = deepcopy(encoder.not_a_point_embed)
        self.inside: nn.Embedding | None = _point_kind(encoder, 1) if "points" in kinds else None
        self.corners = nn.ModuleList(_point_kind(encoder, kind) for kind in (2, 3)) if "boxes" in kinds else None
        self.masks = deepcopy(encoder.mask_embed) if "masks" in kinds else None
        self.no_mask = None if "masks" in kinds else deepcopy(encoder.no_mask_embed)

    def forward(self, prompts: PseudoPrompts) -> tuple[Tensor, Tensor]:
        """Encode prompts to P_sparse [N, P, C] and P_dense [N, C, h, h].

        Invalid regions are encoded as SAM's "not a point" token, and left out of a mean of masks.
        """
        padding, tokens = self.nothing.weight, []
        valid = prompts.valid.unsqueeze(-1)
        if self.inside is not None:
            tokens.append(torch.where(valid, self.positions(prompts.points) + self.inside.weight, padding))
            if self.corners is None:
                tokens.append(padding.expand(len(valid), -1, -1))  # SAM appends it to points without boxes
        if self.corners is not None:
            corners = (corner.weight for corner in self.corners if isinstance(corner, nn.Embedding))
            for corner, points in zip(corners, prompts.boxes.split(2, dim=-1), strict=True):
                tokens.append(torch.where(valid, self.positions(points) + corner, padding))
        return torch.cat(tokens, dim=1), self._dense(prompts)

    def positions(self, points: Tensor) -> Tensor:
        """SAM's Fourier features [..., C] of points [..., 2], (x, y) in 0..1."""
        angles = 2 * pi * ((2 * points - 1) @ self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, side: int) -> Tensor:
        """Fourier features of the centres of ``side`` × ``side`` cells, [side², C]."""
        return self.positions(unit_grid(side).to(self.frequencies))

    def _dense(self, prompts: PseudoPrompts) -> Tensor:
        if self.masks is None:
            assert self.no_mask is not None
            return self.no_mask.weight[..., None, None].expand(len(prompts.valid), -1, *prompts.regions.shape[-2:])
        if self.mask_prompts == "union":  # regions of a class are disjoint
            return self._embedded(prompts.regions.sum(1, keepdim=True))
        each = self._embedded(prompts.regions.flatten(0, 1).unsqueeze(1)).unflatten(0, prompts.valid.shape)
        weights = prompts.valid.to(each.dtype)
        return torch.einsum("nochw,no->nchw", each, weights / weights.sum(1, keepdim=True).clamp(min=1))

    def _embedded(self, masks: Tensor) -> Tensor:
        """SAM's embedding [M, C, h, h] of pseudo masks [M, 1, h, h] in 0..1."""
        assert self.masks is not None
        logits = MASK_LOGIT * (2 * masks - 1)
        fine = functional.interpolate(logits, scale_factor=FINER, mode="bilinear", align_corners=False)
        embedded: Tensor = self.masks(fine)
        return embedded


def _point_kind(encoder: Any, kind: int) -> nn.Embedding:
    """Copy an embedding of SAM's point labels: 1 is inside, 2 and 3 are box corners. SAM 2 has all of them in one table."""
    table = encoder.point_embed
    if isinstance(table, nn.Embedding):
        return nn.Embedding.from_pretrained(table.weight[kind : kind + 1].detach().clone(), freeze=False)
    copied: nn.Embedding = deepcopy(table[kind])
    return copied
