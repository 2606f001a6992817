"""Multi-scale deformable attention (Deformable DETR, Zhu et al., 2021) in plain PyTorch.

Each query samples a few points of each feature level; sampling offsets and attention weights are predicted from the query.

Letters: B images, Q queries, M heads, L levels, P points a head and level, C channels, D = C / M channels a head,
S tokens of all levels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.position import sine_positions
from lexiseg.structures import Size


def deformable_attention(value: Tensor, sizes: Sequence[Size], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, with zero padding outside the maps.

    Args:
        value: [B, S, M, D], the flattened levels, concatenated.
        sizes: (height, width) of the L levels.
        locations: [B, Q, M, L, P, 2], normalised (x, y): 0 at the left or top edge of the map, 1 at the right or bottom.
        weights: attention weights [B, Q, M, L, P].

    Returns:
        [B, Q, M D].
    """
    levels = locations.shape[3]
    assert levels == len(sizes), f"locations on {levels} levels, maps of {len(sizes)}"
    assert value.shape[1] == sum(high * wide for high, wide in sizes), f"{value.shape[1]} cells do not fill maps of {sizes}"
    # Heads outermost, queries innermost: samples of one head fit the cache, and sums run over contiguous rows.
    # All levels are split at once, so that the backward pass concatenates each gradient once.
    cells = value.split([high * wide for high, wide in sizes], dim=1)
    maps = [part.permute(2, 0, 3, 1).unflatten(-1, size).contiguous() for part, size in zip(cells, sizes, strict=True)]
    grids = (2 * locations - 1).permute(2, 3, 0, 4, 1, 5)  # [M, L, B, P, Q, 2]
    per_sample = weights.permute(2, 3, 0, 4, 1).unsqueeze(3)  # [M, L, B, 1, P, Q]
    attended = []
    for head_maps, head_grids, head_weights in zip(zip(*maps, strict=True), grids, per_sample, strict=True):
        samples = [
            functional.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False) * weight
            for level, grid, weight in zip(head_maps, head_grids, head_weights, strict=True)
        ]
        attended.append(reduce(torch.add, (sample.sum(2) for sample in samples)))  # [B, D, Q]
    return torch.cat(attended, dim=1).mT


def reread_with_levels(buffer: Tensor, levels: int) -> Tensor:
    """Reread a buffer as the official GPU operator does with ``levels`` maps: [B, Q, M, L, P, …] -> [B, Q, M, levels, P, …].

    FrozenSeg's SAM branch predicts locations and weights for three levels but has only one. The operator takes the number of
    levels from the feature maps and indexes both buffers with that stride: it reads their first third, across queries, heads
    and images, and never the rest. The released weights were trained this way, so reproducing them requires the same. As a
    consequence a query samples around the reference point of another query, the weights of a head do not sum to one, and the
    second image of a batch depends on the first.
    """
    shape = (*buffer.shape[:3], levels, *buffer.shape[4:])
    return buffer.flatten()[: torch.Size(shape).numel()].view(shape)


