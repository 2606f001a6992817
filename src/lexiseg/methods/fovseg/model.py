"""FOV-Seg: FiSeR and TeVA on a frozen mask proposer and CLIP's mask tokens.

MaskCLIP without its relative attention; in every block the mask tokens attend to the class embeddings before they attend to
their patches. Of CLIP only the query projections of the vision tower are trained.

    Eq. (1)-(6)    FiSeR, in training                            `lexiseg.losses.fiser`
    Eq. (7), (8)   mask-image attention, by CLIP's weights       `lexiseg.backbones.clip_vit.attended`
    Eq. (9), (10)  mask-target attention                         `MaskTargetAttention` in `teva.py`
    Eq. (11)       attention mask of the patches                 `lexiseg.methods.maskclip.model.touched`
    Eq. (12)       both losses                                   `FovSeg.loss`
    Sec. V-C       distribution adapter                          `DistributionAdapter` in `teva.py`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.clip_vit import ClipViT, attended, visible
from lexiseg.backbones.proposals import MaskProposer
from lexiseg.losses.fiser import Fiser
from lexiseg.losses.matching import PointSource, uniform_points
from lexiseg.losses.set_loss import SetLossOptions, set_loss
from lexiseg.methods.base import Trained
from lexiseg.methods.fovseg.config import FovSegConfig
from lexiseg.methods.fovseg.teva import DistributionAdapter, MaskTargetAttention, bias_of
from lexiseg.methods.maskclip.model import MaskClip, padded_to, touched
from lexiseg.ops.options import NonNegative, options
from lexiseg.structures import Geometry, ImageBatch, MaskPrediction, MaskTarget, TextEmbeddings


@options(frozen=True)
class FovSegLossOptions:
    """Options of the losses of Eq. (12)."""

    fiser: NonNegative = 1.0
    """λ_FiSeR, weight of the FiSeR loss."""
    classes: SetLossOptions = field(default_factory=lambda: SetLossOptions(mask=0.0, dice=0.0))
    """λ_CE and matching of proposals; proposals are frozen, so the mask losses have weight 0."""


class FovSeg(MaskClip):
    """FOV-Seg: MaskCLIP whose mask tokens attend to class embeddings.

    Args:
        clip, proposer: see `MaskClip`.
        config: options of the model.
    """

    key = "fovseg"
    position_interpolation = "bilinear"
    config: FovSegConfig

    def __init__(self, clip: ClipViT, proposer: MaskProposer, config: FovSegConfig = FovSegConfig()) -> None:
        super().__init__(clip, proposer, config)
        width, depth = clip.channels[0], clip.depth if config.teva else 0
        self.teva = nn.ModuleList(MaskTargetAttention(width, clip.width, config.teva_bottleneck) for _ in range(depth))
        self.adapter: nn.Module = DistributionAdapter(config.adapter_layers) if config.adapter_layers else nn.Identity()
        self.fiser: nn.Module = Fiser(clip, config.fiser_layers) if config.fiser_layers else nn.Identity()
        self.void = nn.Embedding(1, clip.width)

    @property
    def saved_config(self) -> FovSegConfig:
        """Config without FiSeR, whose weights are not saved."""
        return replace(self.config, fiser_layers=0)

    def parts(self) -> Mapping[str, nn.Module]:
        names = ("clip", "proposer", "teva", "adapter", "fiser", "void")
        return {name: getattr(self, name) for name in names}

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts()) - {"proposer"}

    def dropped_parts(self) -> frozenset[str]:
        return frozenset({"fiser"})

    def trainable(self) -> Iterator[Trained]:
        """Trainable parameters; of CLIP only the query rows (f_q) of packed projections in the vision tower."""
        for entry in super().trainable():
            if not entry.name.startswith("clip."):
                yield entry
            elif ".visual." in entry.name and entry.name.endswith(("attn.in_proj_weight", "attn.in_proj_bias")):
                width = len(entry.parameter) // 3
                yield replace(entry, frozen_rows=slice(width, 3 * width))

    def void_vector(self) -> Tensor | None:
        """Learned vector [D] of "no object"."""
        return self.void.weight[0]

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: FovSegLossOptions | None = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of a training batch of images of one size, Eq. (12).

        Args:
            images: B images.
            text: embeddings of the training classes.
            targets: ground truth of each image.
            options: see `FovSegLossOptions`.
            draw: random source of the matching points and of the name that FiSeR masks.
        """
        options, draw = options or FovSegLossOptions(), draw or uniform_points(images.pixels.device)
        with torch.no_grad():
            proposals = self.proposer(images.pixels)
        features = self.encode_images(padded_to(images.pixels, proposals.padded_size, self.clip.mean))
        classes, masks = self.names(features, proposals.masks, text)
        geometries = tuple(Geometry.unresized(size, proposals.padded_size) for size in images.sizes)
        prediction = MaskPrediction(masks, classes, True, geometries)
        losses = {"class": set_loss(prediction, targets, options.classes, draw)["class"]}
        if isinstance(self.fiser, Fiser):
            chance = torch.stack([draw(number, 1, 1)[0, 0, 0] for number in range(len(images))])
            patches = self.clip.patch_tokens(features)
            losses["fiser"] = options.fiser * self.fiser(self.clip, patches, text, targets, chance)  # Eq. (12)
        return losses

    def _embedded(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings, /) -> tuple[Tensor, Tensor]:
        attn_mask = visible(touched(masks, features.grid))  # Eq. (11)
        adapted = isinstance(self.adapter, DistributionAdapter)
        bias = bias_of(self.adapter(masks, features.grid)) if adapted else None
        targets = text.mean()

        def attend(number: int, block: Any, tokens: Tensor, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            if not len(self.teva):
                return attended(block, tokens, image, attn_mask, bias), masks
            text_update = self.teva[number](tokens, targets)
            return text_update + attended(block, tokens + text_update, image, attn_mask, bias), masks  # Eq. (7), Eq. (8)

        return self.clip.mask_tokens(features, masks, attend)
