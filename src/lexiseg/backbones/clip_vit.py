"""CLIP with a plain vision transformer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures, Colour, Tokenizer
from lexiseg.structures import Size

# (index of the block, the block, mask tokens [B, Q, C], class token and patches after the norm [B, 1 + h·w, C], mask logits)
# -> attention output for the mask tokens [B, Q, C], mask logits
Attend = Callable[[int, Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Interpolation = Literal["bicubic", "bilinear"]
Projection = Literal["f_q", "f_k", "f_v"]

OPEN_FRACTION = 0.1  # a mask token attends to patches with at least this weight, see `region_weights`  # [decided]


@dataclass
class ImageTokens:
    """Image tokens that a ClipViT computed, see `ClipViT.recorded`.

    Attributes:
        features: outputs of `ClipViT.features`, in order.
        masks: outputs of `ClipViT.mask_tokens` [B, Q, D], in order.
    """

    features: list[ClipFeatures] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)


class ClipViT(ClipBackbone):
    """CLIP with a ViT; levels are the patch tokens after the blocks in ``level_blocks``, all of the same stride.

    ``ClipFeatures.last`` [B, depth, 1 + h·w, C] holds the input tokens of each block, the class token first.

    Attributes:
        depth: number of blocks.
        level_blocks: indices of the blocks whose outputs are levels.
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
        """Wrap an open_clip model, see `ClipBackbone`.

        Args:
            level_blocks: defaults to the last block of each third of the depth: 3, 7, 11 of 12, the first two of which
                guide CAT-Seg's decoder.
        """
        super().__init__(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)
        self.depth = len(self.blocks)
        self.level_blocks = tuple(level_blocks or sorted({max(self.depth * third // 3 - 1, 0) for third in (1, 2, 3)}))
        patch, channels, self.width, self.image_size = self._sizes()
        self.strides, self.channels = (patch,) * len(self.level_blocks), (channels,) * len(self.level_blocks)
        self._record: ImageTokens | None = None

    @property
    def blocks(self) -> Sequence[Any]:
        """The transformer blocks of the image tower, with the attributes of open_clip's ``ResidualAttentionBlock``."""
        blocks: Sequence[Any] = self.clip_model.visual.transformer.resblocks
        return blocks

    def features(self, images: Tensor, interpolation: Interpolation = "bicubic", *, last_block: bool = True) -> ClipFeatures:
        """See `ClipBackbone.features`; positions are resized by ``interpolation`` for other patch grids than CLIP's own.

        Args:
            images: [B, 3, H, W].
            interpolation: of the position embeddings.
            last_block: whether the last block is run; without it the levels end before it, as mask tokens need no more.
        """
        tokens, grid = self._embed_patches(images, interpolation)
        inputs, levels = list[Tensor](), list[Tensor]()
        for index, block in enumerate(self.blocks):
            inputs.append(tokens)
            if index + 1 == self.depth and levels and not last_block:
                break
            tokens = block(tokens)
            if index in self.level_blocks:
                levels.append(tokens[:, 1:].mT.unflatten(-1, grid))
        features = ClipFeatures(tuple(levels), torch.stack(inputs, dim=1))
        if self._record is not None:
            self._record.features.append(features)
        return features

    @contextmanager
    def recorded(self) -> Iterator[ImageTokens]:
        """Yield a record of all image tokens that `features` and `mask_tokens` compute meanwhile, with their gradients."""
        self._record = ImageTokens()
        try:
            yield self._record
        finally:
            self._record = None

    def project(self, features: ClipFeatures) -> Tensor:
        """Compute CAT-Seg's dense features: the last block outputs its values without attention.

        The residual of every token is the block's input class token, not the token itself. [official code]
        """
        cells: Tensor = self.project_tokens(features)[:, 1:].mT.unflatten(-1, features.grid)
        return cells

    def project_tokens(self, features: ClipFeatures) -> Tensor:
        """Compute the tokens of `project`, the class token first, [B, 1 + h·w, D]."""
        block, tokens = self.blocks[-1], features.last[:, -1]
        attention = block.attn
        _, _, weight = attention.in_proj_weight.chunk(3)
        _, _, bias = attention.in_proj_bias.chunk(3)
        values = attention.out_proj(functional.linear(block.ln_1(tokens), weight, bias))
        hidden = tokens[:, :1] + block.ls_1(values)
        hidden = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
        return self._head(hidden)

    def encode_image(self, images: Tensor) -> Tensor:
        tokens, _ = self._embed_patches(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self._head(tokens[:, 0])

    def _embed_cells(self, features: ClipFeatures, weights: Tensor) -> Tensor:
        """Embed regions by mask tokens that attend to patches of weight `OPEN_FRACTION` or more."""

        def attend(_: int, block: Any, tokens: Tensor, image: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            return attended(block, tokens, image, visible(weights >= OPEN_FRACTION)), weights

        return self.mask_tokens(features, weights, attend)[0]

    def mask_tokens(self, features: ClipFeatures, masks: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """Embed masks by mask tokens (MaskCLIP, ICML'23), which start as copies of the class token.

        No token attends to a mask token, so the image's tokens are those of `features` for any masks.

        Args:
            features: output of `features` for B images.
            masks: [B, Q, ...], in the form that ``attend`` takes.
            attend: attention of the mask tokens on the image in each block.

        Returns:
            Embeddings [B, Q, D], not normalised, and the masks after the last block.
        """
        tokens = features.last[:, 0, :1].expand(-1, masks.shape[1], -1)
        for index, block in enumerate(self.blocks):
            update, masks = attend(index, block, tokens, block.ln_1(features.last[:, index]), masks)
            tokens = tokens + block.ls_1(update)
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        embedded = self._head(tokens)
        if self._record is not None:
            self._record.masks.append(embedded)
        return embedded, masks

    def patch_tokens(self, features: ClipFeatures) -> Tensor:
        """Compute the patch tokens after the whole last block in the joint space, [B, h · w, D], unlike `project`."""
        return self._head(self.blocks[-1](features.last[:, -1])[:, 1:])

    def projection_rows(self, projections: Collection[Projection]) -> Iterator[tuple[str, nn.Parameter, tuple[slice, ...]]]:
        """Yield weights and biases of some of the projections f_q, f_k, f_v of all blocks of the image tower.

        Yields:
            Name in this module, the packed parameter, and its rows of other projections.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("clip_model.visual.") and ".attn.in_proj_" in name:
                rows = dict(zip(("f_q", "f_k", "f_v"), thirds(len(parameter)), strict=True))
                yield name, parameter, tuple(part for letter, part in rows.items() if letter not in projections)

    def attention_weights(self) -> Iterator[tuple[nn.Module, str, int]]:
        """Yield the weights of the attention projections: module, attribute, and number of projections it packs."""
        for block in self.blocks:
            yield block.attn, "in_proj_weight", 3
            yield block.attn.out_proj, "weight", 1

    def _head(self, tokens: Tensor) -> Tensor:
        """Project tokens [..., C] after the last block to the joint space, [..., D]."""
        tower = self.clip_model.visual
        embedded: Tensor = tower.ln_post(tokens) @ tower.proj
        return embedded

    def _sizes(self) -> tuple[int, int, int, int]:
        """Side of a patch, channels, width of the joint space, side of the training images."""
        tower = self.clip_model.visual
        return tower.patch_size[0], tower.conv1.out_channels, tower.proj.shape[1], tower.image_size[0]

    def _embed_patches(self, images: Tensor, interpolation: Interpolation = "bicubic") -> tuple[Tensor, Size]:
        """Compute the input of the first block, [B, 1 + h·w, C], and the patch grid (h, w)."""
        tower = self.clip_model.visual
        patches = tower.conv1(self._normalised(images))
        height, width = patches.shape[-2:]
        classes = tower.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([classes, patches.flatten(2).mT], dim=1)
        positions = resized_positions(tower.positional_embedding, tower.grid_size, (height, width), interpolation)
        return tower.ln_pre(tokens + positions), (height, width)


def thirds(rows: int) -> tuple[slice, slice, slice]:
    """Rows of queries, keys and values in a packed projection."""
    third = rows // 3
    return slice(0, third), slice(third, 2 * third), slice(2 * third, 3 * third)


def visible(patches: Tensor, *, class_token: bool = True) -> Tensor:
    """Build the attention mask [B, Q, 1 + h·w] bool of the class token and the given patches [B, Q, h, w] bool.

    Args:
        patches: patches that a token attends to.
        class_token: whether every token attends to the class token; False: only those that attend to no patch.
    """
    flat = patches.flatten(2)
    first = torch.ones_like(flat[..., :1]) if class_token else ~flat.any(-1, keepdim=True)
    return torch.cat([first, flat], dim=-1)


def attended(block: Any, tokens: Tensor, image: Tensor, attn_mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend from tokens [B, Q, C] to an image with the attention of a CLIP block, [B, Q, C].

    Args:
        block: open_clip's residual attention block.
        tokens: before the norm.
        image: [B, 1 + h·w, C], after the norm.
        attn_mask: [B, Q, 1 + h·w] bool, output of `visible`.
        bias: [B, Q, 1 + h·w], added to the scores.
    """
    query, key, value = projected(block.attn, block.ln_1(tokens), image)
    mask = attn_mask if bias is None else bias.masked_fill(~attn_mask, -torch.inf)
    heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask.unsqueeze(1))
    output: Tensor = block.attn.out_proj(heads.transpose(1, 2).flatten(2))
    return output


def projected(attention: Any, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens [B, Q, C] to queries, an image [B, N, C] to keys and values, each [B, heads, ., C / heads]."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        functional.linear(source, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for source, weight, bias in zip((tokens, image, image), weights, biases, strict=True)
    )
    return query, key, value


def resized_positions(table: Tensor, native: Size, grid: Size, interpolation: Interpolation = "bicubic") -> Tensor:
    """Resize a position table [1 + H·W, C] to another patch grid, [1 + h·w, C].

    Without antialiasing, as in CAT-Seg (open_clip's own resize antialiases). The class token's row is kept.
    """
    if grid == native:
        return table
    cells = table[1:].mT.unflatten(-1, native)[None]
    cells = functional.interpolate(cells, grid, mode=interpolation, align_corners=False, antialias=False)
    return torch.cat([table[:1], cells[0].flatten(1).mT])


def pack_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dictionary of CAT-Seg's CLIP (separate query, key, value weights) to open_clip's (one packed weight).

    Raises:
        KeyError: only some of the three weights are present.
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
    """Invert `pack_projections`: open_clip's names -> CAT-Seg's. Biases are packed in both."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".in_proj_weight"):
            stem = name.removesuffix("in_proj_weight")
            split |= {f"{stem}{letter}_proj_weight": part for letter, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split
