"""Interface of all CLIP backbones, independent of the image tower.

An adapter wraps an open_clip model as ``clip_model``, which is also its name in official FC-CLIP checkpoints.
Images are float RGB in 0..1 and are never resized here. Only text embeddings are L2-normalised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.structures import Size

Tokenizer = Callable[[list[str]], Tensor]
Colour = tuple[float, float, float]  # (red, green, blue)

MAX_LOGIT_SCALE = 100.0  # CLIP's own limit


@dataclass(frozen=True)
class ClipFeatures:
    """Features of one forward pass of the image tower.

    Attributes:
        levels: feature maps [B, C_i, h_i, w_i], fine to coarse, with the strides and channels of the adapter.
        last: input of region embeddings and dense features; the layout depends on the adapter.
    """

    levels: tuple[Tensor, ...]
    last: Tensor

    @property
    def grid(self) -> Size:
        """(height, width) of the coarsest level, the grid of dense features and region masks."""
        height, width = self.levels[-1].shape[-2:]
        return height, width

    def split(self) -> list[ClipFeatures]:
        """Split the batch into the features of each image, as views."""
        return [
            ClipFeatures(tuple(level[index : index + 1] for level in self.levels), self.last[index : index + 1])
            for index in range(len(self.last))
        ]


class ClipBackbone(nn.Module, ABC):
    """Base class of CLIP backbones, with a subclass for each kind of image tower.

    Attributes:
        strides: stride of each level in pixels.
        channels: channels of each level.
        width: D, the width of the joint embedding space of images and texts.
        image_size: side in pixels of the square training images.
        mean, std: colour normalisation for values in 0..1.
        context_length: tokens of a text, including start and end.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    width: int
    image_size: int
    mean: Colour
    std: Colour
    context_length: int
    clip_model: Any  # open_clip's CLIP, which has no type hints

    def __init__(self, clip_model: nn.Module, tokenizer: Tokenizer, *, mean: Colour, std: Colour, architecture: str) -> None:
        """Wrap an open_clip model.

        Args:
            clip_model: open_clip ``CLIP`` or ``CustomTextCLIP`` with the image tower of this class.
            tokenizer: maps texts to tokens [S, context_length].
            mean, std: colour normalisation for values in 0..1.
            architecture: text that identifies the architecture and the tokenizer; part of `identity`.
        """
        super().__init__()
        self.clip_model = clip_model
        self.context_length = self.clip_model.context_length
        self.mean, self.std = mean, std
        self._tokenizer = tokenizer
        self._architecture = architecture
        self._identity: tuple[tuple[tuple[int, int], ...], str] | None = None

    def num_parameters(self) -> dict[str, int]:
        """Number of parameters of the image tower, and of the text tower with the logit scale."""
        image = sum(parameter.numel() for parameter in self.clip_model.visual.parameters())
        total = sum(parameter.numel() for parameter in self.parameters())
        return {"image tower": image, "text tower": total - image}

    @abstractmethod
    def features(self, images: Tensor) -> ClipFeatures:
        """Encode images [B, 3, H, W] into all levels; rows and columns that fill no cell are ignored."""

    @abstractmethod
    def project(self, features: ClipFeatures) -> Tensor:
        """Project features to the joint space, [B, D, h, w]; see `dense`."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Embed whole images [B, 3, H, W] as CLIP does, [B, D]."""

    @abstractmethod
    def _embed_cells(self, features: ClipFeatures, weights: Tensor) -> Tensor:
        """Embed regions given as weights [B, Q, h, w] with maximum 1 (or all zero), [B, Q, D]."""

    def dense(self, images: Tensor) -> Tensor:
        """Compute dense features of images [B, 3, H, W] in the joint space, [B, D, h, w]."""
        return self.project(self.features(images))

    def embed_regions(self, features: ClipFeatures, masks: Tensor) -> Tensor:
        """Embed regions in the joint space, [B, Q, D].

        Args:
            features: output of `features` for the same images.
            masks: weights [B, Q, H, W] >= 0 at any resolution, over the area of the image: probabilities or binary masks.
                Scale has no effect. An all-zero mask gives zeros.
        """
        weights = region_weights(masks, features.grid)
        empty = weights.amax((-2, -1)) == 0
        return self._embed_cells(features, weights).masked_fill(empty[..., None], 0.0)

    def padded(self, image: Tensor, multiple: int) -> Tensor:
        """Pad an image [3, H, W] on the right and below to multiples of ``multiple``, [3, H', W'].

        The padding has CLIP's mean colour, which is zero after normalisation.
        """
        height, width = (int(length) for length in image.shape[-2:])
        high, wide = (-(-length // multiple) * multiple for length in (height, width))
        whole = image.new_tensor(self.mean)[:, None, None].expand(3, high, wide).clone()
        whole[:, :height, :width] = image
        return whole

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokenize S texts, [S, context_length]; longer texts are truncated before the end token."""
        return self._tokenizer(list(texts))

    @property
    def token_width(self) -> int:
        """Width of the text tower's tokens.

        Raises:
            UsageError: the text tower is not CLIP's own.
        """
        width: int = self._own_text_tower().token_embedding.embedding_dim
        return width

    def encode_text(self, tokens: Tensor, *, covered: Tensor | None = None) -> Tensor:
        """Encode tokens [S, L], on any device, as unit embeddings [S, D].

        Args:
            tokens: output of `tokenize`.
            covered: [`token_width`], replaces the embedding of every token between start and end; None replaces nothing.

        Raises:
            UsageError: ``covered`` is given for a text tower that is not CLIP's own.
        """
        tokens = tokens.to(self.clip_model.logit_scale.device)
        if covered is None and self._text_tower() is None:
            return functional.normalize(self.clip_model.encode_text(tokens), dim=-1)
        hidden, end = self._text_hidden(tokens, covered)
        hidden = hidden[torch.arange(len(tokens), device=tokens.device), end]
        return functional.normalize(hidden @ self._own_text_tower().text_projection, dim=-1)

    def encode_words(self, tokens: Tensor, *, covered: Tensor | None = None) -> list[Tensor]:
        """Encode tokens [S, L] as unit embeddings [N, D] of the N tokens between start and end of each text.

        Args:
            tokens: output of `tokenize`.
            covered: see `encode_text`.

        Raises:
            UsageError: the text tower is not CLIP's own.
        """
        hidden, end = self._text_hidden(tokens.to(self.clip_model.logit_scale.device), covered)
        projected = functional.normalize(hidden @ self._own_text_tower().text_projection, dim=-1)
        return [row[1:stop] for row, stop in zip(projected, end.tolist(), strict=True)]

    def _text_hidden(self, tokens: Tensor, covered: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs of CLIP's own text tower [S, N, C] for the first N tokens, and the positions [S] of the end tokens."""
        tower = self._own_text_tower()
        # Attention is causal, so tokens after the last end token have no effect and are not computed.
        end = tokens.argmax(-1)
        longest = int(end.max()) + 1
        words = tower.token_embedding(tokens[:, :longest])
        if covered is not None:
            position = torch.arange(longest, device=end.device)
            words = torch.where(((position > 0) & (position < end[:, None])).unsqueeze(-1), covered, words)
        hidden = words + tower.positional_embedding[:longest]
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask[:longest, :longest]))
        return hidden, end

    def _text_tower(self) -> Any | None:
        """The text tower if it is CLIP's own: causal, and pooled at the end token, which has the largest id."""
        from open_clip import CLIP  # heavy
        from open_clip.transformer import TextTransformer

        model = self.clip_model
        tower = model if isinstance(model, CLIP) else model.text
        if not isinstance(tower, CLIP | TextTransformer) or tower.attn_mask is None:
            return None
        pool = tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type
        extra = isinstance(tower, TextTransformer) and tower.cls_emb is not None
        return tower if pool == "argmax" and isinstance(tower.text_projection, nn.Parameter) and not extra else None

    def _own_text_tower(self) -> Any:
        if (tower := self._text_tower()) is None:
            raise UsageError("only CLIP's own text tower can encode word by word; use another CLIP")
        return tower

    @property
    def logit_scale(self) -> Tensor:
        """Learned scale of cosine similarities, at most 100; a scalar."""
        scale: Tensor = self.clip_model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE).reshape(())
        return scale

    @property
    def identity(self) -> str:
        """Digest of architecture, tokenizer and weights: a cache key that changes with the weights."""
        state = self.clip_model.state_dict()
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in state.values())
        if self._identity is None or self._identity[0] != versions:
            digest = sha256(f"{type(self).__name__} {self._architecture}".encode())
            for name, tensor in state.items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._identity = (versions, digest.hexdigest())
        return self._identity[1]

    def _normalised(self, images: Tensor) -> Tensor:
        images = images.to(self.clip_model.logit_scale.dtype)
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return (images - mean[:, None, None]) / std[:, None, None]


def region_weights(masks: Tensor, grid: Size) -> Tensor:
    """Downsample masks to a grid of cells and divide each by its maximum.

    Args:
        masks: weights [B, Q, H, W] >= 0.
        grid: (h, w) cells over the same area.

    Returns:
        [B, Q, h, w] float32 in 0..1. The maximum of a region is 1, so small regions are kept; an all-zero mask stays zero.
    """
    area = functional.interpolate(masks.float(), grid, mode="area")
    return area / area.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
