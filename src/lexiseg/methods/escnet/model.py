"""ESC-Net (Lee et al., "Effective SAM Combination for Open-Vocabulary Semantic Segmentation", CVPR 2025).

Correlation maps of CLIP become prompts for the blocks of SAM's mask decoder, which refine CLIP's features for each class; SAM's
image encoder is not used. The refined features guide the aggregation of the correlations, in four ESC blocks; then they are
decoded.

    Eq. (1)   correlation maps                                   `CorrelationSegmenter.encode`
    Sec. 3.3  pseudo prompts: points and masks, k-means          `prompts.py`
    Eq. (2)   SAM blocks on CLIP's features                      `PromptedBlocks` in `blocks.py`, `EscNet._prompted`, `_mean`
    Sec. 3.5  vision-language fusion                             `VisionLanguageFusion` in `blocks.py`
    Sec. 3.6  mask prediction decoder                            `UNetDecoder` in `blocks.py`

Letters: F_v image features, F_l text features, C_vl correlation maps, C_e embedded correlations, P probabilities; B images,
K classes, k of them in a part, D joint width, C channels of SAM, E of C_e, h × w cells.

Classes interact only in sums (the softmax of the probabilities, the keys and values of linear attention, a mean in Eq. 2) and
all else is of each class by itself. So they can be processed in parts (`classes_at_once`) with the same result, and their order
does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sam import SamFamily
from lexiseg.layers.memory import part_of
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, class_loss, class_masks, pixel_loss
from lexiseg.methods.correlation import LEVELS, CorrelationSegmenter, CostVolume, mean_losses
from lexiseg.methods.escnet.blocks import PromptedBlocks, UNetDecoder, VisionLanguageFusion
from lexiseg.methods.escnet.config import EscNetConfig
from lexiseg.methods.escnet.prompts import PseudoPrompts, probabilities, pseudo_prompts
from lexiseg.ops.options import NonNegative, options
from lexiseg.structures import OUTSIDE, ImageBatch, MaskTarget, TextEmbeddings, Trace

LABELLED = PixelLossOptions(unlabelled="ignored")  # [decided]


@options(frozen=True)
class EscNetLossOptions:
    """Options of the losses of ESC-Net."""

    pixels: PixelLossOptions = LABELLED
    """Options of the paper's loss, on the decoded logits."""
    maps: NonNegative = 0.1
    """Weight of an auxiliary loss on the correlation maps between blocks, the source of prompts; without it their sign is not
    determined.  # [decided]"""


class EscBlock(nn.Module):
    """ESC block without its SAM block.

    Args:
        joint: D.
        channels: C of SAM; 0 without SAM.
        config: options of the model.
        followed: whether another block follows, whose prompts need updated correlation maps.
    """

    def __init__(self, joint: int, channels: int, config: EscNetConfig, *, followed: bool) -> None:
        super().__init__()
        self.bypass = config.bypass
        if channels:
            self.image_to_sam, self.text_to_sam = nn.Linear(joint, channels), nn.Linear(joint, channels)
            self.sam_to_image = nn.Linear(channels, joint)  # Conv(.) of Eq. (2)
        self.fusion = VisionLanguageFusion(
            joint,
            config.hidden_dim,
            config.num_heads,
            config.window_size,
            swin_blocks=config.num_swin_blocks,
            guide_values=config.guide_values,
        )
        self.map = nn.Linear(config.hidden_dim, 1) if followed else None  # C'_e -> C_vl, a residual  # [decided]
        if self.map is not None:
            nn.init.zeros_(self.map.weight)  # at initialisation correlations are those of CLIP
            nn.init.zeros_(self.map.bias)

    def merged(self, F_v: Tensor, F_vn: Tensor) -> Tensor:
        """F'_v [B, h, w, D] by Eq. (2), second line, from F_v and one map F_vn [B, h, w, C] for all classes."""
        F_v_new: Tensor = self.sam_to_image(F_vn)
        return F_v + F_v_new if self.bypass else F_v_new

    def guide_of_each(self, F_v: Tensor, F_vn: Tensor) -> Tensor:
        """Guides [B, k, h, w, E] of k classes from F_v [B, h, w, D] and their (F_v^n)' [B, k, h, w, C].

        They are ``fusion.appearance(merged(F_v, F_vn))`` of each class; both are linear, so F'_v of D channels a class is never
        computed.
        """
        appearance, conv = self.fusion.appearance, self.sam_to_image
        bias = functional.linear(conv.bias, appearance.weight, appearance.bias)
        guide = functional.linear(F_vn, appearance.weight @ conv.weight, bias)
        return guide + functional.linear(F_v, appearance.weight).unsqueeze(1) if self.bypass else guide


