"""CMPF: "Harmonizing Cross-Model Prior Fusion for Open-Vocabulary Segmentation"; FrozenSeg is an earlier name of it.

FC-CLIP with a frozen SAM beside the frozen CLIP. CLIP knows words, SAM knows where things end: what SAM sees is added to
the queries (`QueryInjector`, Eq. (5)) and to the coarsest features (`FeatureInjector`, Eq. (6)) of the mask decoder. Without
injectors this is FC-CLIP, bit for bit; the ensemble of classes, Eq. (7), is the one it shares with it.

    Eq. (1)-(4)    `layers/mask_decoder.py`              Eq. (5), (6)     `methods/cmpf/injectors.py`
    Eq. (7)-(12)   `ensembles.py`                        SAM's features   `methods/cmpf/sam_features.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip import ClipConvNeXt, ClipResNet
from lexiseg.backbones.sam import SAM_MEAN, SAM_STD, SamFamily
from lexiseg.ensembles import Behaviour
from lexiseg.methods.cmpf.injectors import FeatureInjector, QueryInjector, SamInjection
from lexiseg.methods.cmpf.sam_features import SamFeatures
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.structures import Size


class Cmpf(FcClip):
    """FC-CLIP and what SAM sees.

    Args:
        clip: see `FcClip`.
        sam: stays frozen and in evaluation mode.
        query_layers: of the mask decoder, from 1, after which the Query Injector acts; none switches it off.
        feature_layers: before which the Feature Injector acts; none switches it off.
        width, heads, pixel_feedforward: of the decoders, see `FcClip`; SAM's features get as many.
        sam_layers: of the deformable encoder of SAM's features.
        behaviour: "official" repeats the official program, whose weights need it; see `docs/methods/cmpf.md`.
        others: as in `FcClip`.
    """

    def __init__(
        self,
        clip: ClipConvNeXt | ClipResNet,
        sam: SamFamily,
        *,
        query_layers: Sequence[int] = (3, 6, 9),
        feature_layers: Sequence[int] = (1, 4, 7),
        width: int = 256,
        heads: int = 8,
        pixel_feedforward: int = 1024,
        sam_layers: int = 6,
        behaviour: Behaviour = "paper",
        **others: Any,
    ) -> None:
        super().__init__(clip, width=width, heads=heads, pixel_feedforward=pixel_feedforward, behaviour=behaviour, **others)
        self.sam: SamFamily = sam.requires_grad_(False)
        self.query_injector = (
            QueryInjector(query_layers, channels=sam.channels, own_projection=None if sam.channels == width else width)
            if query_layers
            else None
        )
        self.feature_injector, self.sam_features = None, None
        if feature_layers:
            self.feature_injector = FeatureInjector(feature_layers, width=width, heads=heads, behaviour=behaviour)
            self.sam_features = SamFeatures(
                sam.channels,
                width=width,
                layers=sam_layers,
                heads=heads,
                feedforward=pixel_feedforward,
                behaviour=behaviour,
            )

    def parts(self) -> Mapping[str, nn.Module]:
        own: dict[str, nn.Module | None] = {
            "sam": self.sam,
            "sam_features": self.sam_features,
            "query_injector": self.query_injector,
            "feature_injector": self.feature_injector,
        }
        return {**super().parts(), **{name: part for name, part in own.items() if part is not None}}

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts()) - {"clip", "sam"}

    def train(self, mode: bool = True) -> Cmpf:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        self.sam.eval()
        return self

    def injection(self, pixels: Tensor, inner: Size) -> SamInjection | None:
        """What SAM sees, ready for both injectors; None if there are none."""
        if self.query_injector is None and self.feature_injector is None:
            return None
        embedding = self.sam_embedding(pixels, inner)
        context = None if self.sam_features is None else self.sam_features(embedding)
        return SamInjection(embedding, context, self.query_injector, self.feature_injector)

    @torch.no_grad()
    def sam_embedding(self, pixels: Tensor, inner: Size) -> Tensor:
        """SAM's image embedding [B, C_sam, g, g] of the network input [B, 3, H, W] with images of ``inner`` size in it.

        The padded picture, not the picture, is stretched to SAM's square, whatever its shape. [official code]
        """
        mean, std = (pixels.new_tensor(rgb)[:, None, None] for rgb in (SAM_MEAN, SAM_STD))
        normalised = torch.zeros_like(pixels)
        normalised[..., : inner[0], : inner[1]] = ((255 * pixels - mean) / std)[..., : inner[0], : inner[1]]
        side = (self.sam.image_size, self.sam.image_size)
        return self.sam.encode(functional.interpolate(normalised, side, mode="bilinear", align_corners=False))
