"""The masked-attention decoder of Mask2Former (Cheng et al., 2022) with FC-CLIP's classifier (Yu et al., 2023).

Learned queries attend to the pixels inside the mask they predicted last; every layer predicts masks and classes. The
equations are those of CMPF, which restates them:

    Eq. (1), (2)   `DecoderLayer`, `masks_to_attn_mask`      masked cross-attention
    Eq. (3)        `MaskDecoder._masks`                      M_l = E_m(X_l) · F
    Eq. (4)        `MaskDecoder._heads`                      classes of E_c(X_l + E_p(pool_M F))

Methods modify queries and features through an `Injection`; without one this is FC-CLIP's decoder.

Letters: B images, Q queries, C channels, D joint width, S names, K classes, N cells of a level, h × w cells of the mask
features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from math import log
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import MAX_LOGIT_SCALE
from lexiseg.errors import UsageError
from lexiseg.layers.pixel_decoder import PixelFeatures
from lexiseg.layers.position import sine_positions
from lexiseg.structures import Size, TextEmbeddings, Trace

INITIAL_LOGIT_SCALE = log(1 / 0.07)  # CLIP's


@dataclass(frozen=True)
class DecodedMasks:
    """Output of the mask decoder.

    Attributes:
        masks: [B, Q, h, w] logits.
        classes: [B, Q, K + 1] logits, "no object" last.
        auxiliary: predictions before the first layer and after each layer but the last; empty unless requested.
    """

    masks: Tensor
    classes: Tensor
    auxiliary: tuple[DecodedMasks, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Memory:
    """A feature level that queries attend to.

    Attributes:
        tokens: [B, N, C] row by row, with the level embedding added.
        positions: [1, N, C] sine encoding of the keys; None if the keys have no positions.
        level: [C] level embedding.
        size: (height, width) cells.
    """

    tokens: Tensor
    positions: Tensor | None
    level: Tensor
    size: Size


class Injection(Protocol):
    """Hooks by which a method modifies one batch inside the decoder. Layers are counted from 1, as in the papers."""

    def features(self, layer: int, memory: Memory) -> Memory:
        """Return the memory that the queries of ``layer`` attend to; other layers keep the original."""
        ...

    def queries(self, layer: int, queries: Tensor, masks: Callable[[], Tensor], project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the modified output queries of ``layer``.

        Args:
            layer: number of the layer.
            queries: its output [B, Q, C].
            masks: computes its mask logits [B, Q, h, w], without gradient; called only if they are needed.
            project: the classifier's E_p of Eq. (4), from pooled features [..., C] to [..., C].
        """
        ...


# --- pure functions -------------------------------------------------------------------------------------------------


def mask_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean feature inside each mask; zeros for an empty mask.

    Args:
        features: [B, C, h, w].
        masks: logits [B, Q, h', w'], resized to the features' grid and thresholded at 0, without gradient.

    Returns:
        [B, Q, C].
    """
    inside = _resized(masks.detach(), (features.shape[2], features.shape[3])) > 0
    weights = inside / inside.sum((-2, -1), keepdim=True).clamp_min(1)
    return torch.einsum("bchw,bqhw->bqc", features, weights.to(features.dtype))


def class_logits(embeddings: Tensor, text: TextEmbeddings, void: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosine similarities, the maximum over the names of a class, "no object" last.

    Args:
        embeddings: [B, Q, D], not normalised.
        text: S unit vectors.
        void: [1, D] unit vector of "no object".
        logit_scale: logarithm of the scale, a scalar; the scale is clamped to 100.

    Returns:
        [B, Q, K + 1].
    """
    rows = torch.cat([text.vectors.to(void.dtype), void])
    scores = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * functional.normalize(embeddings, dim=-1) @ rows.mT
    return torch.cat([text.per_class(scores[..., :-1]), scores[..., -1:]], dim=-1)


def masks_to_attn_mask(masks: Tensor, size: Size) -> Tensor:
    """Attention mask of Eq. (2): each query attends to the cells inside its mask, or to all cells if it is empty.

    Args:
        masks: logits [B, Q, h, w].
        size: (height, width) of the level.

    Returns:
        [B, Q, N] bool, True where a query may attend.
    """
    probability = _resized(masks.detach(), size).sigmoid()
    inside = probability.flatten(2) >= 0.5  # Eq. (2); on the rounded probability, as in the official code
    return inside | ~inside.any(-1, keepdim=True)


