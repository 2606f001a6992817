"""CLIP with a convolutional image tower of timm: ConvNeXt and EfficientNet."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures, Colour, Tokenizer


class ClipMeanPooled(ClipBackbone):
    """CLIP whose image embedding is the head applied to the mean of all cells.

    ``ClipFeatures.last`` [B, C, h, w] is the input of pooling and head. A region's embedding is the head applied to the mean of
    its cells (FC-CLIP's out-of-vocabulary branch), a cell's embedding the head applied to the cell.
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
        """Embed regions [B, Q, D] as the official FC-CLIP code does, for its checkpoints.

        Args:
            features: output of `features` for the same images.
            logits: mask logits [B, Q, H, W]. The logits are resized, then binarised at the grid's resolution;
                a region without any cell gets the embedding of the zero vector.
        """
        inside = (functional.interpolate(logits, features.grid, mode="bilinear", align_corners=False) > 0).to(logits.dtype)
        return self._head(_weighted_sum(features.last, inside / (inside.sum((-2, -1), keepdim=True) + 1e-8)))

    @abstractmethod
    def _head(self, vectors: Tensor) -> Tensor:
        """Project pooled features [..., C] to the joint space [..., D]."""


class ClipConvNeXt(ClipMeanPooled):
    """CLIP with a ConvNeXt; levels are the four stages."""

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
        """Apply the head to each vector as a map of 1 × 1 cells."""
        tower = self.clip_model.visual
        cells = vectors.reshape(-1, vectors.shape[-1])[:, :, None, None]
        embedded: Tensor = tower.head(tower.trunk.head(cells)).unflatten(0, vectors.shape[:-1])
        return embedded


class ClipEfficientNet(ClipMeanPooled):
    """CLIP with an EfficientNet; levels are the last stages of strides 4, 8, 16, 32, before the convolution of the head."""

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
        for index, stage in enumerate(trunk.blocks):
            cells = stage(cells)
            if index in self._ends:
                levels.append(cells)
        return ClipFeatures(tuple(levels), trunk.bn2(trunk.conv_head(cells)))

    def _head(self, vectors: Tensor) -> Tensor:
        embedded: Tensor = self.clip_model.visual.head(vectors)
        return embedded


def _weighted_sum(cells: Tensor, weights: Tensor) -> Tensor:
    """Sum cells [B, C, h, w] with weights [B, Q, h, w], [B, Q, C]."""
    return torch.einsum("bchw,bqhw->bqc", cells, weights.to(cells.dtype))
