"""CLIPs with a convolutional image tower of timm inside open_clip: ConvNeXt and EfficientNet."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures, Colour, Tokenizer


class ClipMeanPooled(ClipBackbone):
    """A CLIP on a convolutional tower of timm whose embedding is the head applied to the mean of all cells.

    ``ClipFeatures.last`` [B, C, h, w] holds the cells as the head gets them. Everything is a mean of cells until the head, so a
    region's embedding is the head applied to the mean of its cells (FC-CLIP's out-of-vocabulary branch), and a cell's embedding
    the head applied to the cell.
    """

    def __init__(self, clip_model: nn.Module, tokenizer: Tokenizer, *, mean: Colour, std: Colour, architecture: str) -> None:
        super().__init__(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)
        tower = self.clip_model.visual
        self.width = list(tower.head.parameters())[-1].shape[0]  # the head ends in a linear layer
        self.image_size = tower.image_size[0]

    def project(self, features: ClipFeatures) -> Tensor:
        return self._head(features.last.movedim(1, -1)).movedim(-1, 1)

    def encode_image(self, images: Tensor) -> Tensor:
        return self._head(self.features(images).last.mean((-2, -1)))

    def _embed_cells(self, features: ClipFeatures, weights: Tensor) -> Tensor:
        return self._head(_weighted_sum(features.last, weights / weights.sum((-2, -1), keepdim=True).clamp_min(1.0)))

    def embed_regions_official(self, features: ClipFeatures, logits: Tensor) -> Tensor:
        """Embeddings [B, Q, D] by the rule of the official FC-CLIP code, to use with its checkpoints.

        Args:
            features: of the same images.
            logits: mask logits [B, Q, H, W]. They are resized, not the masks, and a cell counts wholly or not at all;
                a region that wins no cell gets the embedding of the zero vector.
        """
        inside = (functional.interpolate(logits, features.grid, mode="bilinear", align_corners=False) > 0).to(logits.dtype)
        return self._head(_weighted_sum(features.last, inside / (inside.sum((-2, -1), keepdim=True) + 1e-8)))

    @abstractmethod
    def _head(self, vectors: Tensor) -> Tensor:
        """From pooled features [..., C] to the joint space [..., D]."""


class ClipConvNeXt(ClipMeanPooled):
    """Levels are the four stages."""

    def __init__(self, clip_model: nn.Module, tokenizer: Tokenizer, *, mean: Colour, std: Colour, architecture: str) -> None:
        super().__init__(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)
        stages = self.clip_model.visual.trunk.feature_info
        self.strides = tuple(stage["reduction"] for stage in stages)
        self.channels = tuple(stage["num_chs"] for stage in stages)

    def features(self, images: Tensor) -> ClipFeatures:
        trunk = self.clip_model.visual.trunk
        cells = trunk.stem(self._normalised(images))
        levels = []
        for stage in trunk.stages:
            cells = stage(cells)
            levels.append(cells)
        return ClipFeatures(tuple(levels), trunk.norm_pre(cells))

    def _head(self, vectors: Tensor) -> Tensor:
        """Each vector is a map of one cell."""
        tower = self.clip_model.visual
        cells = vectors.reshape(-1, vectors.shape[-1])[:, :, None, None]
        embedded: Tensor = tower.head(tower.trunk.head(cells)).unflatten(0, vectors.shape[:-1])
        return embedded


class ClipEfficientNet(ClipMeanPooled):
    """Levels are the last stages of strides 4, 8, 16 and 32, before the convolution that widens them for the head."""

    strides = (4, 8, 16, 32)

    def __init__(self, clip_model: nn.Module, tokenizer: Tokenizer, *, mean: Colour, std: Colour, architecture: str) -> None:
        super().__init__(clip_model, tokenizer, mean=mean, std=std, architecture=architecture)
        stages = {stage["reduction"]: stage for stage in self.clip_model.visual.trunk.feature_info}  # the last of a stride
        self.channels = tuple(stages[stride]["num_chs"] for stride in self.strides)
        self._ends = tuple(stages[stride]["stage"] - 1 for stride in self.strides)

    def features(self, images: Tensor) -> ClipFeatures:
        trunk = self.clip_model.visual.trunk
        cells = trunk.bn1(trunk.conv_stem(self._normalised(images)))
        levels = []
        for number, stage in enumerate(trunk.blocks):
            cells = stage(cells)
            if number in self._ends:
                levels.append(cells)
        return ClipFeatures(tuple(levels), trunk.bn2(trunk.conv_head(cells)))

    def _head(self, vectors: Tensor) -> Tensor:
        embedded: Tensor = self.clip_model.visual.head(vectors)
        return embedded


def _weighted_sum(cells: Tensor, weights: Tensor) -> Tensor:
    """[B, C, h, w] under [B, Q, h, w] -> [B, Q, C]."""
    return torch.einsum("bchw,bqhw->bqc", cells, weights.to(cells.dtype))