class EscNet(CorrelationSegmenter):
    """ESC-Net.

    Args:
        clip: see `CorrelationSegmenter`.
        sam: SAM whose prompt encoder and mask decoder blocks are copied.
        config: options of the model.

    Raises:
        UsageError: invalid ``prompts``.
    """

    key = "escnet"
    reference = 'Lee et al.: "Effective SAM Combination for Open-Vocabulary Semantic Segmentation", CVPR 2025'
    config: EscNetConfig

    def __init__(self, clip: ClipViT, sam: SamFamily, config: EscNetConfig = EscNetConfig()) -> None:
        super().__init__(clip, config)
        self.sam: nn.Module = nn.Identity()
        if config.sam_blocks != "none":
            random = config.sam_blocks == "random"
            self.sam = PromptedBlocks(sam, config.num_blocks, config.prompts, config.mask_prompts, random=random)
        channels = 0 if config.sam_blocks == "none" else sam.channels
        self.embedding = nn.Linear(1, config.hidden_dim)  # Sec. 3.5, the 1 × 1 convolution
        self.blocks = nn.ModuleList(
            EscBlock(clip.width, channels, config, followed=number + 1 < config.num_blocks)
            for number in range(config.num_blocks)
        )
        levels = clip.channels[:LEVELS][::-1]
        self.decoder = UNetDecoder(config.hidden_dim, levels, config.skip_channels, config.decoder_channels)

    def parts(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self, name) for name in ("clip", "sam", "embedding", "blocks", "decoder")}

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: EscNetLossOptions | None = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of a training batch, see `CorrelationSegmenter.loss`."""
        del draw
        options = options or EscNetLossOptions()
        parts = self.training_parts(self.encode_in_training(images, text), targets, options.pixels)
        return mean_losses(self._losses(volume, own, options) for volume, own in parts)

    def _losses(self, volume: CostVolume, targets: Sequence[MaskTarget], options: EscNetLossOptions) -> dict[str, Tensor]:
        """Compute the losses of a part of a batch."""
        logits, maps = self._decoded(volume)
        losses = {"pixels": pixel_loss(logits, targets, options.pixels)}
        if between := maps[1:]:  # the first are those of CLIP
            truth = torch.stack([class_masks(target, logits.shape[1]) for target in targets]).to(logits.dtype)
            each = [class_loss(self.clip.logit_scale * C_vl, truth) for C_vl in between]
            losses["maps"] = options.maps * torch.stack(each).mean()
        return losses

    def decode(self, volume: CostVolume, trace: Trace | None = None, /) -> Tensor:
        """Decode to logits [B, K, 4h, 4w]; with ``max_classes`` only the top classes of each view.

        A trace receives for each block, numbered from 1: ``correlation_1`` [K, h, w], the correlation maps it begins with; and
        of its prompts ``probability_1`` [K, h, w], and ``regions_1`` [K, h, w], the region number of each cell from 1, or 0.
        All are 0 for classes outside the top-k.
        """
        classes, chosen = volume.cost.shape[1], self.nearest(volume.cost)
        if chosen is None:
            logits, maps = self._decoded(volume)
            if trace is not None:
                trace |= self._traced(maps)
            return logits
        outputs = []
        for number, nearest in enumerate(chosen):
            logits, maps = self._decoded(volume.view(number, nearest))
            everything = logits.new_full((1, classes, *logits.shape[2:]), OUTSIDE)
            outputs.append(everything.index_copy(1, nearest, logits))
            if trace is not None:
                trace |= {
                    name: values.new_zeros(classes, *values.shape[1:]).index_copy(0, nearest, values)
                    for name, values in self._traced(maps).items()
                }
        return torch.cat(outputs)

    def _decoded(self, volume: CostVolume) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, K, 4h, 4w], and the correlation maps C_vl [B, K, h, w] that each block begins with."""
        F_v, F_l = volume.dense.movedim(1, -1), functional.normalize(volume.classes, dim=-1)  # [B, h, w, D], [K, D]
        C_vl = volume.cost  # Eq. (1)
        C_e, maps = self.embedding(C_vl.unsqueeze(-1)), []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, EscBlock)
            maps.append(C_vl)
            F_v, C_e = self._refined(number, block, F_v, F_l, C_vl, C_e)
            if block.map is not None:
                C_vl = C_vl + block.map(C_e).squeeze(-1)
        guides = self.decoder.guides(volume.levels[::-1])
        return self._in_parts(partial(self.decoder, guides=guides), C_e), maps

    def _refined(
        self, number: int, block: EscBlock, F_v: Tensor, F_l: Tensor, C_vl: Tensor, C_e: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ESC block ``number`` (Fig. 2): the next block's F_v [B, h, w, D], and C'_e [B, K, h, w, E]."""
        if not isinstance(self.sam, PromptedBlocks):
            return F_v, self._in_parts(partial(block.fusion, guide=block.fusion.appearance(F_v), F_l=F_l), C_e)
        P = self._probability(C_vl)
        prompted = P, block.text_to_sam(F_l).expand(len(P), -1, -1)
        prompt = partial(self._prompted, number, block.image_to_sam(F_v))
        if self.config.guidance != "class":  # Eq. (2), second line: one map for all classes
            F_v = block.merged(F_v, self._mean(prompt, self._weights(C_vl), prompted))
            return F_v, self._in_parts(partial(block.fusion, guide=block.fusion.appearance(F_v), F_l=F_l), C_e)

        def fuse(C_e: Tensor, *prompted: Tensor) -> Tensor:
            return block.fusion(C_e, block.guide_of_each(F_v, prompt(*prompted)), F_l)

        return F_v, self._in_parts(fuse, C_e, *prompted)

    def _probability(self, C_vl: Tensor) -> Tensor:
        """Class probabilities P [B, K, h, w] of the cells (Fig. 3 b)."""
        return probabilities(C_vl, self.clip.logit_scale, self.config.probability, normalise=self.config.normalise)

    def _prompts(self, P: Tensor) -> PseudoPrompts:
        """Pseudo prompts of N classes from their probabilities [N, h, w] (Fig. 3 c to e)."""
        return pseudo_prompts(P, self.config.num_regions, self.config.threshold, never_empty=self.config.normalise)

    def _prompted(self, number: int, cells: Tensor, P: Tensor, names: Tensor) -> Tensor:
        """Eq. (2), first line: (F_v^n)' [B, k, h, w, C] of k classes, by SAM block ``number``.

        Args:
            number: index of the block.
            cells: F_v [B, h, w, C] in SAM's width.
            P: probabilities [B, k, h, w].
            names: F_l [B, k, C] in SAM's width.
        """
        images, classes, *size = P.shape
        prompts = self._prompts(P.flatten(0, 1))
        cells = cells.flatten(1, 2).repeat_interleave(classes, dim=0)
        F_vn: Tensor = self.sam(number, names.flatten(0, 1), cells, prompts)
        return F_vn.view(images, classes, *size, -1)

    def _weights(self, C_vl: Tensor) -> Tensor:
        """Weights [B, K, h, w] of the classes in the one map of Eq. (2), which sum to 1 in every cell."""
        if self.config.guidance == "mean":
            return torch.full_like(C_vl, 1 / C_vl.shape[1])
        return (C_vl * self.clip.logit_scale).softmax(1)

    def _mean(self, prompt: Callable[..., Tensor], weights: Tensor, prompted: Sequence[Tensor]) -> Tensor:
        """Weighted mean over the classes of (F_v^n)' [B, k, h, w, C], one part of them at a time: [B, h, w, C]."""
        exact = torch.float32 if weights.device.type == "mps" else torch.float64  # independent of parts and order of classes

        def weighted(weights: Tensor, *prompted: Tensor) -> Tensor:
            return torch.einsum("bkhw,bkhwc->bhwc", weights.to(exact), prompt(*prompted).to(exact))

        at_once = self.config.classes_at_once or weights.shape[1]
        parts = list(zip(*(each.split(at_once, dim=1) for each in (weights, *prompted)), strict=True))
        total = sum((part_of(weighted, *part, alone=len(parts) == 1) for part in parts), weights.new_zeros((), dtype=exact))
        return total.to(weights.dtype)

    def _traced(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `decode` adds to a trace, from the correlation maps [1, K, h, w] that each block begins with."""
        traced: dict[str, Tensor] = {}
        numbers = torch.arange(1, self.config.num_regions + 1, device=maps[0].device)[:, None, None]
        for number, C_vl in enumerate(maps, start=1):
            traced[f"correlation_{number}"] = C_vl[0]
            if isinstance(self.sam, PromptedBlocks):
                P = self._probability(C_vl)[0]
                traced[f"probability_{number}"] = P
                traced[f"regions_{number}"] = (self._prompts(P).members * numbers).sum(1).to(P.dtype)
        return traced

    def _in_parts(self, work: Callable[..., Tensor], C_e: Tensor, *others: Tensor) -> Tensor:
        """Apply ``work`` to [B, K, ...] each, `classes_at_once` classes at a time; writes to C_e if possible."""
        if self.config.classes_at_once is None:
            return work(C_e, *others)
        parts = list(zip(*(each.split(self.config.classes_at_once, dim=1) for each in (C_e, *others)), strict=True))
        if torch.is_grad_enabled():
            return torch.cat([part_of(work, *part, alone=len(parts) == 1) for part in parts], dim=1)
        first = work(*parts[0])
        if first.shape != parts[0][0].shape:
            return torch.cat([first, *(work(*part) for part in parts[1:])], dim=1)
        for number, part in enumerate(parts):
            part[0].copy_(work(*part) if number else first)
        return C_e
