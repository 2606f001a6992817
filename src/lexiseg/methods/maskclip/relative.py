"""Relative mask attention and mask refinement, the trained modules of MaskCLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import projected


class RelativeMaskAttention(nn.Module):
    """Relative mask attention of one block, and refinement of the masks by the attention of their tokens.

    Letters: B images, Q masks, L = h · w patches of p × p pixels, C channels.

    Args:
        width: C.
        patch: p.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.mask_embedding = nn.Conv2d(1, width, patch, patch)
        self.query_norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, width)
        self.refinement = nn.Conv2d(width, patch**2, 1)

    def forward(self, block: Any, tokens: Tensor, image: Tensor, attn_mask: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the attention output of the mask tokens, and refined masks.

        Args:
            block: transformer block of open_clip.
            tokens: [B, Q, C], before the norm.
            image: [B, 1 + L, C], after the norm; class token first.
            attn_mask: [B, Q, 1 + L] bool, True where a token attends.
            masks: logits [B, Q, p h, p w].
        """
        attention, grid = block.attn, tuple(side // self.patch for side in masks.shape[-2:])
        query, key, value = projected(attention, block.ln_1(tokens), image)
        query = query / query.shape[-1] ** 0.5
        scores = query @ key.mT
        embedded = self.mask_embedding(masks.flatten(0, 1).unsqueeze(1).tanh()).flatten(2).mT
        own = self.query_norm(embedded).unflatten(0, masks.shape[:2]) * self.key(image[:, 1:]).unsqueeze(1)  # [B, Q, L, C]
        relative = own.unflatten(-1, (attention.num_heads, -1)).sum(-1).movedim(-1, 1) / query.shape[-1] ** 0.5
        scores = torch.cat([scores[..., :1], (scores[..., 1:] + relative) / 2], dim=-1)
        attn_weights = scores.masked_fill(~attn_mask.unsqueeze(1), -torch.inf).softmax(-1)
        output = attention.out_proj((attn_weights @ value).transpose(1, 2).flatten(2))

        pairs = query.unsqueeze(3) * key[:, :, 1:].unsqueeze(2)  # [B, heads, Q, L, C / heads]
        pairs = pairs.movedim(1, 3).flatten(3)  # [B, Q, L, C]
        gated = (pairs * (1.702 * pairs).sigmoid()).mT.flatten(0, 1).unflatten(-1, grid)  # CLIP's quick GELU
        finer = functional.pixel_shuffle(self.refinement(gated), self.patch)
        return output, masks + finer.squeeze(1).unflatten(0, masks.shape[:2])
