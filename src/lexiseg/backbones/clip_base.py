"""What every CLIP declares and does, whatever its image tower.

An adapter wraps an open_clip model (``clip_model``: the name under which official FC-CLIP checkpoints keep it, too).
Images are float RGB in 0..1 and are used at the size they come in: nothing here resizes them.
Results are never divided by their length, except text embeddings.
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
    """What one pass of the image tower leaves behind.

    Attributes:
        levels: maps [B, C_i, h_i, w_i], fine to coarse, of the strides and channels the adapter declares.
        last: what region embeddings and dense features are made from; its layout is the adapter's own.
    """

    levels: tuple[Tensor, ...]
    last: Tensor

    @property
    def grid(self) -> Size:
        """(height, width) of the coarsest level: the cells of dense features and region masks."""
        height, width = self.levels[-1].shape[-2:]
        return height, width

    def split(self) -> list[ClipFeatures]:
        """The features of the images one by one, as views."""
        return [
            ClipFeatures(tuple(level[number : number + 1] for level in self.levels), self.last[number : number + 1])
            for number in range(len(self.last))
        ]


class ClipBackbone(nn.Module, ABC):
    """A CLIP as the methods see it; subclasses are one a kind of image tower.

    Attributes:
        strides: pixels a cell of each level is high and wide.
        channels: channels of each level.
        width: D, the width of the joint space of images and texts.
        image_size: side in pixels of the square images CLIP was trained on.
        mean, std: normalisation of the colours, for values in 0..1.
        context_length: tokens of a text, start and end included.
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
        """Wrap a model.

        Args:
            clip_model: an open_clip ``CLIP`` or ``CustomTextCLIP`` of the tower this class is for.
            tokenizer: from texts to tokens [S, context_length].
            mean, std: see above.
            architecture: all that is needed to build the model and the tokenizer, in words; becomes part of `identity`.
        """
        from open_clip import CLIP  # kept out of the start of the program

        super().__init__()
        self.clip_model = clip_model
        self.context_length = self.clip_model.context_length
        self.mean, self.std = mean, std
        self._tokenizer = tokenizer
        self._architecture = architecture
        self._identity: tuple[tuple[tuple[int, int], ...], str] | None = None
        # Whether the text tower is CLIP's own: causal, read at the end token, which has the largest number.
        self._causal_text = (
            isinstance(self.clip_model, CLIP)
            and self.clip_model.attn_mask is not None
            and self.clip_model.text_pool_type == "argmax"
            and isinstance(self.clip_model.text_projection, nn.Parameter)
        )

    @abstractmethod
    def features(self, images: Tensor) -> ClipFeatures:
        """All levels of images [B, 3, H, W]; a rest of H or W that fills no cell is not seen by the tower."""

    @abstractmethod
    def project(self, features: ClipFeatures) -> Tensor:
        """Features of every cell in the joint space, [B, D, h, w]; see `dense`."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of whole images [B, 3, H, W], as CLIP makes them."""

    @abstractmethod
    def _embed_cells(self, features: ClipFeatures, weights: Tensor) -> Tensor:
        """Embeddings [B, Q, D] of regions given as weights [B, Q, h, w], each row's largest one (or all zero)."""

    def dense(self, images: Tensor) -> Tensor:
        """Features of every cell of images [B, 3, H, W] in the joint space, [B, D, h, w]."""
        return self.project(self.features(images))

    def embed_regions(self, features: ClipFeatures, masks: Tensor) -> Tensor:
        """Embeddings of regions in the joint space, [B, Q, D].

        Args:
            features: of the same images, from `features`.
            masks: weights [B, Q, H, W] >= 0 at any resolution, over the area of the image: probabilities or binary masks.
                Only their proportions matter. A mask without any weight gives zeros.
        """
        weights = region_weights(masks, features.grid)
        empty = weights.amax((-2, -1)) == 0
        return self._embed_cells(features, weights).masked_fill(empty[..., None], 0.0)

    def padded(self, image: Tensor, multiple: int) -> Tensor:
        """An image [3, H, W] in the top-left corner of one whose sides are multiples of ``multiple``, [3, H', W'].

        What is beyond has CLIP's mean colour, which is zero once normalised.
        """
        height, width = (int(length) for length in image.shape[-2:])
        high, wide = (-(-length // multiple) * multiple for length in (height, width))
        whole = image.new_tensor(self.mean)[:, None, None].expand(3, high, wide).clone()
        whole[:, :height, :width] = image
        return whole

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens [S, context_length] of S texts; what is too long is cut off before its end token."""
        return self._tokenizer(list(texts))

    @property
    def token_width(self) -> int:
        """The width of the text tower's tokens."""
        width: int = self.clip_model.token_embedding.embedding_dim
        return width

    def encode_text(self, tokens: Tensor, *, covered: Tensor | None = None) -> Tensor:
        """Unit embeddings [S, D] of tokens [S, L], which may be on any device.

        Args:
            tokens: of `tokenize`.
            covered: [`token_width`], what stands for every token between start and end; None leaves the words as they are.

        Raises:
            UsageError: words are to be covered in a text tower that is not CLIP's own.
        """
        model = self.clip_model
        tokens = tokens.to(model.logit_scale.device)
        if not self._causal_text:
            if covered is not None:
                raise UsageError("words can be covered in CLIP's own text tower only; take another CLIP")
            return functional.normalize(model.encode_text(tokens), dim=-1)
        # No token sees a later one, so what follows the last text's end changes nothing and is not computed.
        end = tokens.argmax(-1)
        longest = int(end.max()) + 1
        words = model.token_embedding(tokens[:, :longest])
        if covered is not None:
            place = torch.arange(longest, device=end.device)
            words = torch.where(((place > 0) & (place < end[:, None])).unsqueeze(-1), covered, words)
        hidden = words + model.positional_embedding[:longest]
        hidden = model.transformer(hidden, attn_mask=model.attn_mask[:longest, :longest])
        hidden = model.ln_final(hidden)[torch.arange(len(tokens), device=tokens.device), end]
        return functional.normalize(hidden @ model.text_projection, dim=-1)

    @property
    def logit_scale(self) -> Tensor:
        """The learned factor of cosines, at most 100; a scalar."""
        scale: Tensor = self.clip_model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE).reshape(())
        return scale

    @property
    def identity(self) -> str:
        """A digest of architecture, tokenizer and weights: a cache key that changes whenever the weights do."""
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
    """How much of each cell a region fills, relative to the cell it fills most.

    Args:
        masks: weights [B, Q, H, W] >= 0.
        grid: (h, w) cells over the same area.

    Returns:
        [B, Q, h, w] float32 in 0..1; the largest of a region is one, so no region is lost however small it is,
        and all are zero for a mask that is.
    """
    area = functional.interpolate(masks.float(), grid, mode="area")
    return area / area.amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
