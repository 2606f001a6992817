"""ESC-Net (Lee et al., "Effective SAM Combination for Open-Vocabulary Semantic Segmentation", CVPR 2025).

CLIP's correlations of cells and classes become prompts for the blocks of SAM's mask decoder, which look at CLIP's features;
SAM's image encoder is not needed. What they see refines the correlations, four times; then they are decoded.

    Eq. (1)   correlations                                       `CorrelationSegmenter.encode`
    Sec. 3.3  pseudo prompts: points and masks, k-means          `prompts.py`
    Eq. (2)   SAM blocks on CLIP's features                      `PromptedBlocks` in `blocks.py`, `EscNet._refined`
    Sec. 3.5  vision-language fusion                             `VisionLanguageFusion` in `blocks.py`
    Sec. 3.6  mask prediction decoder                            `UNetDecoder` in `blocks.py`

Classes meet in two sums only, the mean of Eq. (2) and the keys and values of the fusion's linear attention. So they may be
taken in parts (`classes_at_once`) with the same result, and their order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sam import SamFamily
from lexiseg.layers.cost_aggregation import NEVER, nearest_classes
from lexiseg.layers.memory import part_of
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, class_loss, class_masks, pixel_loss
from lexiseg.methods.correlation import LEVELS, CorrelationSegmenter, CostVolume
from lexiseg.methods.escnet.blocks import PromptedBlocks, UNetDecoder, VisionLanguageFusion
from lexiseg.methods.escnet.config import EscNetConfig
from lexiseg.methods.escnet.prompts import probabilities, pseudo_prompts
from lexiseg.ops.options import NonNegative, options
from lexiseg.structures import ImageBatch, MaskTarget, TextEmbeddings, Trace

LABELLED = PixelLossOptions(unlabelled="ignored")  # [decided]


@options(frozen=True)
class EscNetLossOptions:
    """Loss of ESC-Net."""

    pixels: PixelLossOptions = LABELLED
    """Of the decoded classes, the paper's."""
    maps: NonNegative = 0.1
    """Weight of the loss of the correlations between blocks, whose softmax over the classes the prompts are made of; without
    a loss of their own nothing tells them from their opposite.  # [decided]"""


class EscBlock(nn.Module):
    """What an ESC block has beside its SAM block.

    Args:
        joint: D.
        channels: C, SAM's; 0 without SAM.
        width: E.
        heads, window: of the fusion.
        followed: whether another block follows, which takes its prompts from this one's correlations.
    """

    def __init__(self, joint: int, channels: int, width: int, heads: int, window: int, *, followed: bool) -> None:
        super().__init__()
        if channels:
            self.image_to_sam, self.text_to_sam = nn.Linear(joint, channels), nn.Linear(joint, channels)
            self.sam_to_image = nn.Linear(channels, joint)
        self.fusion = VisionLanguageFusion(width, joint, heads, window)
        self.map = nn.Linear(width, 1) if followed else None  # C_e -> 1, added to the correlations before it  # [decided]
        if self.map is not None:
            nn.init.zeros_(self.map.weight)  # before it has learnt, correlations stay what CLIP says
            nn.init.zeros_(self.map.bias)


