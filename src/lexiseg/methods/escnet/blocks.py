"""Modules of the ESC block, and the decoder.

    `PromptedBlocks`        SAM's prompt encoder and two-way blocks of its mask decoder       Sec. 3.4, Eq. (2)
    `VisionLanguageFusion`  aggregation of correlations over space, then over classes         Sec. 3.5, Fig. 4
    `UNetDecoder`           upsampling by four, with early features of CLIP as skips          Sec. 3.6

Letters: B images, K classes, k of them in a part, E channels of the embedded correlations, C channels of SAM, D joint width,
h × w cells; F_v, F_l, C_e, C_v as in the paper.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.sam import SamFamily
from lexiseg.layers.cost_aggregation import SpatialAggregation, double_conv, linear_attention
from lexiseg.methods.escnet.prompts import MaskPrompts, PromptEncoder, PseudoPrompts


class SamBlock(nn.Module):
    """Copy of a block of SAM's two-way transformer, for prompts of many classes at once.

    Args:
        sam: SAM to copy from.
        number: index of the block, modulo the number of blocks.
    """

    def __init__(self, sam: SamFamily, number: int) -> None:
        super().__init__()
        layers: Any = sam.model.mask_decoder.transformer.layers
        self.block = deepcopy(layers[number % len(layers)])

    def forward(self, tokens: Tensor, cells: Tensor, positions: Tensor) -> Tensor:
        """Refine cells [N, h · w, C] with positions [h · w, C] by prompt tokens [N, P, C], Eq. (2), first line."""
        block, prompts = self.block, tokens[None]  # transformers takes [1, N, P, C]
        queries, keys, key_positions = prompts, cells[None], positions[None, None]
        # SA(.), of the prompts
        if block.skip_first_layer_pe:
            queries = block.layer_norm1(block.self_attn(queries, queries, queries)[0])
        else:
            queries = block.layer_norm1(queries + block.self_attn(queries + prompts, queries + prompts, queries)[0])
        # BCA(., .), of the prompts to the image
        attended, _ = block.cross_attn_token_to_image(queries + prompts, keys + key_positions, keys)
        queries = block.layer_norm2(queries + attended)
        queries = block.layer_norm3(queries + block.mlp(queries))
        # BCA(., .), of the image to the prompts
        attended, _ = block.cross_attn_image_to_token(keys + key_positions, queries + prompts, queries)
        refined: Tensor = block.layer_norm4(keys + attended)
        return refined[0]


class PromptedBlocks(nn.Module):
    """Copies of SAM's prompt encoder and of the blocks of its mask decoder.

    Args:
        sam: SAM to copy from.
        blocks: number of blocks; those of SAM are repeated.
        prompts, masks: see `PromptEncoder`.
        random: reset the parameters (Table 2 b).
    """

    def __init__(
        self, sam: SamFamily, blocks: int, prompts: Collection[str], masks: MaskPrompts, *, random: bool = False
    ) -> None:
        super().__init__()
        self.prompts = PromptEncoder(sam, prompts, masks)
        self.blocks = nn.ModuleList(SamBlock(sam, number) for number in range(blocks))
        self.requires_grad_(True)
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if random and callable(reset):
                reset()

    def forward(self, number: int, names: Tensor, cells: Tensor, prompts: PseudoPrompts) -> Tensor:
        """Refine cells [N, h · h, C] in block ``number``, by class embeddings ``names`` [N, C] and prompts."""
        sparse, dense = self.prompts(prompts)
        tokens = torch.cat([names.unsqueeze(1), sparse], dim=1)  # the text embedding is a further prompt token  # [decided]
        positions = self.prompts.grid(dense.shape[-1])
        block = self.blocks[number]
        assert isinstance(block, SamBlock)
        refined: Tensor = block(tokens, cells + dense.flatten(2).mT, positions)
        return refined


class TextAttention(nn.Module):
    """Linear cross-attention of cells to the class embeddings, without positions (Fig. 4 b).

    Keys and values enter as two sums over all classes, so the volume can be processed in chunks with the same result.
    """

    def __init__(self, width: int, joint: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(joint, width), nn.Linear(joint, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, volume: Tensor, text: Tensor) -> Tensor:
        """Attend from a volume [B, k, h, w, E] of some classes to the text [K, D] of all classes."""
        query = self.query(self.attention_norm(volume)).flatten(0, -2)
        parts = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in (query, self.key(text), self.value(text)))
        attended = linear_attention(*parts).transpose(0, 1).flatten(1)
        volume = volume + attended.view_as(volume)
        output: Tensor = volume + self.mlp(self.norm(volume))
        return output


class VisionLanguageFusion(nn.Module):
    """Aggregation of embedded correlations, guided by the refined image features (Fig. 4 a), then by the text (b).

    Args:
        joint: D.
        width: E.
        heads, window: of the Swin blocks.
        swin_blocks: their number.
        guide_values: see `GuidedAttention`.
    """

    def __init__(self, joint: int, width: int, heads: int, window: int, *, swin_blocks: int, guide_values: bool) -> None:
        super().__init__()
        self.appearance = nn.Linear(joint, width)  # of F'_v, from D to E channels  # [decided]
        self.spatial = SpatialAggregation(width, width, heads, window, blocks=swin_blocks, guide_values=guide_values)
        self.text = TextAttention(width, joint, heads)

    def forward(self, C_e: Tensor, guide: Tensor, F_l: Tensor) -> Tensor:
        """Fuse embedded correlations of k classes with the image features and with the texts.

        Args:
            C_e: [B, k, h, w, E].
            guide: F'_v of all classes [B, h, w, E], or of each [B, k, h, w, E], after `appearance`.
            F_l: [K, D], unit vectors of all classes.
        """
        C_v = self.spatial(C_e, guide)  # Fig. 4 (a)
        output: Tensor = self.text(C_v, F_l)  # Fig. 4 (b)
        return output


class UNetDecoder(nn.Module):
    """Decoder of two stages, each bilinear upsampling by two, a skip connection and two convolutions; then a logit per cell.

    Args:
        width: E.
        inputs: channels of CLIP's levels, that of the first stage first.
        skips: channels of the projected levels.
        channels: output channels of the stages.
    """

    def __init__(self, width: int, inputs: Sequence[int], skips: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        self.skips = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(inputs, skips, strict=True))
        widths = (width, *channels[:-1])
        self.stages = nn.ModuleList(double_conv(a + skip, b) for a, skip, b in zip(widths, skips, channels, strict=True))
        self.head = nn.Conv2d(channels[-1], 1, 3, padding=1)

    def guides(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Project and upsample CLIP's levels [B, C, h, w] to skips [B, G, 2h, 2w] and [B, G', 4h, 4w]."""
        return [_upsampled(skip(level), 2 ** (n + 1)) for n, (skip, level) in enumerate(zip(self.skips, levels, strict=True))]

    def forward(self, volume: Tensor, guides: Sequence[Tensor]) -> Tensor:
        """Decode a volume [B, k, h, w, E] with skips of `guides` to logits [B, k, 4h, 4w]."""
        batch, classes = volume.shape[:2]
        maps = volume.flatten(0, 1).movedim(-1, 1)
        for stage, guide in zip(self.stages, guides, strict=True):
            maps = stage(torch.cat([_upsampled(maps, 2), guide.repeat_interleave(classes, dim=0)], dim=1))
        logits: Tensor = self.head(maps)
        return logits.view(batch, classes, *logits.shape[-2:])


def _upsampled(maps: Tensor, factor: int) -> Tensor:
    return functional.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
