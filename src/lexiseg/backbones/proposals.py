"""Who proposes masks of everything in a picture, for methods that only name them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from lexiseg.structures import Size


@dataclass(frozen=True)
class Proposals:
    """Masks without names.

    Attributes:
        masks: [B, Q, h, w] logits.
        padded_size: (height, width) in pixels of the area the h × w grid covers, from each image's top-left corner; larger than
            the images where they were padded.
    """

    masks: Tensor
    padded_size: Size


class MaskProposer(nn.Module, ABC):
    """A frozen mask generator with a fixed number of queries.

    Attributes:
        queries: Q.
    """

    queries: int

    @abstractmethod
    def forward(self, images: Tensor) -> Proposals:
        """The masks of images [B, 3, H, W], float RGB in 0..1, all of one size."""