class EscNet(CorrelationSegmenter):
    """Effective SAM combination.

    Args:
        clip: see `CorrelationSegmenter`.
        sam: gives its prompt encoder and the blocks of its mask decoder, which become this model's own.
        config: blocks, prompts and decoder.

    Raises:
        UsageError: a SAM that has no such blocks.
    """

    key = "escnet"
    config: EscNetConfig

    def __init__(self, clip: ClipViT, sam: SamFamily, config: EscNetConfig = EscNetConfig()) -> None:
        super().__init__(clip, config)
        self.sam: nn.Module = nn.Identity()
        if config.sam_blocks != "none":
            self.sam = PromptedBlocks(sam, config.num_blocks, config.prompts, random=config.sam_blocks == "random")
        channels = 0 if config.sam_blocks == "none" else sam.channels
        width, heads, window = config.hidden_dim, config.num_heads, config.window_size
        self.embedding = nn.Linear(1, width)
        self.blocks = nn.ModuleList(
            EscBlock(clip.width, channels, width, heads, window, followed=channels > 0 and number + 1 < config.num_blocks)
            for number in range(config.num_blocks)
        )
        levels = clip.channels[:LEVELS][::-1]
        self.decoder = UNetDecoder(width, levels, config.skip_channels, config.decoder_channels)

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
        """See `CorrelationSegmenter.loss`."""
        del draw
        options = options or EscNetLossOptions()
        volume, between = self.encode(images.pixels, text), list[Tensor]()
        logits = self._decoded(volume, between=between)
        losses = {"pixels": pixel_loss(logits, targets, options.pixels)}
        if between and options.maps:
            truth = torch.stack([class_masks(target, logits.shape[1]) for target in targets]).to(logits.dtype)
            each = [self.clip.logit_scale * maps for maps in between]
            losses["maps"] = options.maps * sum((class_loss(maps, truth) for maps in each), logits.new_zeros(())) / len(each)
        return losses

    def decode(self, volume: CostVolume, trace: Trace | None = None, /) -> Tensor:
        """Logits [B, K, 4h, 4w]; of many classes each view's nearest ones.

        A trace gets of each block, numbered from 1: ``correlation_1`` [K, h, w], what its prompts are made of (and the block
        before made); ``probability_1`` [K, h, w], and ``regions_1`` [K, h, w], the number of the region of each cell from 1,
        or 0. All are 0 for classes that are left out.
        """
        classes, chosen = volume.cost.shape[1], nearest_classes(volume.cost, self.config.max_classes)
        if chosen is None:
            return self._decoded(volume, trace=trace)
        found = []
        for number, nearest in enumerate(chosen):
            one, inner = slice(number, number + 1), None if trace is None else Trace()
            levels = tuple(level[one] for level in volume.levels)
            logits = self._decoded(
                CostVolume(volume.dense[one], volume.classes[nearest], volume.cost[one, nearest], levels), trace=inner
            )
            everything = logits.new_full((1, classes, *logits.shape[2:]), NEVER)
            found.append(everything.index_copy(1, nearest, logits))
            if trace is not None:
                trace |= {
                    name: maps.new_zeros(classes, *maps.shape[1:]).index_copy(0, nearest, maps)
                    for name, maps in (inner or {}).items()
                }
        return torch.cat(found)

    def _decoded(self, volume: CostVolume, *, trace: Trace | None = None, between: list[Tensor] | None = None) -> Tensor:
        text = functional.normalize(volume.classes, dim=-1)
        maps, features = volume.cost, volume.dense
        cells = self.embedding(maps.unsqueeze(-1))
        for number, block in enumerate(self.blocks):
            assert isinstance(block, EscBlock)
            features = self._refined(number, block, features, maps, text, trace)
            cells = self._in_parts(partial(block.fusion, features=features, text=text), cells)
            if block.map is not None:
                maps = maps + block.map(cells).squeeze(-1)
                if between is not None:
                    between.append(maps)
        return self._in_parts(partial(self.decoder, guides=self.decoder.guides(volume.levels[::-1])), cells)

    def _refined(
        self, number: int, block: EscBlock, features: Tensor, maps: Tensor, text: Tensor, trace: Trace | None
    ) -> Tensor:
        """CLIP's features [B, D, h, w] after the SAM block of this number, asked for each class (Eq. 2)."""
        if not isinstance(self.sam, PromptedBlocks):
            return features
        side = features.shape[-1]
        probability = probabilities(maps, self.clip.logit_scale, self.config.probability)
        if trace is not None:
            members = pseudo_prompts(probability[0], self.config.num_regions, self.config.threshold).members
            numbers = torch.arange(1, self.config.num_regions + 1, device=members.device)[:, None, None]
            traced = {"correlation": maps[0], "probability": probability[0], "regions": (members * numbers).sum(1).float()}
            trace |= {f"{name}_{number + 1}": values for name, values in traced.items()}
        cells, names = block.image_to_sam(features.flatten(2).mT), block.text_to_sam(text)
        exact = torch.float32 if cells.device.type == "mps" else torch.float64  # so that parts and order change no prompt
        total, at_once = torch.zeros_like(cells, dtype=exact), self.config.classes_at_once or len(text)
        ask = partial(self._asked, self.sam, number, cells, exact)
        for some, own in zip(probability.split(at_once, dim=1), names.split(at_once), strict=True):
            total = total + part_of(ask, some, own, alone=at_once >= len(text))
        # Eq. (2), its second line: one 1 × 1 convolution for all classes, and their mean, whatever their number  # [decided]
        return features + block.sam_to_image((total / len(text)).to(cells.dtype)).mT.unflatten(-1, (side, side))

    def _asked(
        self, sam: PromptedBlocks, number: int, cells: Tensor, exact: torch.dtype, probability: Tensor, names: Tensor
    ) -> Tensor:
        """The sum of the cells [B, h · w, C] as some classes see them, of probabilities [B, k, h, w] and names [k, C]."""
        prompts = pseudo_prompts(probability.flatten(0, 1), self.config.num_regions, self.config.threshold)
        each = names.repeat(len(cells), 1), cells.repeat_interleave(len(names), dim=0)
        refined = sam(number, *each, prompts)  # Eq. (2), its first line
        return refined.unflatten(0, (len(cells), -1)).sum(1, dtype=exact)

    def _in_parts(self, work: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
        """What ``work`` makes of a volume [B, K, ...], some classes at a time; in its place where that is possible."""
        if self.config.classes_at_once is None:
            return work(volume)
        parts = volume.split(self.config.classes_at_once, dim=1)
        if torch.is_grad_enabled():
            return torch.cat([part_of(work, part, alone=len(parts) == 1) for part in parts], dim=1)
        first = work(parts[0])
        if first.shape != parts[0].shape:
            return torch.cat([first, *map(work, parts[1:])], dim=1)
        for part in parts:
            part.copy_(first if part is parts[0] else work(part))
        return volume
