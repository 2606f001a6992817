"""CLIP with a ResNet image tower and attention pool (RN50 … RN50x64)."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures, Colour, Tokenizer
from lexiseg.structures import Size


class ClipResNet(ClipBackbone):
    """CLIP with a ResNet; levels are the four stages, and ``ClipFeatures.last`` [B, C, h, w] is the last one.

    The attention pool has one query, the mean of all cells. For a region the query is the same, but attends only to the cells
    of the region (FC-CLIP).
    """

    strides = (4, 8, 16, 32)

    def __init__(self, clip_model: nn.Module, tokenizer: Tokenizer, *, mean: Colour, std: Colour, architecture: str) -> None:
        super().__init__(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)
        tower = self.clip_model.visual
        self.channels = tuple(stage[-1].conv3.out_channels for stage in self._stages())
        self.width = tower.attnpool.c_proj.out_features
        self.image_size = tower.image_size

    def features(self, images: Tensor) -> ClipFeatures:
        cells = self.clip_model.visual.stem(self._normalised(images))
        levels = []
        for stage in self._stages():
            cells = stage(cells)
            levels.append(cells)
        return ClipFeatures(tuple(levels), cells)

    def project(self, features: ClipFeatures) -> Tensor:
        """Apply value and output projections to every cell, without positions: attention on this cell alone."""
        pool = self.clip_model.visual.attnpool
        embedded: Tensor = pool.c_proj(pool.v_proj(features.last.movedim(1, -1))).movedim(-1, 1)
        return embedded

    def encode_image(self, images: Tensor) -> Tensor:
        query, cells = self._tokens(self.features(images).last)
        return self._pool(query, torch.cat([query, cells], dim=1), None)[:, 0]

    def _embed_cells(self, features: ClipFeatures, weights: Tensor) -> Tensor:
        """Embed regions; the attention on a cell is multiplied by its weight in 0..1."""  # [decided]
        query, cells = self._tokens(features.last)
        empty = weights.amax((-2, -1), keepdim=True) == 0
        bias = torch.where(empty, 0.0, weights.log()).flatten(2)  # no NaN for empty regions, which are zeroed later
        return self._pool(query, cells, bias.to(cells.dtype))

    def embed_regions_official(self, features: ClipFeatures, logits: Tensor) -> Tensor:
        """Embed regions [B, Q, D] as the official FC-CLIP code does, for its checkpoints.

        Args:
            features: output of `features` for the same images.
            logits: mask logits [B, Q, H, W]. The logits are resized, then binarised at the grid's resolution;
                a region without any cell gets the bias of the output projection.
        """
        query, cells = self._tokens(features.last)
        inside = functional.interpolate(logits, features.grid, mode="bilinear", align_corners=False) > 0
        return self._pool(query, cells, inside.flatten(2))

    def _stages(self) -> tuple[Any, ...]:
        tower = self.clip_model.visual
        return tower.layer1, tower.layer2, tower.layer3, tower.layer4

    def _tokens(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Return the query [B, 1, C] and the cells [B, h·w, C] of the attention pool, with positions added."""
        height, width = cells.shape[-2:]
        position = resized_positions(self.clip_model.visual.attnpool.positional_embedding, (height, width))
        tokens = cells.flatten(2).mT
        return tokens.mean(1, keepdim=True) + position[:1], tokens + position[1:]

    def _pool(self, query: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from query [B, 1, C] to tokens [B, N, C] for each row of an attention mask [B, Q, N], [B, Q, D].

        A float mask is added to the scores, a bool mask is True where attention is allowed; None is one row without mask.
        """
        pool = self.clip_model.visual.attnpool

        def heads(vectors: Tensor) -> Tensor:
            split: Tensor = vectors.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            return split

        queries = heads(pool.q_proj(query))
        if mask is not None:
            queries, mask = queries.expand(-1, -1, mask.shape[1], -1), mask[:, None]
        attended = functional.scaled_dot_product_attention(
            queries, heads(pool.k_proj(tokens)), heads(pool.v_proj(tokens)), mask
        )
        embedded: Tensor = pool.c_proj(attended.transpose(1, 2).flatten(2))
        return embedded


def resized_positions(table: Tensor, grid: Size) -> Tensor:
    """Resize the attention pool's positions [1 + side², C] to h × w cells, [1 + h·w, C]; bilinear, as in FC-CLIP."""
    side = isqrt(len(table) - 1)
    if grid == (side, side):
        return table
    cells = table[1:].mT.unflatten(-1, (side, side))[None]
    cells = functional.interpolate(cells, grid, mode="bilinear", align_corners=False)
    return torch.cat([table[:1], cells[0].flatten(1).mT])
