"""SAM-MI (Chen et al., "A Mask-Injected Framework for Enhancing Open-Vocabulary Semantic Segmentation with SAM").

CAT-Seg with SAM's masks injected into the guides of cost aggregation.

    points     point prompts, predicted from the cost volume              `prompter.py`, Sec. 3.2
    M^sam      masks of frozen SAM, one per point                         `lexiseg.backbones.mask_generator`
    M          masks aggregated by class                                  `aggregation.py`, Sec. 3.3
    F_mcr, F_h CLIP's features with these masks injected                  `injection.py`, Sec. 3.4
    others     as in CAT-Seg                                              `lexiseg.methods.catseg.model`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from lexiseg.methods.correlation import CorrelationSegmenter, CostVolume, ViewDecoder
from lexiseg.methods.prompts import Prompt, prompted_masks
from lexiseg.methods.sam_mi.aggregation import aggregate, matching_scores, members
from lexiseg.methods.sam_mi.config import SamMiConfig
from lexiseg.methods.sam_mi.injection import HighFrequencyInjection, LowFrequencyInjection, intra_costs
from lexiseg.methods.sam_mi.prompter import Prompts, SparsePrompter, prompter_losses, sampled_points
from lexiseg.methods.sam_mi.regions import classified_masks
from lexiseg.ops.options import NonNegative, Positive, PositiveFloat, Unit, options
from lexiseg.structures import (
    WHOLE,
    Geometry,
    ImageBatch,
    MaskPrediction,
    MaskTarget,
    TextEmbeddings,
    Trace,
    UnitBox,
    size_of,
)

ENLARGED = 4  # resolution of the decoder's finest guide, relative to the features


@options(frozen=True)
class SamMiLossOptions:
    """Options of the losses of both stages (Sec. 3.5)."""

    pixels: PixelLossOptions = field(default_factory=PixelLossOptions)
    """Options of L_ce."""
    without_masks: Unit = 0.0
    """Fraction of the images into which no masks are injected in stage 2, so that the model also learns to do without."""
    prompter: NonNegative = 0.1
    """λ_tspp, weight of the prompter losses in stage 2."""
    mse: NonNegative = 0.5
    """λ_mse, weight of the loss of point probabilities."""
    density: PositiveFloat = 5.0
    """g_p of Eq. (5), grid points per expected prompt."""
    limit: Positive = 10
    """m_p of Eq. (5), maximum number of expected prompts per mask."""


@dataclass(frozen=True)
class GroupedMasks:
    """SAM's masks of an image, grouped by class.

    Attributes:
        generated: N masks M^sam.
        groups: [N_m, N] bool, see `members`.
        side: cells along each side of a box.
    """

    generated: GeneratedMasks
    groups: Tensor
    side: int

    def in_box(self, box: UnitBox) -> Tensor:
        """Aggregated masks M in a box of the image, [N_m, s, s] bool."""
        return aggregate(in_box(self.generated, box, self.side), self.groups)

    def classified(self, probabilities: Tensor) -> MaskPrediction:
        """Masks of the image with class scores from the class probabilities [K, h, w] of its pixels."""
        generated = self.generated
        return _classified(generated.image_logits(), generated.pred_iou.float(), probabilities, generated.geometry.one_step())


def _classified(logits: Tensor, pred_iou: Tensor, probabilities: Tensor, geometry: Geometry) -> MaskPrediction:
    """Masks [N, m, m] of an image, then those of `classified_masks`, with class scores from [K, h, w] of its pixels."""
    cells = Geometry.unresized(geometry.size).sample(probabilities, size_of(logits), geometry.padded_box, outside=0.0)
    return classified_masks(logits, pred_iou, cells, geometry)


class SamMi(CorrelationSegmenter):
    """SAM-MI: CAT-Seg with mask injection.

    Args:
        clip: see `CatSeg`.
        sam: frozen, in evaluation mode.
        config: options of the model.
    """

    key = "sam_mi"
    reference = 'Chen et al.: "SAM-MI: A Mask-Injected Framework for Enhancing Open-Vocabulary Semantic Segmentation with SAM"'
    tasks = ("semantic", "panoptic", "instance")
    config: SamMiConfig

    def __init__(self, clip: ClipViT, sam: SamFamily, config: SamMiConfig = SamMiConfig()) -> None:
        super().__init__(clip, config)
        self.upsample = guide_upsampling(clip, config)
        self.aggregation = cost_aggregation(clip, config, embedding=config.cost_embedding, guide_values=config.guide_values)
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
        """Set the training mode; frozen parts stay in evaluation mode."""
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
        """Compute the losses of a training batch, see `CorrelationSegmenter.loss`; ``draw`` is the random source of the points.

        L_tspp if only the prompter is trained (stage 1), else L_ce + lambda_tspp L_tspp (stage 2).
        """
        options = options or SamMiLossOptions()
        volume = self.encode_in_training(images, text)
        prompts = self.prompter(volume.cost)  # of all classes: targets may be outside the top-k
        losses = prompter_losses(prompts, targets, density=options.density, limit=options.limit, mse=options.mse)
        if not any(parameter.requires_grad for parameter in self.aggregation.parameters()):
            return losses
        masks = None
        if self.config.inject:
            points, count = self.prompter.side**2 + 1, len(images.pixels)
            chances = [torch.rand(points) if draw is None else draw(number, 1, points)[0, :, 0] for number in range(count)]
            grouped = self._masks(list(images.pixels), prompts, [chance[:-1] for chance in chances])
            without = [bool(chance[-1] < options.without_masks) for chance in chances]
            masks = [each.in_box(WHOLE)[: 0 if empty else None] for each, empty in zip(grouped, without, strict=True)]
        pixels, first = [], 0
        for part, own in self.training_parts(volume, targets, options.pixels):
            inside = None if masks is None else masks[first : first + len(own)]
            pixels.append(pixel_loss(self.aggregated(part, inside, pooling=POOLING), own, options.pixels))
            first += len(own)
        return {
            "pixels": torch.stack(pixels).mean(),
            **{name: options.prompter * value for name, value in losses.items()},
        }

    @torch.no_grad()
    def predict_prompts(self, image: Tensor, prompts: Sequence[Prompt], text: TextEmbeddings) -> MaskPrediction:
        """Predict the mask of each prompt, classified by the probabilities of the pixels inside, see `TakesPrompts`."""
        logits, pred_iou = prompted_masks(self.sam, image, prompts)
        probabilities = self(ImageBatch.of([image]), text).probabilities[0]
        named = _classified(logits, pred_iou, probabilities, self.sam.geometry(size_of(image)))
        count = len(prompts)
        return replace(named, masks=named.masks[:, :count], classes=named.classes[:, :count])

    def prompts(self, volume: CostVolume) -> Prompts:
        """Predict point prompts from the top classes of each image, as in the aggregation."""
        chosen = self.nearest(volume.cost)
        cost = volume.cost if chosen is None else volume.cost.take_along_dim(chosen[..., None, None], 1)
        prompts: Prompts = self.prompter(cost)
        return prompts

    def decode(self, volume: CostVolume, _trace: Trace | None = None, /) -> Tensor:
        """Decode as CAT-Seg, without masks."""
        return self.aggregated(volume, None)

    def view_decoder(self, images: Sequence[Tensor], whole: CostVolume, trace: Trace | None, /) -> ViewDecoder:
        """Return the decoder with SAM's masks of each image, aggregated by class.

        A trace receives ``probabilities`` [1, d_h, d_w] of the points, ``sam_masks`` [N, s, s], and ``masks`` [N_m, s, s].
        """
        prompts = self.prompts(whole)
        chance = torch.rand(self.prompter.side**2, generator=torch.Generator().manual_seed(self.config.seed))
        masks = self._masks(images, prompts, [chance] * len(images), trace)

        def decode(volume: CostVolume, box: UnitBox) -> Tensor:
            return self.aggregated(volume, [each.in_box(box) for each in masks])

        def classify(probabilities: Tensor) -> MaskPrediction:
            return MaskPrediction.join([each.classified(of_image) for each, of_image in zip(masks, probabilities, strict=True)])

        return ViewDecoder(decode, classify)

    def aggregated(self, volume: CostVolume, masks: Sequence[Tensor] | None, *, pooling: int = 1) -> Tensor:
        """Logits [B, K, 4h, 4w] of views.

        Args:
            volume: of B views.
            masks: [N, 4h, 4w] bool of each view, injected into its costs and guides; None injects nothing, as CAT-Seg.
            pooling: see `CostAggregation.forward`.
        """
        costs, appearance, (second, first) = volume.cost, volume.dense, upsampled(self.upsample, volume.levels)
        if masks is not None and "costs" in self.config.inject:
            costs = torch.stack([intra_costs(S, covered(each, ENLARGED)) for S, each in zip(costs, masks, strict=True)])
        if masks is not None and "low" in self.config.inject:
            pairs = zip(volume.dense, masks, strict=True)
            appearance = torch.stack([self.low_injection(features, covered(each, ENLARGED)) for features, each in pairs])
        if masks is not None and "high" in self.config.inject:
            coarse, fine = self.high_injection
            second = torch.stack(
                [coarse(features, covered(each, 2) >= 0.5) for features, each in zip(second, masks, strict=True)]
            )
            first = torch.stack([fine(features, each) for features, each in zip(first, masks, strict=True)])
        guides, kept = (second, first), self.nearest(volume.cost)
        logits: Tensor = self.aggregation(costs, volume.classes, appearance, guides, kept=kept, pooling=pooling)
        return logits

    @torch.no_grad()
    def _masks(
        self, images: Sequence[Tensor], prompts: Prompts, chances: Sequence[Tensor], trace: Trace | None = None
    ) -> list[GroupedMasks]:
        """Generate SAM's masks of each image, grouped by class."""
        prompters = zip(images, prompts.probabilities, chances, strict=True)
        generated = generate_each(self.sam, images, self.config.generator, [self._prompter_of(*values) for values in prompters])
        parts = zip(generated, prompts.probabilities, prompts.text_masks, strict=True)
        return [self._grouped(*part, trace) for part in parts]

    def _grouped(
        self, generated: GeneratedMasks, probabilities: Tensor, text_masks: Tensor, trace: Trace | None
    ) -> GroupedMasks:
        """Group the masks of an image by the prompter's class masks."""
        side = ENLARGED * text_masks.shape[-1]
        masks = in_box(generated, WHOLE, side)
        groups = torch.eye(len(generated), dtype=torch.bool, device=text_masks.device)
        if self.config.matching_threshold is not None:
            groups = members(matching_scores(covered(masks, ENLARGED), text_masks), self.config.matching_threshold)
        if trace is not None:
            aggregated = aggregate(masks, groups).float()
            trace |= {"probabilities": probabilities[None], "sam_masks": masks.float(), "masks": aggregated}
        return GroupedMasks(generated, groups, side)

    def _prompter_of(self, image: Tensor, probabilities: Tensor, chance: Tensor) -> Prompter:
        if self.config.point_sampling == "grid":
            return grid_points(self.prompter.side)
        if self.config.point_sampling == "random":
            return random_points(self.config.num_random_points, self.config.seed)
        unit = sampled_points(probabilities, chance, self.config.point_sampling)
        return given_points(unit * unit.new_tensor([image.shape[-1], image.shape[-2]]))


def in_box(generated: GeneratedMasks, box: UnitBox, side: int) -> Tensor:
    """Sample masks at the centres of ``side`` × ``side`` cells of a box of their image, [N, side, side] bool."""
    return generated.geometry.one_step().sample(generated.image_logits(), (side, side), box) > 0


def covered(masks: Tensor, factor: int) -> Tensor:
    """Fraction of each larger cell that binary masks [N, s, s] cover, [N, s / factor, s / factor]."""
    return functional.avg_pool2d(masks[:, None].float(), factor)[:, 0] if len(masks) else masks[:, ::factor, ::factor].float()