class DeformableAttention(nn.Module):
    """Multi-head deformable attention with learned points.

    Attributes:
        levels: L, number of levels that points are predicted for.
        official_mismatch: for another number of input levels, do what the official GPU operator does (`reread_with_levels`).
    """

    def __init__(self, width: int, *, levels: int, heads: int = 8, points: int = 4, official_mismatch: bool = False) -> None:
        """Initialise the points on a ring around the query, one direction per head, with equal weights (official code)."""
        super().__init__()
        assert width % heads == 0, f"{width} channels cannot be split among {heads} heads"
        self.levels, self.heads, self.points, self.official_mismatch = levels, heads, points, official_mismatch
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        angles = torch.arange(self.heads) * (2 * pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().amax(-1, keepdim=True)  # onto the square
        steps = torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_((ring[:, None, None] * steps).expand(-1, self.levels, -1, -1).flatten())
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.output.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(
        self, query: Tensor, reference: Tensor, tokens: Tensor, sizes: Sequence[Size], padding: Tensor | None = None
    ) -> Tensor:
        """Apply the attention.

        Args:
            query: [B, Q, C], position embeddings included.
            reference: [B or 1, Q, L or 1, 2], reference points of the queries, (x, y) in 0..1.
            tokens: [B, S, C], the flattened levels, concatenated.
            sizes: (height, width) of the levels.
            padding: [B, S] bool, True at padded tokens.

        Returns:
            [B, Q, C].
        """
        value = self.value(tokens)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        extent = query.new_tensor([[wide, high] for high, wide in sizes])[:, None]  # offsets are in cells
        # Queries stay innermost in memory until sampling: no arithmetic on rows of 2, 4 or 12 values.
        offsets = self.offsets(query).mT.contiguous().unflatten(1, (self.heads, self.levels, self.points, 2))
        locations = offsets.permute(0, 5, 1, 2, 3, 4) / extent + reference[:, :, None, :, None]
        weights = self.weights(query).mT.contiguous().unflatten(1, (self.heads, -1)).softmax(2)
        weights = weights.unflatten(2, (self.levels, self.points)).permute(0, 4, 1, 2, 3)
        if self.official_mismatch:
            locations, weights = (reread_with_levels(buffer, len(sizes)) for buffer in (locations, weights))
        sampled = deformable_attention(value.unflatten(-1, (self.heads, -1)), sizes, locations, weights)
        attended: Tensor = self.output(sampled)
        return attended


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by a residual and a norm."""

    def __init__(self, attention: DeformableAttention, width: int, feedforward: int) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.contract = nn.Linear(feedforward, width)
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(self, tokens: Tensor, positions: Tensor, reference: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Encode tokens [B, S, C]; other arguments as in `DeformableAttention`."""
        tokens = self.attention_norm(tokens + self.attention(tokens + positions, reference, tokens, sizes))
        encoded: Tensor = self.norm(tokens + self.contract(self.expand(tokens).relu()))
        return encoded


class DeformableEncoder(nn.Module):
    """Deformable self-attention over the cells of all levels; the reference point of a cell is its own centre."""

    def __init__(
        self,
        width: int,
        *,
        levels: int,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        feedforward: int = 1024,
        official_mismatch: bool = False,
    ) -> None:
        """Build the encoder.

        Args:
            width: C.
            levels: L, number of levels that points are predicted for and that `forward` takes.
            layers, heads, points: number of layers, of heads, and of points per head and level.
            feedforward: hidden channels of the feed-forward networks.
            official_mismatch: `forward` takes fewer levels, too; see `reread_with_levels`.
        """
        super().__init__()
        self.level_embedding = nn.Parameter(torch.randn(levels, width))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                DeformableAttention(width, levels=levels, heads=heads, points=points, official_mismatch=official_mismatch),
                width,
                feedforward,
            )
            for _ in range(layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Encode maps [B, C, h_i, w_i] of the levels; shapes are kept."""
        sizes: list[Size] = [(level.shape[2], level.shape[3]) for level in maps]
        tokens = torch.cat([level.flatten(2).mT for level in maps], dim=1)
        positions = torch.cat(
            [
                sine_positions(size, level.shape[1], like=level).flatten(2).mT + embedding
                for level, size, embedding in zip(maps, sizes, self.level_embedding[: len(maps)], strict=True)
            ],
            dim=1,
        )
        reference = torch.cat([_cell_centres(size, tokens) for size in sizes])[None, :, None]
        for layer in self.layers:
            tokens = layer(tokens, positions, reference, sizes)
        parts = tokens.split([high * wide for high, wide in sizes], dim=1)
        return tuple(part.mT.unflatten(2, size) for part, size in zip(parts, sizes, strict=True))


def _cell_centres(size: Size, like: Tensor) -> Tensor:
    """Cell centres (x, y) in 0..1, row by row, [h w, 2]."""
    y, x = ((torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length for length in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)
