"""FOV-Seg: FiSeR and TeVA on a frozen mask proposer and CLIP's mask tokens.

MaskCLIP without its relative attention; in every block the mask tokens attend to the class embeddings before they attend to
their patches. Of CLIP only the query projections of the vision tower are trained.

    Eq. (1)-(6)    FiSeR, in training                            `lexiseg.losses.fiser`
    Eq. (7), (8)   mask-image attention, by CLIP's weights       `lexiseg.backbones.clip_vit.attended`
    Eq. (9), (10)  mask-target attention                         `MaskTargetAttention` in `teva.py`
    Eq. (11)       attention mask of the patches                 `lexiseg.methods.maskclip.model.touched`
    Eq. (12)       λ_CE L_CE                                     `MaskClip.loss`
                   λ_FiSeR L_FiSeR                               `lexiseg.training.objective`
    Sec. V-C       distribution adapter                          `DistributionAdapter` in `teva.py`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from lexiseg.backbones.clip_base import ClipFeatures
from lexiseg.backbones.clip_vit import ClipViT, attended, visible
from lexiseg.backbones.proposals import MaskProposer
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.fovseg.config import FovSegConfig
from lexiseg.methods.fovseg.teva import DistributionAdapter, MaskTargetAttention, bias_of
from lexiseg.methods.maskclip.model import MaskClip, touched
from lexiseg.structures import TextEmbeddings


class FovSeg(MaskClip):
    """FOV-Seg: MaskCLIP whose mask tokens attend to class embeddings.

    Args:
        clip, proposer: see `MaskClip`.
        config: options of the model.
    """

    key = "fovseg"
    reference = 'Chng et al.: "Aligning Vision-Language Model with Fine-grained Semantics for Open-Vocabulary Segmentation"'
    position_interpolation = "bilinear"
    loss_options: ClassVar[SetLossOptions] = SetLossOptions(
        mask=0.0, dice=0.0, void=0.0
    )  # Eq. (12): λ_CE = 2; masks are frozen
    config: FovSegConfig

    def __init__(self, clip: ClipViT, proposer: MaskProposer, config: FovSegConfig = FovSegConfig()) -> None:
        super().__init__(clip, proposer, config)
        width, zero = clip.channels[0], config.teva_update != "replace"
        number = 0 if not config.teva else 1 if config.teva_shared else clip.depth
        self.teva = nn.ModuleList(
            MaskTargetAttention(width, clip.width, config.teva_bottleneck, zero=zero) for _ in range(number)
        )
        self.adapter: nn.Module = DistributionAdapter(config.adapter_layers) if config.adapter_layers else nn.Identity()

    def parts(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self, name) for name in ("clip", "proposer", "teva", "adapter", "void")}

    def _embedded(self, features: ClipFeatures, masks: Tensor, text: TextEmbeddings, /) -> tuple[Tensor, Tensor]:
        seen = touched(masks, features.grid, self.clip.strides[0])
        attn_mask = visible(seen, class_token=self.config.class_token == "always")  # Eq. (11)
        adapted = isinstance(self.adapter, DistributionAdapter)
        bias = bias_of(self.adapter(masks, features.grid)) if adapted else None
        targets = text.mean()

        def attend(number: int, block: Any, tokens: Tensor, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            return self.attend_by_names(number, block, tokens, image, targets, attn_mask, bias), masks

        return self.clip.mask_tokens(features, masks, attend)

    def attend_by_names(
        self,
        number: int,
        block: Any,
        tokens: Tensor,
        image: Tensor,
        targets: Tensor,
        attn_mask: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Attention output of the mask tokens in a block, [B, Q, C]: TeVA, or mask attention without it.

        Args:
            number: index of the block, from 0.
            block, tokens, image, attn_mask, bias: see `attended`.
            targets: class embeddings [t, D].
        """
        if not len(self.teva):
            return attended(block, tokens, image, attn_mask, bias)
        update: Tensor = self.teva[number % len(self.teva)](tokens, targets)  # Eq. (9), Eq. (10)
        how = self.config.teva_update
        query = update if how == "replace" else tokens + update  # [decided]
        taken = attended(block, query, image, attn_mask, bias)  # Eq. (7), Eq. (8)
        return update + taken if how == "add" else taken