def cells_read(maps: Tensor, size: Size) -> Tensor:
    """Keep the cells of maps [B, C, h, w] that bilinear downsampling to ``size`` reads; downsampled, they give the same.

    At an even factor each output cell is the mean of the middle 2 × 2 cells of its block; at other factors the maps are
    returned whole. (Resizing features instead of masks would be cheaper, but rounding moves cells across the threshold.)
    """
    (high, wide), (down, across) = maps.shape[-2:], (maps.shape[-2] // size[0], maps.shape[-1] // size[1])
    if (high, wide) != (down * size[0], across * size[1]) or down % 2 or across % 2 or down * across == 0:
        return maps
    blocks = maps.unflatten(-1, (size[1], across)).unflatten(-3, (size[0], down))  # [B, C, h', down, w', across]
    middle = blocks[..., down // 2 - 1 : down // 2 + 1, :, across // 2 - 1 : across // 2 + 1]
    cells: Tensor = middle.flatten(-2).flatten(-3, -2)
    return cells


def _resized(maps: Tensor, size: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


# --- layers ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention with separate queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        assert width % heads == 0, f"{width} channels cannot be split among {heads} heads"
        self.heads = heads
        self.projection = nn.Linear(width, 3 * width)  # queries, keys and values, stacked
        self.output = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, C].
            key, value: [B, N, C].
            attn_mask: [B, Q, N] bool, True where a query may attend, at least once per row; None masks nothing.

        Returns:
            [B, Q, C].
        """
        q, k, v = self._projected(query, key, value)
        mask = None if attn_mask is None else attn_mask[:, None]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output

    def attn_weights(self, query: Tensor, key: Tensor, attn_mask: Tensor) -> Tensor:
        """Attention weights [B, Q, N], the mean over the heads."""
        q, k = self._projected(query, key)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~attn_mask[:, None], -torch.inf)
        return scores.softmax(-1).mean(1)

    def _projected(self, *inputs: Tensor) -> Iterator[Tensor]:
        """Project queries, keys and values [B, N, C], as many as are given, to [B, heads, N, C / heads]."""
        for x, w, b in zip(inputs, self.projection.weight.chunk(3), self.projection.bias.chunk(3), strict=False):
            yield functional.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CrossAttention(nn.Module):
    """Cross-attention of queries to features; residual, then norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        query_positions: Tensor,
        tokens: Tensor,
        positions: Tensor | None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from queries [B, Q, C] to tokens [B, N, C]; positions are added to queries and keys, not to values."""
        keys = tokens if positions is None else tokens + positions
        attended: Tensor = self.norm(queries + self.attention(queries + query_positions, keys, tokens, attn_mask))
        return attended

    def attn_weights(
        self, queries: Tensor, query_positions: Tensor, tokens: Tensor, positions: Tensor | None, attn_mask: Tensor
    ) -> Tensor:
        """Attention weights, see `Attention.attn_weights`."""
        return self.attention.attn_weights(
            queries + query_positions, tokens if positions is None else tokens + positions, attn_mask
        )


class SelfAttention(nn.Module):
    """Self-attention of queries; residual, then norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, query_positions: Tensor) -> Tensor:
        """Queries [B, Q, C] -> [B, Q, C]."""
        positioned = queries + query_positions
        attended: Tensor = self.norm(queries + self.attention(positioned, positioned, queries))
        return attended


class FeedForward(nn.Module):
    """Feed-forward network, linear-ReLU-linear; residual, then norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.expand.weight)
        nn.init.xavier_uniform_(self.contract.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [..., C] -> [..., C]."""
        output: Tensor = self.norm(tokens + self.contract(self.expand(tokens).relu()))
        return output


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, and feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.cross_attention = CrossAttention(width, heads)
        self.self_attention = SelfAttention(width, heads)
        self.feed_forward = FeedForward(width, feedforward)

    def forward(self, queries: Tensor, query_positions: Tensor, memory: Memory, attn_mask: Tensor) -> Tensor:
        """X_{l-1} -> X_l, both [B, Q, C]; ``attn_mask`` [B, Q, N] of `masks_to_attn_mask`."""
        queries = self.cross_attention(queries, query_positions, memory.tokens, memory.positions, attn_mask)  # Eq. (1)
        queries = self.self_attention(queries, query_positions)
        output: Tensor = self.feed_forward(queries)
        return output


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Three linear layers with ReLU in between."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class MaskDecoder(nn.Module):
    """Decode queries into masks with class logits.

    Attributes:
        width: C.
        text_width: D.
    """

    def __init__(
        self,
        text_width: int,
        *,
        width: int = 256,
        queries: int = 250,
        layers: int = 9,
        levels: int = 3,
        heads: int = 8,
        feedforward: int = 2048,
    ) -> None:
        """Build the decoder.

        Args:
            text_width: D of the text embeddings.
            width: C of the pixel features.
            queries: Q, number of masks per image.
            layers: number of layers; they take the levels in turn, coarse to fine.
            levels: number of feature levels.
            heads, feedforward: attention heads and hidden channels of each layer.
        """
        super().__init__()
        self.width, self.text_width = width, text_width
        self.query_features = nn.Embedding(queries, width)
        self.query_positions = nn.Embedding(queries, width)
        self.level_embedding = nn.Embedding(levels, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feedforward) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.mask_head = mlp(width, width, width)  # E_m
        self.pooled_projection = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))  # E_p
        self.class_head = mlp(width, width, text_width)  # E_c
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.void = nn.Embedding(1, text_width)

    @property
    def void_vector(self) -> Tensor:
        """Unit vector of "no object" in the joint space, [1, D]."""
        return functional.normalize(self.void.weight, dim=-1)

    def forward(
        self,
        features: PixelFeatures,
        text: TextEmbeddings,
        *,
        injection: Injection | None = None,
        auxiliary: bool = False,
        trace: Trace | None = None,
    ) -> DecodedMasks:
        """Predict masks and classes.

        Args:
            features: output of the pixel decoder.
            text: embeddings of the vocabulary.
            injection: hooks of the method; None for FC-CLIP.
            auxiliary: also return the predictions of earlier layers, for deep supervision; else they are not computed.
            trace: receives ``pixels``, ``masks.0`` to ``masks.L`` and ``attention.1`` to ``attention.L`` of the first image.

        Raises:
            UsageError: wrong width of text embeddings or features, or wrong number of levels.
        """
        self._check(features, text)
        pixels = features.mask_features
        memories = [self._memory(level, number) for number, level in enumerate(features.levels)]
        positions = self.query_positions.weight
        queries = self.query_features.weight.expand(len(pixels), -1, -1)
        predicting = [queries]
        read = [cells_read(pixels.detach(), memory.size) for memory in memories]
        for number, layer in enumerate(self.layers, start=1):
            turn = (number - 1) % len(memories)
            memory = memories[turn]
            with torch.no_grad():  # attention masks are not learned
                attn_mask = masks_to_attn_mask(self._masks(queries, read[turn]), memory.size)  # Eq. (2), of M_{l-1}
            if injection is not None and number > 1:
                # After the heads: the prediction of that layer is unaffected, and after the last layer there is no injection.
                made = torch.no_grad()(partial(self._masks, queries, pixels))
                queries = injection.queries(number - 1, queries, made, self.pooled_projection)
            if injection is not None:
                memory = injection.features(number, memory)
            if trace is not None:
                assert isinstance(layer, DecoderLayer)
                weights = layer.cross_attention.attn_weights(queries, positions, memory.tokens, memory.positions, attn_mask)
                trace[f"attention.{number}"] = weights[0].unflatten(-1, memory.size)
            queries = layer(queries, positions, memory, attn_mask)
            predicting.append(queries)
        if trace is not None:
            trace["pixels"] = pixels[0]
            trace |= {f"masks.{number}": self._masks(made, pixels)[0] for number, made in enumerate(predicting)}
        if not auxiliary:
            return DecodedMasks(*self._heads(queries, pixels, text))
        # All layers at once: their gradients accumulate in one product, not in a sum of large maps per layer.
        masks, classes = self._heads(torch.cat(predicting, dim=1), pixels, text)
        count = len(predicting)
        *earlier, last = (DecodedMasks(*parts) for parts in zip(masks.chunk(count, 1), classes.chunk(count, 1), strict=True))
        return replace(last, auxiliary=tuple(earlier))

    def _masks(self, queries: Tensor, mask_features: Tensor) -> Tensor:
        """Mask logits [B, Q, h, w]."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_head(self.norm(queries)), mask_features)  # Eq. (3)

    def _heads(self, queries: Tensor, mask_features: Tensor, text: TextEmbeddings) -> tuple[Tensor, Tensor]:
        """Mask logits [B, Q, h, w] and class logits [B, Q, K + 1]."""
        masks = self._masks(queries, mask_features)
        pooled = self.pooled_projection(mask_pool(mask_features, masks))
        embeddings = self.class_head(pooled + self.norm(queries))  # Eq. (4)
        return masks, class_logits(embeddings, text, self.void_vector, self.logit_scale)

    def _memory(self, level: Tensor, number: int) -> Memory:
        size = (level.shape[2], level.shape[3])
        embedding = self.level_embedding.weight[number]
        positions = sine_positions(size, self.width, like=level).flatten(2).mT
        return Memory(level.flatten(2).mT + embedding, positions, embedding, size)

    def _check(self, features: PixelFeatures, text: TextEmbeddings) -> None:
        expected, levels = self.level_embedding.num_embeddings, len(features.levels)
        if levels != expected:
            raise UsageError(f"this mask decoder takes {expected} feature levels; got {levels}")
        channels = {int(level.shape[1]) for level in (features.mask_features, *features.levels)}
        if channels != {self.width}:
            raise UsageError(f"this mask decoder takes features of {self.width} channels; got {sorted(channels)}")
        if text.vectors.shape[1] != self.text_width:
            raise UsageError(
                f"this mask decoder takes text embeddings of width {self.text_width}; got {text.vectors.shape[1]}: "
                "embed the vocabulary with the model's own CLIP"
            )
