"""CLIP with a plain vision transformer as image tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures, Colour, Tokenizer
from lexiseg.structures import Size

# number of the block, the block, mask tokens [B, Q, C], what they may see of the image (the class token, then the patches,
# normed, [B, 1 + h·w, C]), mask logits -> what the tokens take from it [B, Q, C], mask logits
Attend = Callable[[int, Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Interpolation = Literal["bicubic", "bilinear"]

OPEN_SHARE = 0.1  # a mask token sees a patch if its region fills this share of what it fills of its best one  # [decided]


class ClipViT(ClipBackbone):
    """Levels are the patch tokens after the blocks in ``level_blocks``, all of one stride.

    ``ClipFeatures.last`` [B, depth, 1 + h·w, C] holds the tokens that each block received, the class token first.

    Attributes:
        depth: number of blocks.
        level_blocks: which blocks' outputs are levels, from 0.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        tokenizer: Tokenizer,
        *,
        mean: Colour,
        std: Colour,
        architecture: str,
        level_blocks: Sequence[int] = (),
    ) -> None:
        """Wrap a model, see `ClipBackbone`.

        Args:
            level_blocks: by default the ends of the three thirds of the depth: 3, 7, 11 of 12, the first two of which
                guide CAT-Seg's decoder.
        """
        super().__init__(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)
        tower = self.clip_model.visual
        self.depth = len(tower.transformer.resblocks)
        self.level_blocks = tuple(level_blocks or sorted({max(self.depth * third // 3 - 1, 0) for third in (1, 2, 3)}))
        self.strides = (tower.patch_size[0],) * len(self.level_blocks)
        self.channels = (tower.conv1.out_channels,) * len(self.level_blocks)
        self.width = tower.proj.shape[1]
        self.image_size = tower.image_size[0]

    def features(self, images: Tensor, interpolation: Interpolation = "bicubic") -> ClipFeatures:
        """See `ClipBackbone.features`; ``interpolation`` of the positions, for another patch grid than CLIP's own."""
        tokens, grid = self._embed_patches(images, interpolation)
        received, levels = [], []
        for number, block in enumerate(self.clip_model.visual.transformer.resblocks):
            received.append(tokens)
            tokens = block(tokens)
            if number in self.level_blocks:
                levels.append(tokens[:, 1:].mT.unflatten(-1, grid))
        return ClipFeatures(tuple(levels), torch.stack(received, dim=1))

    def project(self, features: ClipFeatures) -> Tensor:
        """CAT-Seg's dense features: the last block passes values on instead of attending, and adds the class token.

        The residual of every token is the class token that the block received, not the token itself. [official code]
        """
        cells: Tensor = self.project_tokens(features)[:, 1:].mT.unflatten(-1, features.grid)
        return cells

    def project_tokens(self, features: ClipFeatures) -> Tensor:
        """The tokens behind `project` with the class token in front, [B, 1 + h·w, D]."""
        tower = self.clip_model.visual
        block, tokens = tower.transformer.resblocks[-1], features.last[:, -1]
        attention = block.attn
        _, _, weight = attention.in_proj_weight.chunk(3)
        _, _, bias = attention.in_proj_bias.chunk(3)
        values = attention.out_proj(functional.linear(block.ln_1(tokens), weight, bias))
        hidden = tokens[:, :1] + block.ls_1(values)
        hidden = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        embedded: Tensor = tower.ln_post(hidden) @ tower.proj
        return embedded

    def encode_image(self, images: Tensor) -> Tensor:
        tower = self.clip_model.visual
        tokens, _ = self._embed_patches(images)
        for block in tower.transformer.resblocks:
            tokens = block(tokens)
        embedded: Tensor = tower.ln_post(tokens[:, 0]) @ tower.proj
        return embedded

    def _embed_cells(self, features: ClipFeatures, weights: Tensor) -> Tensor:
        """Mask tokens that see the patches of which their region fills a good share."""

        def attend(_: int, block: Any, tokens: Tensor, image: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            return attended(block, tokens, image, visible(weights >= OPEN_SHARE)), weights

        return self.mask_tokens(features, weights, attend)[0]

    def mask_tokens(self, features: ClipFeatures, masks: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """Embeddings of masks by tokens of their own (MaskCLIP, ICML'23), which start as copies of the class token.

        Nobody sees a mask token, so the image's tokens are those of `features`, whatever the masks.

        Args:
            features: of B images.
            masks: [B, Q, ...], in the form that ``attend`` takes.
            attend: what a token takes from the image in each block.

        Returns:
            Embeddings [B, Q, D] of any length, and the masks as the last block left them.
        """
        tower = self.clip_model.visual
        tokens = features.last[:, 0, :1].expand(-1, masks.shape[1], -1)
        for number, block in enumerate(tower.transformer.resblocks):
            taken, masks = attend(number, block, tokens, block.ln_1(features.last[:, number]), masks)
            tokens = tokens + block.ls_1(taken)
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        embedded: Tensor = tower.ln_post(tokens) @ tower.proj
        return embedded, masks

    def patch_tokens(self, features: ClipFeatures) -> Tensor:
        """The patches after the last block in the joint space, [B, h · w, D]: it attends here, other than in `project`."""
        tower = self.clip_model.visual
        embedded: Tensor = tower.ln_post(tower.transformer.resblocks[-1](features.last[:, -1])[:, 1:]) @ tower.proj
        return embedded

    def _embed_patches(self, images: Tensor, interpolation: Interpolation = "bicubic") -> tuple[Tensor, Size]:
        """What the first block receives, [B, 1 + h·w, C], and the patch grid."""
        tower = self.clip_model.visual
        patches = tower.conv1(self._normalised(images))
        height, width = patches.shape[-2:]
        classes = tower.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([classes, patches.flatten(2).mT], dim=1)
        positions = resized_positions(tower.positional_embedding, tower.grid_size, (height, width), interpolation)
        return tower.ln_pre(tokens + positions), (height, width)


def visible(patches: Tensor) -> Tensor:
    """What mask tokens may see, [B, Q, 1 + h·w] bool: the class token, and these patches [B, Q, h, w] bool."""
    return functional.pad(patches.flatten(2), (1, 0), value=True)


def attended(block: Any, tokens: Tensor, image: Tensor, seen: Tensor, bias: Tensor | None = None) -> Tensor:
    """What tokens [B, Q, C] take from an image in a block of CLIP's, by its own attention, [B, Q, C].

    Args:
        block: of open_clip.
        tokens: not normed yet.
        image: [B, 1 + h·w, C], normed.
        seen: [B, Q, 1 + h·w] bool, of `visible`.
        bias: [B, Q, 1 + h·w], added to the scores.
    """
    query, key, value = projected(block.attn, block.ln_1(tokens), image)
    mask = seen if bias is None else bias.masked_fill(~seen, -torch.inf)
    taken = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.unsqueeze(1))
    output: Tensor = block.attn.out_proj(taken.transpose(1, 2).flatten(2))
    return output


def projected(attention: Any, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of tokens [B, Q, C], keys and values of an image [B, N, C], by heads: [B, heads, ., C / heads]."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        functional.linear(given, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for given, weight, bias in zip((tokens, image, image), weights, biases, strict=True)
    )
    return query, key, value


def resized_positions(table: Tensor, native: Size, grid: Size, interpolation: Interpolation = "bicubic") -> Tensor:
    """A position table [1 + H·W, C] for another patch grid, [1 + h·w, C].

    Without antialiasing, as CAT-Seg's (open_clip's own resize antialiases); the class token keeps its row.
    """
    if grid == native:
        return table
    cells = table[1:].mT.unflatten(-1, native)[None]
    cells = functional.interpolate(cells, grid, mode=interpolation, align_corners=False, antialias=False)
    return torch.cat([table[:1], cells[0].flatten(1).mT])


def pack_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a CAT-Seg CLIP (separate query, key and value weights) -> open_clip's (one packed weight).

    Raises:
        KeyError: if only some of the three are there.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, kind = name.rsplit(".", 1) if "." in name else ("", name)
        if kind == "q_proj_weight":
            packed[f"{stem}.in_proj_weight"] = torch.cat([state[f"{stem}.{letter}_proj_weight"] for letter in "qkv"])
        elif kind not in {"k_proj_weight", "v_proj_weight"}:
            packed[name] = tensor
    return packed


def split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack_projections`: open_clip's names -> CAT-Seg's. Biases stay packed in both."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".in_proj_weight"):
            stem = name.removesuffix("in_proj_weight")
            split |= {f"{stem}{letter}_proj_weight": part for letter, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split
