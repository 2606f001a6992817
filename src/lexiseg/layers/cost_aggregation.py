"""Cost aggregation of CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", 2024).

The cosine similarities of all image cells and classes form a cost volume. Layers aggregate it over space (each class
separately, guided by image features) and over classes (each cell separately, guided by text embeddings); a decoder then
upsamples it by a factor of four, guided by early image features.

    correlation            C(i, n) = cos(image cell i, class n)
    `SpatialAggregation`   two Swin blocks, the second with shifted windows
    `ClassAggregation`     linear attention over the classes
    `UpsamplingDecoder`    one upsampling by a transposed convolution; the decoder has two

Spatial aggregation and decoder treat classes independently, so they can process them in chunks (`classes_at_once`) with the
same result; so can attention over classes the cells.

Letters: B images, K classes, C channels of the volume, G of a guide, D joint width, h × w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.layers.memory import part_of
from lexiseg.structures import OUTSIDE, Size

Attention = Literal["linear", "full"]
Embedding = Literal["conv", "mlp"]
Ranking = Literal["cost", "probability"]

GROUP = 16  # channels per group norm group in the decoder
PATCH = 2  # cells along the side of a patch in which "probability" ranks classes
TINY = 1e-6  # avoids division by zero in linear attention


# --- pure functions -------------------------------------------------------------------------------------------------


def correlation(image: Tensor, text: Tensor) -> Tensor:
    """Cosines [B, K, h, w] of image features [B, D, h, w] and class embeddings [K, D] or [B, K, D] of any length."""
    text = functional.normalize(text, dim=-1).expand(len(image), -1, -1)
    return torch.einsum("bdhw,bkd->bkhw", functional.normalize(image, dim=1), text)  # Eq. (1), of ESC-Net, too


def nearest_classes(
    costs: Tensor,
    max_classes: int,
    ranking: Ranking = "cost",
    *,
    logit_scale: Tensor | float = 1.0,
    present: Tensor | None = None,
) -> Tensor | None:
    """Top classes of each image.

    Args:
        costs: [B, K, h, w].
        max_classes: number of classes that are kept; 0 keeps all.
        ranking: "cost": by the highest cost in any cell, as the official code of CAT-Seg; "probability": by the highest
            probability among all classes in any patch of 2 × 2 cells, of their mean costs. It keeps more of the classes that
            are in an image (``benchmarks/nearest.py``): costs of a cell are noisy, and those of some names high everywhere.
        logit_scale: scale of the costs in the probabilities.
        present: [B, K] bool, classes that rank before all others.

    Returns:
        Class indices [B, max_classes], ascending; None if all classes are kept.
    """
    if not 0 < max_classes < costs.shape[1]:
        return None
    scores = costs if ranking == "cost" else class_probabilities(costs, logit_scale)
    scores = scores.amax((-2, -1))
    if present is not None:
        scores = scores.masked_fill(present, torch.inf)
    return scores.topk(max_classes, dim=1).indices.sort(dim=1).values


def class_probabilities(costs: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Softmax over the classes of the mean costs in all patches of 2 × 2 cells, [B, K, h - 1, w - 1] of costs [B, K, h, w]."""
    patch = min(PATCH, *costs.shape[-2:])
    return (logit_scale * functional.avg_pool2d(costs, patch, stride=1)).softmax(1)


