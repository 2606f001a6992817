"""ESC-Net (Lee et al., "Effective SAM Combination for Open-Vocabulary Semantic Segmentation", CVPR 2025).

CLIP's correlations of cells and classes become prompts for the blocks of SAM's mask decoder, which look at CLIP's features;
SAM's image encoder is not needed. What they see refines the correlations, four times; then they are decoded.

    Eq. (1)   correlations                                       `CorrelationSegmenter.see`
    Sec. 3.3  pseudo prompts: points and masks, k-means          `prompts.py`
    Eq. (2)   SAM blocks on CLIP's features                      `PromptedBlocks` in `blocks.py`, `EscNet._refined`
    Sec. 3.5  vision-language fusion                             `VisionLanguageFusion` in `blocks.py`
    Sec. 3.6  mask prediction decoder                            `UNetDecoder` in `blocks.py`

Classes meet in two sums only, the mean of Eq. (2) and the keys and values of the fusion's linear attention. So they may be
taken in parts (`classes_at_once`) with the same result, and their order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sam import SamFamily
from lexiseg.errors import UsageError
from lexiseg.layers.cost_aggregation import NEVER, nearest_classes
from lexiseg.layers.memory import part_of
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, class_loss, class_masks, pixel_loss
from lexiseg.methods.correlation import LEVELS, CorrelationSegmenter, Seen
from lexiseg.methods.escnet.blocks import PromptedBlocks, UNetDecoder, VisionLanguageFusion
from lexiseg.methods.escnet.prompts import Probability, probabilities, pseudo_prompts
from lexiseg.structures import ImageBatch, MaskTarget, TextEmbeddings, Trace

LABELLED = PixelLossOptions(unlabelled="ignored")  # [decided]


@dataclass(frozen=True)
class EscNetLossOptions:
    """What the loss is made of.

    Attributes:
        pixels: of the decoded classes, the paper's.
        maps: weight of the correlations between blocks, whose softmax over the classes the prompts are made of; without a loss
            of their own nothing tells them from their opposite.  # [decided]
    """

    pixels: PixelLossOptions = LABELLED
    maps: float = 0.1


SamBlocks = Literal["pretrained", "random", "none"]


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
        clip, side, sliding, templates, trained_on: see `CorrelationSegmenter`; the paper looks at the whole picture only.
        sam: gives its prompt encoder and the blocks of its mask decoder, which become this model's own.
        blocks: N.
        regions: O, pseudo points and masks a class.
        threshold: alpha.
        prompts: the kinds that are used, of "points", "boxes" and "masks" (Table 3).
        probability: what the softmax of the correlations is over, "classes" or "space".
        sam_blocks: (Table 2) "pretrained"; "random": the same, not trained by anybody yet; "none": images are not refined,
            and there are no prompts.
        width: E.
        heads, window: of the fusion; the grid of cells is cut into windows of ``window`` cells a side.
        decoder, skips: channels after each enlargement, and of what CLIP adds to it.
        most: of more classes those are kept in each image that come closest to one of its cells; 0 keeps all.
        classes_at_once: bounds the memory; the result is the same. None takes all at once.

    Raises:
        UsageError: unknown prompts, or a SAM that has no such blocks.
    """

    def __init__(
        self,
        clip: ClipViT,
        sam: SamFamily,
        *,
        side: int = 336,
        sliding: bool = False,
        templates: str = "catseg",
        trained_on: str | None = None,
        blocks: int = 4,
        regions: int = 5,
        threshold: float = 0.5,
        prompts: Collection[str] = ("points", "masks"),
        probability: Probability = "classes",
        sam_blocks: SamBlocks = "pretrained",
        width: int = 128,
        heads: int = 4,
        window: int = 12,
        decoder: Sequence[int] = (64, 32),
        skips: Sequence[int] = (32, 16),
        most: int = 0,
        classes_at_once: int | None = 32,
    ) -> None:
        super().__init__(clip, side=side, sliding=sliding, templates=templates, trained_on=trained_on)
        if blocks < 1 or regions < 1:
            raise UsageError(f"ESC-Net has one block and one region a class or more, not {blocks} and {regions}")
        self.regions, self.threshold, self.probability = regions, threshold, probability
        self.most, self.classes_at_once = most, classes_at_once
        self.sam: nn.Module = nn.Identity()
        if sam_blocks != "none":
            self.sam = PromptedBlocks(sam, blocks, prompts, random=sam_blocks == "random")
        channels = 0 if sam_blocks == "none" else sam.channels
        self.embedding = nn.Linear(1, width)
        self.blocks = nn.ModuleList(
            EscBlock(clip.width, channels, width, heads, window, followed=channels > 0 and number + 1 < blocks)
            for number in range(blocks)
        )
        self.decoder = UNetDecoder(width, clip.channels[:LEVELS][::-1], skips, decoder)

    def parts(self) -> Mapping[str, nn.Module]:
        return {name: getattr(self, name) for name in ("clip", "sam", "embedding", "blocks", "decoder")}

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: EscNetLossOptions | None = None,
        draw: PointSource | None = None,  # noqa: ARG002 - every pixel counts
    ) -> dict[str, Tensor]:
        """See `CorrelationSegmenter.loss`."""
        options = options or EscNetLossOptions()
        seen, between = self.see(images.pixels, text), list[Tensor]()
        logits = self._decoded(seen, between=between)
        losses = {"pixels": pixel_loss(logits, targets, options.pixels)}
        if between and options.maps:
            truth = torch.stack([class_masks(target, logits.shape[1]) for target in targets]).to(logits.dtype)
            each = [self.clip.logit_scale * maps for maps in between]
            losses["maps"] = options.maps * sum((class_loss(maps, truth) for maps in each), logits.new_zeros(())) / len(each)
        return losses

    def decode(self, seen: Seen, masks: Sequence[Tensor] | None = None, *, trace: Trace | None = None) -> Tensor:  # noqa: ARG002
        """Logits [B, K, 4h, 4w]; of many classes each square's nearest ones.

        A trace gets of each block, numbered from 1: ``correlation_1`` [K, h, w], what its prompts are made of (and the block
        before made); ``probability_1`` [K, h, w], and ``regions_1`` [K, h, w], the number of the region of each cell from 1,
        or 0. All are 0 for classes that are left out.
        """
        classes, chosen = seen.costs.shape[1], nearest_classes(seen.costs, self.most)
        if chosen is None:
            return self._decoded(seen, trace=trace)
        found = []
        for number, nearest in enumerate(chosen):
            one, inner = slice(number, number + 1), None if trace is None else Trace()
            levels = tuple(level[one] for level in seen.levels)
            logits = self._decoded(Seen(seen.dense[one], seen.classes[nearest], seen.costs[one, nearest], levels), trace=inner)
            everything = logits.new_full((1, classes, *logits.shape[2:]), NEVER)
            found.append(everything.index_copy(1, nearest, logits))
            if trace is not None:
                trace |= {
                    name: maps.new_zeros(classes, *maps.shape[1:]).index_copy(0, nearest, maps)
                    for name, maps in (inner or {}).items()
                }
        return torch.cat(found)

    def _decoded(self, seen: Seen, *, trace: Trace | None = None, between: list[Tensor] | None = None) -> Tensor:
        text = functional.normalize(seen.classes, dim=-1)
        maps, features = seen.costs, seen.dense
        volume = self.embedding(maps.unsqueeze(-1))
        for number, block in enumerate(self.blocks):
            assert isinstance(block, EscBlock)
            features = self._refined(number, block, features, maps, text, trace)
            volume = self._in_parts(partial(block.fusion, features=features, text=text), volume)
            if block.map is not None:
                maps = maps + block.map(volume).squeeze(-1)
                if between is not None:
                    between.append(maps)
        return self._in_parts(partial(self.decoder, guides=self.decoder.guides(seen.levels[::-1])), volume)

    def _refined(
        self, number: int, block: EscBlock, features: Tensor, maps: Tensor, text: Tensor, trace: Trace | None
    ) -> Tensor:
        """CLIP's features [B, D, h, w] after the SAM block of this number, asked for each class (Eq. 2)."""
        if not isinstance(self.sam, PromptedBlocks):
            return features
        side = features.shape[-1]
        probability = probabilities(maps, self.clip.logit_scale, self.probability)
        if trace is not None:
            members = pseudo_prompts(probability[0], self.regions, self.threshold).members
            numbers = torch.arange(1, self.regions + 1, device=members.device)[:, None, None]
            traced = {"correlation": maps[0], "probability": probability[0], "regions": (members * numbers).sum(1).float()}
            trace |= {f"{name}_{number + 1}": values for name, values in traced.items()}
        cells, names = block.image_to_sam(features.flatten(2).mT), block.text_to_sam(text)
        exact = torch.float32 if cells.device.type == "mps" else torch.float64  # so that parts and order change no prompt
        total, at_once = torch.zeros_like(cells, dtype=exact), self.classes_at_once or len(text)
        ask = partial(self._asked, self.sam, number, cells, exact)
        for some, own in zip(probability.split(at_once, dim=1), names.split(at_once), strict=True):
            total = total + part_of(ask, some, own, alone=at_once >= len(text))
        # Eq. (2), its second line: one 1 × 1 convolution for all classes, and their mean, whatever their number  # [decided]
        return features + block.sam_to_image((total / len(text)).to(cells.dtype)).mT.unflatten(-1, (side, side))

    def _asked(
        self, sam: PromptedBlocks, number: int, cells: Tensor, exact: torch.dtype, probability: Tensor, names: Tensor
    ) -> Tensor:
        """The sum of the cells [B, h · w, C] as some classes see them, of probabilities [B, k, h, w] and names [k, C]."""
        prompts = pseudo_prompts(probability.flatten(0, 1), self.regions, self.threshold)
        each = names.repeat(len(cells), 1), cells.repeat_interleave(len(names), dim=0)
        refined = sam(number, *each, prompts)  # Eq. (2), its first line
        return refined.unflatten(0, (len(cells), -1)).sum(1, dtype=exact)

    def _in_parts(self, work: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
        """What ``work`` makes of a volume [B, K, ...], some classes at a time; in its place where that is possible."""
        if self.classes_at_once is None:
            return work(volume)
        parts = volume.split(self.classes_at_once, dim=1)
        if torch.is_grad_enabled():
            return torch.cat([part_of(work, part, alone=len(parts) == 1) for part in parts], dim=1)
        first = work(parts[0])
        if first.shape != parts[0].shape:
            return torch.cat([first, *map(work, parts[1:])], dim=1)
        for part in parts:
            part.copy_(first if part is parts[0] else work(part))
        return volume
