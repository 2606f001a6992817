"""ESC-Net (Lee et al., "Effective SAM Combination for Open-Vocabulary Semantic Segmentation", CVPR 2025).

Correlation maps of CLIP become prompts for the blocks of SAM's mask decoder, which refine CLIP's features; SAM's image encoder
is not used. The refined features guide the aggregation of the correlations, in four ESC blocks; then they are decoded.

    Eq. (1)   correlation maps                                   `CorrelationSegmenter.encode`
    Sec. 3.3  pseudo prompts: points and masks, k-means          `prompts.py`
    Eq. (2)   SAM blocks on CLIP's features                      `PromptedBlocks` in `blocks.py`, `EscNet._refined`
    Sec. 3.5  vision-language fusion                             `VisionLanguageFusion` in `blocks.py`
    Sec. 3.6  mask prediction decoder                            `UNetDecoder` in `blocks.py`

Classes interact only in two sums, the mean of Eq. (2) and the keys and values of linear attention. So they can be processed in
chunks (`classes_at_once`) with the same result, and their order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sam import SamFamily
from lexiseg.layers.cost_aggregation import nearest_classes
from lexiseg.layers.memory import part_of
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, class_loss, class_masks, pixel_loss
from lexiseg.methods.correlation import LEVELS, CorrelationSegmenter, CostVolume
from lexiseg.methods.escnet.blocks import PromptedBlocks, UNetDecoder, VisionLanguageFusion
from lexiseg.methods.escnet.config import EscNetConfig
from lexiseg.methods.escnet.prompts import probabilities, pseudo_prompts
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
        width: E.
        heads, window: see `VisionLanguageFusion`.
        followed: whether another block follows, whose prompts need updated correlation maps.
    """

    def __init__(self, joint: int, channels: int, width: int, heads: int, window: int, *, followed: bool) -> None:
        super().__init__()
        if channels:
            self.image_to_sam, self.text_to_sam = nn.Linear(joint, channels), nn.Linear(joint, channels)
            self.sam_to_image = nn.Linear(channels, joint)
        self.fusion = VisionLanguageFusion(width, joint, heads, window)
        self.map = nn.Linear(width, 1) if followed else None  # C_e -> 1, a residual of the correlations  # [decided]
        if self.map is not None:
            nn.init.zeros_(self.map.weight)  # at initialisation correlations are those of CLIP
            nn.init.zeros_(self.map.bias)


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
        """Compute the losses of a training batch, see `CorrelationSegmenter.loss`."""
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
        """Decode to logits [B, K, 4h, 4w]; with ``max_classes`` only the top classes of each view.

        A trace receives for each block, numbered from 1: ``correlation_1`` [K, h, w], the correlation maps of its prompts;
        ``probability_1`` [K, h, w]; and ``regions_1`` [K, h, w], the region number of each cell from 1, or 0. All are 0 for
        classes outside the top-k.
        """
        classes, chosen = volume.cost.shape[1], nearest_classes(volume.cost, self.config.max_classes)
        if chosen is None:
            return self._decoded(volume, trace=trace)
        outputs = []
        for number, nearest in enumerate(chosen):
            view, inner = slice(number, number + 1), None if trace is None else Trace()
            levels = tuple(level[view] for level in volume.levels)
            logits = self._decoded(
                CostVolume(volume.dense[view], volume.classes[nearest], volume.cost[view, nearest], levels), trace=inner
            )
            everything = logits.new_full((1, classes, *logits.shape[2:]), OUTSIDE)
            outputs.append(everything.index_copy(1, nearest, logits))
            if trace is not None:
                trace |= {
                    name: maps.new_zeros(classes, *maps.shape[1:]).index_copy(0, nearest, maps)
                    for name, maps in (inner or {}).items()
                }
        return torch.cat(outputs)

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
        """Refine CLIP's features [B, D, h, w] by SAM block ``number``, prompted for each class (Eq. 2)."""
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
        exact = torch.float32 if cells.device.type == "mps" else torch.float64  # independent of chunks and order of classes
        total, at_once = torch.zeros_like(cells, dtype=exact), self.config.classes_at_once or len(text)
        refine = partial(self._refined_sum, self.sam, number, cells, exact)
        for some, own in zip(probability.split(at_once, dim=1), names.split(at_once), strict=True):
            total = total + part_of(refine, some, own, alone=at_once >= len(text))
        # Eq. (2), second line: one 1 × 1 convolution for all classes, on their mean, for any number of classes  # [decided]
        return features + block.sam_to_image((total / len(text)).to(cells.dtype)).mT.unflatten(-1, (side, side))

    def _refined_sum(
        self, sam: PromptedBlocks, number: int, cells: Tensor, exact: torch.dtype, probability: Tensor, names: Tensor
    ) -> Tensor:
        """Sum over some classes of refined cells [B, h · w, C], from probabilities [B, k, h, w] and class embeddings [k, C]."""
        prompts = pseudo_prompts(probability.flatten(0, 1), self.config.num_regions, self.config.threshold)
        each = names.repeat(len(cells), 1), cells.repeat_interleave(len(names), dim=0)
        refined = sam(number, *each, prompts)  # Eq. (2), first line
        return refined.unflatten(0, (len(cells), -1)).sum(1, dtype=exact)

    def _in_parts(self, work: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
        """Apply ``work`` to a volume [B, K, ...], `classes_at_once` classes at a time; in place if possible."""
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