def window_partition(cells: Tensor, side: int) -> Tensor:
    """Maps [N, h, w, C] cut into windows, [N · windows, side · side, C]."""
    count, high, wide, channels = cells.shape
    tiles = cells.view(count, high // side, side, wide // side, side, channels).transpose(2, 3)
    return tiles.reshape(-1, side * side, channels)


def window_reverse(tiles: Tensor, side: int, size: Size) -> Tensor:
    """Inverse of `window_partition` for maps of ``size``, [N, h, w, C]."""
    high, wide = size
    cells = tiles.reshape(-1, high // side, wide // side, side, side, tiles.shape[-1]).transpose(2, 3)
    return cells.reshape(-1, high, wide, tiles.shape[-1])


@lru_cache(maxsize=8)
def shifted_window_mask(size: Size, side: int, shift: int) -> Tensor:
    """Attention mask of shifted windows [windows, side², side²] bool: True for cells of one region of the unrolled map."""
    high, wide = (torch.bucketize(torch.arange(n), torch.tensor([n - side, n - shift]), right=True) for n in size)
    region = window_partition((3 * high[:, None] + wide)[None, ..., None], side)[..., 0]
    return region[:, :, None] == region[:, None, :]


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention with the kernel elu + 1, on query, key and value [..., heads, L, d]."""
    query, key = functional.elu(query) + 1, functional.elu(key) + 1
    total = query @ key.sum(-2).unsqueeze(-1)
    return query @ (key.mT @ value) / (total + TINY)


# --- layers ---------------------------------------------------------------------------------------------------------


def cost_embedding(kind: Embedding, width: int) -> nn.Module:
    """Embed costs [N, 1, h, w] to [N, C, h, w]: a 7 × 7 convolution ("conv", CAT-Seg), or an MLP of each cell ("mlp")."""
    if kind == "conv":
        return nn.Conv2d(1, width, 7, padding=3)
    return nn.Sequential(nn.Conv2d(1, width, 1), nn.GELU(), nn.Conv2d(width, width, 1))


class GuidedAttention(nn.Module):
    """Multi-head attention whose queries and keys are computed from the volume concatenated with a guide.

    Args:
        width: C.
        guide: G.
        heads: number of heads.
        guide_values: whether the values are computed from both, too, and not from the volume alone.
    """

    def __init__(self, width: int, guide: int, heads: int, *, guide_values: bool = False) -> None:
        super().__init__()
        self.heads, self.guide_values = heads, guide_values
        self.query, self.key = nn.Linear(width + guide, width), nn.Linear(width + guide, width)
        self.value = nn.Linear(width + guide if guide_values else width, width)

    def projected(self, tokens: Tensor, guide: Tensor) -> list[Tensor]:
        """Project tokens [N, L, C] and guide [N, L, G] to query, key and value [N, heads, L, C / heads]."""
        guided = torch.cat([tokens, guide], dim=-1)
        parts = self.query(guided), self.key(guided), self.value(guided if self.guide_values else tokens)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]


class WindowAttention(GuidedAttention):
    """Guided attention within windows."""

    def __init__(self, width: int, guide: int, heads: int, *, guide_values: bool = False) -> None:
        super().__init__(width, guide, heads, guide_values=guide_values)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor, guide: Tensor, attn_mask: Tensor | None) -> Tensor:
        """Windows [N · W, L, C] with guides [N · W, L, G] -> [N · W, L, C]; ``attn_mask`` [W, L, L] bool or None."""
        query, key, value = self.projected(tokens, guide)
        mask = None if attn_mask is None else attn_mask.repeat(len(tokens) // len(attn_mask), 1, 1)[:, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class SwinBlock(nn.Module):
    """Window attention and an MLP, pre-norm with residuals; no position bias."""

    def __init__(self, width: int, guide: int, heads: int, window: int, shift: int, *, guide_values: bool = False) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, guide, heads, guide_values=guide_values)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, cells: Tensor, guide: Tensor) -> Tensor:
        """Maps [N, h, w, C] with guides [N, h, w, G] -> [N, h, w, C]."""
        size = (int(cells.shape[1]), int(cells.shape[2]))
        side, shift = (self.window, self.shift) if min(size) > self.window else (min(size), 0)
        if size[0] % side or size[1] % side:
            raise UsageError(f"a cost volume of {size[0]} × {size[1]} cells cannot be cut into windows of {side} × {side}")
        inputs = [self.attention_norm(cells), guide]
        if shift:
            inputs = [maps.roll((-shift, -shift), (1, 2)) for maps in inputs]
        attn_mask = shifted_window_mask(size, side, shift).to(cells.device) if shift else None
        attended = window_reverse(self.attention(*(window_partition(maps, side) for maps in inputs), attn_mask), side, size)
        cells = cells + (attended.roll((shift, shift), (1, 2)) if shift else attended)
        output: Tensor = cells + self.mlp(self.norm(cells))
        return output


class SpatialAggregation(nn.Module):
    """Aggregation over space, of each class separately, guided by image features.

    Args:
        width: C.
        guide: G.
        heads, window: of the Swin blocks.
        blocks: number of Swin blocks, of which every other one has shifted windows.
        guide_values: see `GuidedAttention`.
    """

    def __init__(self, width: int, guide: int, heads: int, window: int, *, blocks: int = 2, guide_values: bool = False) -> None:
        super().__init__()
        self.guide_norm = nn.LayerNorm(guide)
        shifts = (window // 2 if number % 2 else 0 for number in range(blocks))
        self.blocks = nn.ModuleList(
            SwinBlock(width, guide, heads, window, shift, guide_values=guide_values) for shift in shifts
        )

    def forward(self, volume: Tensor, appearance: Tensor) -> Tensor:
        """Aggregate a volume [B, K, h, w, C] with a guide [B, h, w, G] for all classes, or [B, K, h, w, G]."""
        guide = self.guide_norm(appearance if appearance.ndim == volume.ndim else appearance.unsqueeze(1))
        guide = guide.expand(*volume.shape[:4], -1).flatten(0, 1)
        cells = volume.flatten(0, 1)
        for block in self.blocks:
            cells = block(cells, guide)
        return cells.unflatten(0, volume.shape[:2])


class ClassAggregation(nn.Module):
    """Aggregation over classes, of each cell separately, guided by text embeddings.

    Attributes:
        length: number of classes to which shorter sequences are padded with a learned token; 0 does not pad.
    """

    def __init__(self, width: int, guide: int, heads: int, *, length: int, attention: Attention) -> None:
        super().__init__()
        self.length = length
        self.attend = linear_attention if attention == "linear" else functional.scaled_dot_product_attention
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = GuidedAttention(width, guide, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        if length:
            self.filling = nn.Parameter(torch.zeros(1, 1, width))
            self.filling_guide = nn.Parameter(torch.zeros(1, 1, guide))

    def forward(self, volume: Tensor, text: Tensor, *, pooling: int = 1, cells_at_once: int | None = None) -> Tensor:
        """Aggregate the volume.

        Args:
            volume: [B, K, h, w, C].
            text: guide [B, K, G].
            pooling: factor of average pooling before the attention.
            cells_at_once: cells per chunk, which bounds the memory; the result is the same.
        """
        pairs = zip(volume, text, strict=True)
        return torch.stack([self._of_image(costs, guide, pooling, cells_at_once) for costs, guide in pairs])

    def _of_image(self, volume: Tensor, text: Tensor, pooling: int, cells_at_once: int | None) -> Tensor:
        classes, *size, _ = volume.shape
        small = functional.avg_pool2d(volume.movedim(-1, 1), pooling).movedim(1, -1) if pooling > 1 else volume
        tokens, missing = small.flatten(1, 2).transpose(0, 1), self.length - classes  # [h · w, K, C]
        if missing > 0:
            tokens = torch.cat([tokens, self.filling.expand(len(tokens), missing, -1)], dim=1)
            text = torch.cat([text, self.filling_guide[0].expand(missing, -1)])
        rows = tokens.split(cells_at_once or len(tokens))
        parts = [part_of(self._refined, part, text, alone=len(rows) == 1)[:, :classes] for part in rows]
        refined = torch.cat(parts).transpose(0, 1).unflatten(1, small.shape[1:3])
        if pooling > 1:
            grown = functional.interpolate(refined.movedim(-1, 1), tuple(size), mode="bilinear", align_corners=True)
            refined = grown.movedim(1, -1)
        return volume + refined  # a second residual: ``refined`` has its own

    def _refined(self, tokens: Tensor, text: Tensor) -> Tensor:
        parts = self.attention.projected(self.attention_norm(tokens), text.expand(len(tokens), -1, -1))
        tokens = tokens + self.attend(*parts).transpose(1, 2).flatten(2)
        output: Tensor = tokens + self.mlp(self.norm(tokens))
        return output


class AggregationLayer(nn.Module):
    """Aggregation over space, then over classes."""

    def __init__(
        self,
        width: int,
        appearance: int,
        text: int,
        *,
        heads: int,
        window: int,
        length: int,
        attention: Attention,
        guide_values: bool = False,
    ) -> None:
        super().__init__()
        self.spatial = SpatialAggregation(width, appearance, heads, window, guide_values=guide_values)
        self.classes = ClassAggregation(width, text, heads, length=length, attention=attention)


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 × 3 convolutions, each with group norm and ReLU: [N, inputs, h, w] -> [N, outputs, h, w]."""
    stages = [(inputs, outputs), (outputs, outputs)]
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.GroupNorm(max(1, b // GROUP), b), nn.ReLU())
            for a, b in stages
        )
    )


class UpsamplingDecoder(nn.Module):
    """Upsample by two, concatenate a guide, and apply two convolutions."""

    def __init__(self, width: int, output: int, guide: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(width, width - guide, 2, 2)
        self.convolutions = double_conv(width, output)

    def forward(self, maps: Tensor, guide: Tensor) -> Tensor:
        """Maps [K, C, h, w] of one image with its guide [G, 2h, 2w] -> [K, C', 2h, 2w]."""
        output: Tensor = self.convolutions(torch.cat([self.upsample(maps), guide.expand(len(maps), -1, -1, -1)], dim=1))
        return output


class CostAggregation(nn.Module):
    """Aggregate a cost volume and decode it to class logits at four times its resolution.

    Args:
        joint: D.
        guides: channels of the decoder's two guides, at twice and four times the resolution.
        width: C.
        appearance, text: channels of the projected guides over space and over classes.
        decoder: output channels of the decoder's two stages.
        decoder_guides: channels of the projected decoder guides.
        layers, heads: of the aggregation.
        window: side of the Swin windows, in cells.
        length: see `ClassAggregation`.
        attention: kind of attention over classes.
        embedding: see `cost_embedding`.
        guide_values: see `GuidedAttention`, over space.
        classes_at_once: classes per chunk in spatial aggregation and decoder, and rows of cells per chunk in attention over
            classes; None processes all at once.
    """

    def __init__(
        self,
        joint: int,
        guides: tuple[int, int],
        *,
        width: int = 128,
        appearance: int = 128,
        text: int = 128,
        decoder: tuple[int, int] = (64, 32),
        decoder_guides: tuple[int, int] = (32, 16),
        layers: int = 2,
        heads: int = 4,
        window: int = 12,
        length: int = 256,
        attention: Attention = "linear",
        embedding: Embedding = "conv",
        guide_values: bool = False,
        classes_at_once: int | None = None,
    ) -> None:
        super().__init__()
        self.classes_at_once = classes_at_once
        self.embedding = cost_embedding(embedding, width)
        self.appearance = nn.Sequential(nn.Conv2d(joint, appearance, 3, padding=1), nn.ReLU())
        self.text = nn.Sequential(nn.Linear(joint, text), nn.ReLU())
        self.guides = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())
            for inputs, outputs in zip(guides, decoder_guides, strict=True)
        )
        self.layers = nn.ModuleList(
            AggregationLayer(
                width,
                appearance,
                text,
                heads=heads,
                window=window,
                length=length,
                attention=attention,
                guide_values=guide_values,
            )
            for _ in range(layers)
        )
        stages = zip((width, decoder[0]), decoder, decoder_guides, strict=True)
        self.decoders = nn.ModuleList(UpsamplingDecoder(*sizes) for sizes in stages)
        self.head = nn.Conv2d(decoder[1], 1, 3, padding=1)

    def forward(
        self,
        volume: Tensor,
        text: Tensor,
        appearance: Tensor,
        guides: tuple[Tensor, Tensor],
        *,
        kept: Tensor | None = None,
        pooling: int = 1,
    ) -> Tensor:
        """Logits [B, K, 4h, 4w].

        Args:
            volume: costs [B, K, h, w] of `correlation`.
            text: class embeddings [K, D].
            appearance: guide over space [B, D, h, w]; in CAT-Seg the image features of the costs.
            guides: of the decoder, [B, G, 2h, 2w] and [B, G', 4h, 4w].
            kept: classes of each image that are aggregated, [B, M], see `nearest_classes`; the logits of the others are
                `OUTSIDE`. None: all.
            pooling: see `ClassAggregation.forward`; the official code uses 2 in training and 1 at inference.
        """
        classes = text.expand(len(volume), -1, -1)
        if kept is not None:
            volume = volume.take_along_dim(kept[..., None, None], 1)
            classes = text[kept]
        spatial_guide = self.appearance(appearance).movedim(1, -1)
        class_guide = self.text(functional.normalize(classes, dim=-1))
        cells = self._in_parts(self._embedded, volume)
        for layer in self.layers:
            assert isinstance(layer, AggregationLayer)
            cells = self._in_parts(partial(layer.spatial, appearance=spatial_guide), cells)
            rows = None if self.classes_at_once is None else self.classes_at_once * cells.shape[3]
            cells = layer.classes(cells, class_guide, pooling=pooling, cells_at_once=rows)
        projected = [project(guide) for project, guide in zip(self.guides, guides, strict=True)]
        logits = self._in_parts(partial(self._decoded, guides=projected), cells)
        if kept is None:
            return logits
        everything = logits.new_full((len(logits), len(text), *logits.shape[2:]), OUTSIDE)
        return everything.scatter(1, kept[..., None, None].expand_as(logits), logits)

    def _embedded(self, volume: Tensor) -> Tensor:
        """Embed costs [B, K, h, w] as [B, K, h, w, C]."""
        return self.embedding(volume.flatten(0, 1)[:, None]).unflatten(0, volume.shape[:2]).movedim(2, -1)

    def _decoded(self, cells: Tensor, guides: Sequence[Tensor]) -> Tensor:
        """Decode the volume [B, K, h, w, C] with the projected guides to logits [B, K, 4h, 4w]."""
        logits = []
        for number, maps in enumerate(cells.movedim(-1, 2)):
            for decoder, guide in zip(self.decoders, guides, strict=True):
                maps = decoder(maps, guide[number])
            logits.append(self.head(maps)[:, 0])
        return torch.stack(logits)

    def _in_parts(self, work: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
        """Apply ``work`` to a volume [B, K, ...], `classes_at_once` classes at a time."""
        if self.classes_at_once is None:
            return work(volume)
        parts = volume.split(self.classes_at_once, dim=1)
        return torch.cat([part_of(work, part, alone=len(parts) == 1) for part in parts], dim=1)
