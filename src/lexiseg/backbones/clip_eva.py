"""CLIP with the vision transformer of EVA-01 (Fang et al., 2022), which open_clip takes from timm: EVA01-g-14-plus."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip_vit import ClipViT, Interpolation, Projection, resized_positions, thirds
from lexiseg.structures import Size


@dataclass(frozen=True)
class _Attention:
    """Attention of a timm ``EvaBlock`` with the attributes of ``torch.nn.MultiheadAttention`` that `ClipViT` reads."""

    attention: Any

    @property
    def in_proj_weight(self) -> Tensor:
        weight: Tensor = self.attention.qkv.weight
        return weight

    @property
    def in_proj_bias(self) -> Tensor:
        own = self.attention
        return torch.cat([own.q_bias, own.k_bias, own.v_bias])

    @property
    def num_heads(self) -> int:
        heads: int = self.attention.num_heads
        return heads

    def out_proj(self, heads: Tensor) -> Tensor:
        projected: Tensor = self.attention.proj(heads)
        return projected


@dataclass(frozen=True)
class _Block:
    """A timm ``EvaBlock`` with the attributes of open_clip's ``ResidualAttentionBlock`` that `ClipViT` reads."""

    block: Any

    def __call__(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.block(tokens)
        return output

    @property
    def attn(self) -> _Attention:
        return _Attention(self.block.attn)

    def ln_1(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.block.norm1(tokens)
        return normed

    def ln_2(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.block.norm2(tokens)
        return normed

    def mlp(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.block.mlp(tokens)
        return hidden

    def ls_1(self, update: Tensor) -> Tensor:
        gamma: Tensor | None = self.block.gamma_1
        return update if gamma is None else gamma * update

    def ls_2(self, update: Tensor) -> Tensor:
        gamma: Tensor | None = self.block.gamma_2
        return update if gamma is None else gamma * update


class ClipEva(ClipViT):
    """CLIP with an EVA-01 vision transformer; see `ClipViT`."""

    @property
    def blocks(self) -> Sequence[_Block]:
        return [_Block(block) for block in self.clip_model.visual.trunk.blocks]

    def projection_rows(self, projections: Collection[Projection]) -> Iterator[tuple[str, nn.Parameter, tuple[slice, ...]]]:
        """See `ClipViT.projection_rows`; keys have no bias."""
        for name, parameter in self.named_parameters():
            if name.startswith("clip_model.visual.") and name.endswith(".attn.qkv.weight"):
                rows = dict(zip(("f_q", "f_k", "f_v"), thirds(len(parameter)), strict=True))
                yield name, parameter, tuple(part for letter, part in rows.items() if letter not in projections)
            elif name.endswith((".attn.q_bias", ".attn.v_bias")) and f"f_{name[-6]}" in projections:
                yield name, parameter, ()

    def attention_weights(self) -> Iterator[tuple[nn.Module, str, int]]:
        for block in self.clip_model.visual.trunk.blocks:
            yield block.attn.qkv, "weight", 3
            yield block.attn.proj, "weight", 1

    def _head(self, tokens: Tensor) -> Tensor:
        trunk = self.clip_model.visual.trunk
        embedded: Tensor = self.clip_model.visual.head(trunk.head(trunk.fc_norm(trunk.norm(tokens))))
        return embedded

    def _sizes(self) -> tuple[int, int, int, int]:
        visual = self.clip_model.visual
        trunk = visual.trunk
        width = trunk.head.out_features if isinstance(trunk.head, nn.Linear) else visual.head.proj.out_features
        return trunk.patch_embed.patch_size[0], trunk.embed_dim, width, visual.image_size[0]

    def _embed_patches(self, images: Tensor, interpolation: Interpolation = "bicubic") -> tuple[Tensor, Size]:
        trunk = self.clip_model.visual.trunk
        patches = trunk.patch_embed.proj(self._normalised(images))
        height, width = patches.shape[-2:]
        tokens = torch.cat([trunk.cls_token.expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
        positions = resized_positions(trunk.pos_embed[0], trunk.patch_embed.grid_size, (height, width), interpolation)
        return trunk.norm_pre(tokens + positions), (height, width)
