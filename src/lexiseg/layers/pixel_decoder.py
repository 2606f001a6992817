"""The deformable pixel decoder of Mask2Former (Cheng et al., 2022) as FC-CLIP (Yu et al., 2023) uses it.

Deformable attention encodes the three coarsest levels of a backbone jointly; finer levels are added top-down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.layers.deformable import DeformableEncoder

GROUPS = 32  # groups of every group norm


@dataclass(frozen=True)
class PixelFeatures:
    """Output of the pixel decoder, input of a mask decoder.

    Attributes:
        mask_features: [B, C, h, w] at the finest stride; mask logits are their dot products with mask embeddings.
        levels: [B, C, h_i, w_i], coarse to fine; the memories that queries attend to.
    """

    mask_features: Tensor
    levels: tuple[Tensor, ...]


class PixelDecoder(nn.Module):
    """Pixel decoder: feature maps of a backbone to per-pixel features.

    Attributes:
        stride: of the mask features, in pixels.
        width: C, number of channels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: int = 256,
        levels: int = 3,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        feedforward: int = 1024,
    ) -> None:
        """Build the decoder for a backbone.

        Args:
            channels, strides: channels and strides of the backbone's levels, fine to coarse.
            width: C, divisible by 32, at least 64 (a group norm over one channel of a 1 × 1 map is undefined).
            levels: number of the coarsest levels that the encoder takes.
            layers, heads, points, feedforward: see `DeformableEncoder`.

        Raises:
            UsageError: the backbone has too few levels, they are not ordered fine to coarse, or C is invalid.
        """
        super().__init__()
        if len(channels) != len(strides) or len(channels) < levels or list(strides) != sorted(set(strides)):
            raise UsageError(
                f"a pixel decoder needs at least {levels} levels, fine to coarse; "
                f"got channels {tuple(channels)} at strides {tuple(strides)}"
            )
        if width % GROUPS or width == GROUPS:
            raise UsageError(f"the width of a pixel decoder must be {2 * GROUPS}, {3 * GROUPS}, {4 * GROUPS}, …; got {width}")
        self.stride, self.width = strides[0], width
        finer = len(channels) - levels
        self.projections = nn.ModuleList(_projection(inputs, width) for inputs in reversed(channels[finer:]))
        self.encoder = DeformableEncoder(
            width, levels=levels, layers=layers, heads=heads, points=points, feedforward=feedforward
        )
        self.laterals = nn.ModuleList(_normed(inputs, width, kernel=1) for inputs in reversed(channels[:finer]))
        self.smoothings = nn.ModuleList(_normed(width, width, kernel=3) for _ in range(finer))
        self.mask_features = nn.Conv2d(width, width, 1)
        _fill_like_caffe2(self.mask_features)

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """Decode the backbone's maps [B, C_i, h_i, w_i], fine to coarse.

        Runs in the precision of the weights: sampling locations lose too much in half precision.
        """
        with torch.autocast(maps[0].device.type, enabled=False):
            top_down = [level.to(self.mask_features.weight.dtype) for level in reversed(maps)]
            projected = [
                project(level) for project, level in zip(self.projections, top_down[: len(self.projections)], strict=True)
            ]
            levels = self.encoder(projected)
            finest = levels[-1]
            finer = top_down[len(self.projections) :]
            for lateral, smooth, level in zip(self.laterals, self.smoothings, finer, strict=True):
                coarse = functional.interpolate(finest, level.shape[-2:], mode="bilinear", align_corners=False)
                finest = smooth(lateral(level) + coarse).relu()
            return PixelFeatures(self.mask_features(finest), levels)


def _projection(inputs: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, width, 1)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has one
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, width))


def _normed(inputs: int, width: int, *, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
    _fill_like_caffe2(convolution)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, width))


def _fill_like_caffe2(convolution: nn.Conv2d) -> None:
    """Initialise uniformly with variance 1 / fan-in, the "Xavier" of Caffe2 and of the official configuration."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
