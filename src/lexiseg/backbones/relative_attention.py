"""Attention of SAM's image encoder, a few heads at a time on a CPU.

The decomposed relative positions (Li et al., MViTv2, 2022) of a global layer are a matrix of 4096 × 4096 for each head. For all
heads they are 0.8 GB, and with copies 2 GB, which are written, read and mapped again in each layer. Results are those of
transformers' ``SamVisionSdpaAttention``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ENTRIES = 2**24  # of the matrices of positions at a time: one head of a global layer, all windows of another


class RelativeAttention(nn.Module):
    """Takes the place of the attention of a layer, with its parameters under the same names.

    Args:
        attention: transformers' ``SamVisionSdpaAttention``, or HQ-SAM's.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.num_heads: int = attention.num_attention_heads
        self.qkv, self.proj = attention.qkv, attention.proj
        self.rel_pos_h, self.rel_pos_w = attention.rel_pos_h, attention.rel_pos_w

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, None]:
        """Attend within maps [B, H, W, C]; the second item, the weights, is not computed."""
        assert not output_attentions
        count, high, wide, _ = hidden_states.shape
        projected = self.qkv(hidden_states).reshape(count, high * wide, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = projected.flatten(1, 2)  # [B h, H W, c]
        grid = queries.unflatten(1, (high, wide))
        rows = torch.einsum("nyxc,ykc->nyxk", grid, _table(self.rel_pos_h, high))
        columns = torch.einsum("nyxc,xkc->nyxk", grid, _table(self.rel_pos_w, wide))
        at_once = len(queries) if queries.device.type != "cpu" else max(1, ENTRIES // (high * wide) ** 2)
        parts = []
        for chunk in torch.arange(len(queries), device=queries.device).split(at_once):
            these = slice(int(chunk[0]), int(chunk[-1]) + 1)
            bias = (rows[these, ..., :, None] + columns[these, ..., None, :]).flatten(3).flatten(1, 2)
            parts.append(
                functional.scaled_dot_product_attention(
                    queries[these, None], keys[these, None], values[these, None], attn_mask=bias[:, None]
                )
            )
        attended = torch.cat(parts)[:, 0].unflatten(0, (count, self.num_heads)).transpose(1, 2)
        return self.proj(attended.reshape(count, high, wide, -1)), None


def _table(positions: Tensor, side: int) -> Tensor:
    """Embeddings [side, side, c] of the offsets of queries and keys, of those [L, c] of all offsets."""
    distances = 2 * side - 1
    if len(positions) != distances:
        positions = functional.interpolate(positions.T[None], size=distances, mode="linear")[0].T
    cells = torch.arange(side, device=positions.device)
    return positions[cells[:, None] - cells[None, :] + side - 1]


def with_relative_attention(model: Any) -> Any:
    """Replace the attention of all layers of a SAM's image encoder that has relative positions. Returns the model."""
    for layer in model.vision_encoder.layers:
        if layer.attn.use_rel_pos:
            layer.attn = RelativeAttention(layer.attn)
    return model
