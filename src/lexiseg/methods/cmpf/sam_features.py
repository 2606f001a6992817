"""SAM features for the Feature Injector: downsampling by two, then deformable self-attention.

CMPF: "a single convolution … then a single-scale deformable attention transformer". The official module predicts points for
three levels but has one; its GPU operator then reads wrong values, and the released weights depend on it
(`lexiseg.layers.deformable.reread_with_levels`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lexiseg.ensembles import Behaviour
from lexiseg.layers.deformable import DeformableEncoder
from lexiseg.layers.pixel_decoder import GROUPS

OFFICIAL_LEVELS = 3  # levels that the official encoder predicts points for


class SamFeatures(nn.Module):
    """Encode SAM's image embedding for the Feature Injector."""

    def __init__(
        self,
        channels: int = 256,
        *,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        feedforward: int = 1024,
        behaviour: Behaviour = "paper",
    ) -> None:
        """Build the module.

        Args:
            channels: channels of SAM's image embedding.
            width: C of the pixel decoder.
            layers, heads, points, feedforward: see `DeformableEncoder`.
            behaviour: "paper", a single-scale encoder; "official", the encoder for three levels, to load official weights.
        """
        super().__init__()
        official = behaviour == "official"
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, width), nn.ReLU())
        self.encoder = DeformableEncoder(
            width,
            levels=OFFICIAL_LEVELS if official else 1,
            layers=layers,
            heads=heads,
            points=points,
            feedforward=feedforward,
            official_mismatch=official,
        )

    def forward(self, embedding: Tensor) -> Tensor:
        """Encode SAM's image embedding [B, C_sam, g, g] to [B, C, g / 2, g / 2], in the precision of the weights."""
        with torch.autocast(embedding.device.type, enabled=False):
            reduced: Tensor = self.reduce(embedding.to(self.encoder.level_embedding.dtype))
            encoded: Tensor = self.encoder([reduced])[0]
        return encoded
