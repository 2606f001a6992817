"""SAM-MI (Chen et al., "A Mask-Injected Framework for Enhancing Open-Vocabulary Semantic Segmentation with SAM").

CAT-Seg, whose aggregation of costs is guided by SAM's masks, too.

    points     sampled where the costs say that SAM should be asked       `prompter.py`, Sec. 3.2
    M^sam      a mask a point, of frozen SAM                              `lexiseg.backbones.mask_generator`
    M          the masks of a class as one                                `aggregation.py`, Sec. 3.3
    F_mcr, F_h CLIP's maps with these masks injected                      `injection.py`, Sec. 3.4
    the rest   as it is                                                   `lexiseg.methods.catseg.model`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.mask_generator import (
    GeneratedMasks,
    Prompter,
    generate_each,
    given_points,
    grid_points,
    random_points,
)
from lexiseg.backbones.sam import SamFamily
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, pixel_loss
from lexiseg.methods.catseg.model import POOLING, cost_aggregation, guide_upsampling, upsampled
from lexiseg.methods.correlation import WHOLE, CorrelationSegmenter, CostVolume, UnitBox, ViewDecoder
from lexiseg.methods.sam_mi.aggregation import aggregate, matching_scores, members
from lexiseg.methods.sam_mi.config import SamMiConfig
from lexiseg.methods.sam_mi.injection import HighFrequencyInjection, LowFrequencyInjection
from lexiseg.methods.sam_mi.prompter import Prompts, SparsePrompter, prompter_losses, sampled_points
from lexiseg.ops.options import NonNegative, Positive, PositiveFloat, options
from lexiseg.structures import ImageBatch, MaskTarget, TextEmbeddings, Trace

BoxMasks = Callable[[UnitBox], Tensor]  # the masks [N, s, s] bool in a box of an image

ENLARGED = 4  # the decoder's finest guide has so many cells a side for one of the features


@options(frozen=True)
class SamMiLossOptions:
    """Losses of both stages (Sec. 3.5)."""

    pixels: PixelLossOptions = field(default_factory=PixelLossOptions)
    """L_ce."""
    prompter: NonNegative = 0.1
    """λ_tspp, where more than the prompter is trained."""
    mse: NonNegative = 0.5
    """λ_mse."""
    density: PositiveFloat = 5.0
    """g_p of Eq. (5)."""
    limit: Positive = 10
    """m_p of Eq. (5)."""


class SamMi(CorrelationSegmenter):
    """CAT-Seg's aggregation of costs with SAM's masks injected into what guides it.

    Args:
        clip: see `CatSeg`.
        sam: stays frozen and in evaluation mode.
        config: points, masks and injection.
    """

    key = "sam_mi"
    config: SamMiConfig

    def __init__(self, clip: ClipViT, sam: SamFamily, config: SamMiConfig = SamMiConfig()) -> None:
        super().__init__(clip, config)
        self.upsample = guide_upsampling(clip, config)
        self.aggregation = cost_aggregation(clip, config)
        self.sam: SamFamily = sam.requires_grad_(False)
        self.prompter = SparsePrompter(config.prompter_dim, heads=config.num_heads, at_once=config.classes_at_once)
        self.low_injection = LowFrequencyInjection(clip.width, config.num_heads)
        self.high_injection = nn.ModuleList(HighFrequencyInjection(width) for width in config.guide_channels)

    def parts(self) -> Mapping[str, nn.Module]:
        names = ("clip", "upsample", "aggregation", "sam", "prompter", "low_injection", "high_injection")
        return {name: getattr(self, name) for name in names}

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts()) - {"sam"}

    def train(self, mode: bool = True) -> SamMi:
        """As usual, but what is frozen stays in evaluation mode."""
        super().train(mode)
        self.sam.eval()
        return self

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: SamMiLossOptions | None = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a training batch; see `CorrelationSegmenter.loss`. ``draw`` is the random source of the points.

        Where nothing but the prompter learns (stage 1) they are L_tspp alone, else (stage 2) L_ce + lambda_tspp L_tspp.
        """
        options = options or SamMiLossOptions()
        volume = self.encode(images.pixels, text)
        prompts = self.prompter(volume.cost)  # of all classes: a target may be none of the nearest
        losses = prompter_losses(prompts, targets, density=options.density, limit=options.limit, mse=options.mse)
        if not any(parameter.requires_grad for parameter in self.aggregation.parameters()):
            return losses
        points = self.prompter.side**2
        chances = [
            torch.rand(points) if draw is None else draw(number, 1, points)[0, :, 0] for number in range(len(images.pixels))
        ]
        masks = [found(WHOLE) for found in self._found(list(images.pixels), prompts, chances)]
        logits = self._aggregated(volume, masks, pooling=POOLING)
        return {
            "pixels": pixel_loss(logits, targets, options.pixels),
            **{name: options.prompter * value for name, value in losses.items()},
        }

    def prompts(self, volume: CostVolume) -> Prompts:
        """Where to ask SAM; of very many classes each image's nearest ones say so, as in the aggregation."""
        chosen = self.aggregation.nearest(volume.cost)
        cost = volume.cost if chosen is None else volume.cost.take_along_dim(chosen[..., None, None], 1)
        prompts: Prompts = self.prompter(cost)
        return prompts

    def decode(self, volume: CostVolume, _trace: Trace | None = None, /) -> Tensor:
        """As CAT-Seg, without masks."""
        return self._aggregated(volume, None)

    def view_decoder(self, images: Sequence[Tensor], whole: CostVolume, trace: Trace | None, /) -> ViewDecoder:
        """With SAM's masks of each image, put together by class.

        A trace gets ``probabilities`` [1, d_h, d_w] of the points, and ``sam_masks`` [N, s, s] and ``masks`` [N_m, s, s].
        """
        prompts = self.prompts(whole)
        chance = torch.rand(self.prompter.side**2, generator=torch.Generator().manual_seed(self.config.seed))
        found = self._found(images, prompts, [chance] * len(images), trace)
        return lambda volume, box: self._aggregated(volume, [masks(box) for masks in found])

    def _aggregated(self, volume: CostVolume, masks: Sequence[Tensor] | None, *, pooling: int = 1) -> Tensor:
        """Logits [B, K, 4h, 4w]; the masks [N, 4h, 4w] of each view are injected into what guides the aggregation."""
        appearance, (second, first) = volume.dense, upsampled(self.upsample, volume.levels)
        if masks is not None and "low" in self.config.inject:
            pairs = zip(volume.dense, masks, strict=True)
            appearance = torch.stack([self.low_injection(features, covered(each, ENLARGED)) for features, each in pairs])
        if masks is not None and "high" in self.config.inject:
            coarse, fine = self.high_injection
            second = torch.stack(
                [coarse(features, covered(each, 2) >= 0.5) for features, each in zip(second, masks, strict=True)]
            )
            first = torch.stack([fine(features, each) for features, each in zip(first, masks, strict=True)])
        logits: Tensor = self.aggregation(volume.cost, volume.classes, appearance, (second, first), pooling=pooling)
        return logits

    @torch.no_grad()
    def _found(
        self, images: Sequence[Tensor], prompts: Prompts, chances: Sequence[Tensor], trace: Trace | None = None
    ) -> list[BoxMasks]:
        """SAM's masks in each image, put together by class, for any box of it."""
        each = zip(images, prompts.probabilities, chances, strict=True)
        generated = generate_each(self.sam, images, self.config.generator, [self._prompts(*one) for one in each])
        parts = zip(generated, prompts.probabilities, prompts.text_masks, strict=True)
        return [self._put_together(*part, trace) for part in parts]

    def _put_together(self, found: GeneratedMasks, probabilities: Tensor, text_masks: Tensor, trace: Trace | None) -> BoxMasks:
        """The masks of an image by class, of what the prompter says of it."""
        side = ENLARGED * text_masks.shape[-1]
        alone = in_box(found, WHOLE, side)
        groups = torch.eye(len(found), dtype=torch.bool, device=text_masks.device)
        if self.config.matching_threshold is not None:
            groups = members(matching_scores(covered(alone, ENLARGED), text_masks), self.config.matching_threshold)
        if trace is not None:
            together = aggregate(alone, groups).float()
            trace |= {"probabilities": probabilities[None], "sam_masks": alone.float(), "masks": together}
        return partial(_grouped, found, groups, side)

    def _prompts(self, image: Tensor, probabilities: Tensor, chance: Tensor) -> Prompter:
        if self.config.point_sampling == "grid":
            return grid_points(self.prompter.side)
        if self.config.point_sampling == "random":
            return random_points(self.config.num_random_points, self.config.seed)
        unit = sampled_points(probabilities, chance, self.config.point_sampling)
        return given_points(unit * unit.new_tensor([image.shape[-1], image.shape[-2]]))


def _grouped(found: GeneratedMasks, groups: Tensor, side: int, box: UnitBox) -> Tensor:
    return aggregate(in_box(found, box, side), groups)


def in_box(found: GeneratedMasks, box: UnitBox, side: int) -> Tensor:
    """Masks at the centres of ``side`` × ``side`` cells of a box of their image, [N, side, side] bool."""
    left, top, right, bottom = box
    steps = (torch.arange(side, device=found.logits.device) + 0.5) / side
    high, wide = (resized_size / padded_size for resized_size, padded_size in zip(found.size, found.padded_size, strict=True))
    y, x = (top + steps * (bottom - top)) * high, (left + steps * (right - left)) * wide
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1) * 2 - 1
    if len(found) == 0:
        return torch.zeros(0, side, side, dtype=torch.bool, device=found.logits.device)
    logits = found.image_logits().float()[None]
    return functional.grid_sample(logits, places[None], padding_mode="border", align_corners=False)[0] > 0


def covered(masks: Tensor, factor: int) -> Tensor:
    """The share of each larger cell that binary masks [N, s, s] cover, [N, s / factor, s / factor]."""
    return functional.avg_pool2d(masks[:, None].float(), factor)[:, 0] if len(masks) else masks[:, ::factor, ::factor].float()
