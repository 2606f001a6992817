"""SAM's two-way transformer (Kirillov et al., 2023, Appendix A) with fewer operations, for few tokens and many cells.

Tokens of a prompt (output tokens and points, about seven) and cells of the image attend to each other. Projecting all cells to
queries, keys and values costs most of the decoder. Here the projections are applied to the tokens instead, where they are
multiplied with a projected token anyway:

    q (X W_k)ᵀ = (q W_kᵀ) Xᵀ        softmax(…) (X W_v) = (softmax(…) X) W_v

for cells X [G, C] and each head; T tokens and h heads then cost T h columns in place of the C / 2 of a projection. Results are
those of the plain order up to rounding.

Letters: N prompts, T tokens, G cells, C channels, h heads, c channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def two_way(transformer: Any, prompts: Tensor, cells: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Apply transformers' ``SamTwoWayTransformer``.

    Args:
        transformer: its modules and weights.
        prompts: tokens [N, T, C].
        cells: image [1 or N, G, C]; one image is shared by all prompts.
        positions: position embedding of the cells, [1, G, C].

    Returns:
        Tokens [N, T, C] and cells [N, G, C].
    """
    tokens = prompts
    for layer in transformer.layers:
        query = tokens if layer.skip_first_layer_pe else tokens + prompts
        attended = layer.self_attn(query=query[None], key=query[None], value=tokens[None])[0][0]
        tokens = layer.layer_norm1(attended if layer.skip_first_layer_pe else tokens + attended)
        placed = cells + positions
        attended = _tokens_from_cells(layer.cross_attn_token_to_image, tokens + prompts, placed, cells)
        tokens = layer.layer_norm2(tokens + attended)
        tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
        cells = _cells_from_tokens(layer.cross_attn_image_to_token, cells, placed, tokens + prompts, tokens)
        cells = layer.layer_norm4(cells)
    attended = _tokens_from_cells(transformer.final_attn_token_to_image, tokens + prompts, cells + positions, cells)
    return transformer.layer_norm_final_attn(tokens + attended), cells


def is_shorter(transformer: Any, tokens: int) -> bool:
    """Whether `two_way` takes fewer operations than the plain order for this number of tokens."""
    attention = transformer.final_attn_token_to_image
    return tokens * attention.num_attention_heads < attention.internal_dim


def _tokens_from_cells(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens [N, T, C] to cells, keys and values [1 or N, G, C]: [N, T, C]."""
    weights = _scores(attention, _by_head(attention, attention.q_proj(queries)), attention.k_proj, keys).softmax(-1)
    pooled = _times(weights, values).unflatten(1, (attention.num_attention_heads, -1))  # [N, h, T, C]
    mixed = torch.einsum("nhtC,hcC->nthc", pooled, _by_head_of(attention, attention.v_proj.weight)).flatten(2)
    return attention.out_proj(mixed + attention.v_proj.bias)  # the weights of a query sum to 1


def _cells_from_tokens(attention: Any, cells: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Cells [1 or N, G, C] plus the attention of their queries [1 or N, G, C] to tokens [N, T, C]: [N, G, C]."""
    heads = attention.num_attention_heads
    projected = _by_head(attention, attention.k_proj(keys))
    scores = _scores(attention, projected, attention.q_proj, queries).unflatten(1, (heads, -1))
    bias = torch.einsum("nthc,hc->nht", projected, attention.q_proj.bias.view(heads, -1)) * attention.scaling
    weights = (scores + bias[..., None]).softmax(2).flatten(1, 2)  # over the tokens, [N, h T, G]
    out = attention.out_proj.weight.unflatten(1, (heads, -1))  # [C, h, c]
    mixed = torch.einsum("nthc,Chc->nhtC", _by_head(attention, attention.v_proj(values)), out)
    mixed = (mixed + attention.out_proj.bias / heads).flatten(1, 2)  # the weights of all heads sum to h
    return torch.baddbmm(cells.expand(len(mixed), -1, -1), weights.transpose(1, 2), mixed)


def _scores(attention: Any, tokens: Tensor, projection: Any, cells: Tensor) -> Tensor:
    """Scores [N, h T, G] of projected tokens [N, T, h, c] and cells [1 or N, G, C] to be projected, without its bias."""
    weight = _by_head_of(attention, projection.weight) * attention.scaling
    folded = torch.einsum("nthc,hcC->nhtC", tokens, weight).flatten(1, 2)
    return _times(folded, cells.transpose(1, 2))


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Products of matrices [N, R, A] with [1 or N, A, B], [N, R, B]; with a single one as one product."""
    shared = len(matrices) == 1
    return (rows.flatten(0, 1) @ matrices[0]).view(*rows.shape[:2], -1) if shared else rows @ matrices


def _by_head(attention: Any, projected: Tensor) -> Tensor:
    """Split the channels of tokens: [N, T, h c] -> [N, T, h, c]."""
    return projected.unflatten(-1, (attention.num_attention_heads, -1))


def _by_head_of(attention: Any, weight: Tensor) -> Tensor:
    """Split the rows of a projection: [h c, C] -> [h, c, C]."""
    return weight.unflatten(0, (attention.num_attention_heads, -1))
