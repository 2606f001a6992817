"""Interface of mask proposers, which predict class-agnostic masks for methods that classify them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from lexiseg.structures import Size


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic masks.

    Attributes:
        masks: [B, Q, h, w] logits.
        padded_size: (height, width) in pixels of the area the h × w grid covers, from each image's top-left corner; larger than
            the images if they were padded.
    """

    masks: Tensor
    padded_size: Size


class MaskProposer(nn.Module, ABC):
    """Frozen mask proposer with a fixed number of queries.

    Attributes:
        queries: Q, number of masks per image.
    """

    queries: int

    @abstractmethod
    def forward(self, images: Tensor) -> Proposals:
        """Propose masks for images [B, 3, H, W], float RGB in 0..1, all of the same size."""
