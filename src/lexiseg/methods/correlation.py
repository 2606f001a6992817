"""Base class of CAT-Seg, SAM-MI and ESC-Net: segmentation from the cost volume of CLIP's dense features and class embeddings.

    views      square views of an image: the whole image, and overlapping crops (sliding window)
    encode     CLIP on views: dense features, class embeddings, and their cosines     `CostVolume`
    decode     cost volumes to class logits                                           by each method
    mosaic     merge the probabilities of all views of an image

Views have one size whatever the image size, so the same view of B images is one batch. A method implements `decode`; one that
needs more than cost volumes (SAM-MI: SAM's masks) also overrides `view_decoder`. Training fine-tunes the query and value
projections of both towers of CLIP.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT, thirds
from lexiseg.ensembles import Behaviour
from lexiseg.errors import UsageError
from lexiseg.layers.cost_aggregation import correlation, nearest_classes
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, pixel_loss
from lexiseg.methods.base import Segmenter, Trained, check_trace
from lexiseg.methods.catseg.config import CorrelationConfig
from lexiseg.structures import (
    WHOLE,
    Geometry,
    ImageBatch,
    MaskPrediction,
    MaskTarget,
    PixelPrediction,
    Size,
    Task,
    TextEmbeddings,
    Trace,
    UnitBox,
    size_of,
)

CANVAS, CROP, STRIDE = 640, 384, 256  # sides of the resized image and of a crop, and stride of the crops, in pixels
MULTIPLE = 32  # the official code pads whole images to multiples of it
LEVELS = 2  # number of early levels of CLIP that guide a decoder
PAIRS = 1024  # greatest number of (image, class) pairs processed at once; bounds the memory of a batch


@dataclass(frozen=True)
class CostVolume:
    """Cost volume of B views and K classes, with the features it is computed from.

    Attributes:
        dense: [B, D, h, w] image features in the joint space.
        classes: [K, D] class embeddings.
        cost: [B, K, h, w] cosine similarities.
        levels: [B, C, h, w] each: features of CLIP after the first and second third of its blocks.
    """

    dense: Tensor
    classes: Tensor
    cost: Tensor
    levels: tuple[Tensor, ...]

    def view(self, number: int, classes: Tensor) -> CostVolume:
        """View ``number`` alone, with the classes of some indices [M]."""
        only = slice(number, number + 1)
        levels = tuple(level[only] for level in self.levels)
        return CostVolume(self.dense[only], self.classes[classes], self.cost[only, classes], levels)


@dataclass(frozen=True)
class ViewDecoder:
    """Decoder of the views of B images.

    Attributes:
        decode: maps the cost volume of B views and their box to logits [B, K, 4h, 4w].
        classify: maps the class probabilities [B, K, h, w] of the images to their masks with class scores; None without masks.
    """

    decode: Callable[[CostVolume, UnitBox], Tensor]
    classify: Callable[[Tensor], MaskPrediction] | None = None


class CorrelationSegmenter(Segmenter):
    """Segmentation from cost volumes of a vision transformer CLIP.

    Args:
        clip: its first two levels guide the decoder.
        config: image sizes, sliding window and decoder.

    Raises:
        UsageError: the CLIP has too few levels.
    """

    tasks: ClassVar[tuple[Task, ...]] = ("semantic", "panoptic")
    tunes_text = True
    behaviour: Behaviour = "paper"
    config: CorrelationConfig

    def __init__(self, clip: ClipViT, config: CorrelationConfig) -> None:
        super().__init__(config)
        if len(clip.channels) < LEVELS:
            raise UsageError(f"this method needs a CLIP of two levels or more; this one has {len(clip.channels)}")
        self.clip: ClipViT = clip

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts())

    def trainable(self) -> Iterator[Trained]:
        """Trainable parameters; of CLIP the query and value rows of packed projection weights, the key rows are frozen."""
        for entry in super().trainable():
            if not entry.name.startswith("clip."):
                yield entry
            elif entry.name.endswith("attn.in_proj_weight"):
                _, keys, _ = thirds(len(entry.parameter))
                yield replace(entry, frozen_rows=(keys,))

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> PixelPrediction:
        """Predict independent class probabilities.

        A trace receives ``clip`` [D, h, w], the dense features of the whole image, and ``cost`` [K, h, w], its costs.
        """
        check_trace(images, trace)
        pictures, chunk = list(images), max(1, PAIRS // len(text))
        starts = range(0, len(pictures), chunk)
        return PixelPrediction.join([self._predicted(pictures[start : start + chunk], text, trace) for start in starts])

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: Any = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of a training batch of images of one square size.

        Args:
            images: B images, without sliding window.
            text: embeddings of the training classes, with gradients if the text tower is trained.
            targets: ground truth of each image.
            options: a `PixelLossOptions`.
            draw: not used.
        """
        del draw
        options = options or PixelLossOptions()
        parts = self.training_parts(self.encode_in_training(images, text), targets, options)
        return mean_losses({"pixels": pixel_loss(self.decode_in_training(part), own, options)} for part, own in parts)

    def training_parts(
        self, volume: CostVolume, targets: Sequence[MaskTarget], options: PixelLossOptions
    ) -> list[tuple[CostVolume, Sequence[MaskTarget]]]:
        """Divide a training batch into parts that are decoded alone: its images with their own classes, or the whole batch.

        Args:
            volume: of the batch.
            targets: ground truth of each image.
            options: with ``max_classes`` classes for each image.

        Returns:
            Cost volumes and targets of the parts, which have as many images each.
        """
        classes = volume.cost.shape[1]
        if not 0 < options.max_classes < classes:
            return [(volume, targets)]
        parts: list[tuple[CostVolume, Sequence[MaskTarget]]] = []
        for number, target in enumerate(targets):
            present = torch.zeros(1, classes, dtype=torch.bool, device=volume.cost.device)
            present[0, target.labels] = True
            most, scale = max(options.max_classes, int(present.sum())), self.clip.logit_scale
            cost = volume.cost[number, None].detach()
            nearest = nearest_classes(cost, most, self.config.ranking, logit_scale=scale, present=present)
            kept = torch.arange(classes, device=cost.device) if nearest is None else nearest[0]
            own = MaskTarget(target.masks, torch.searchsorted(kept, target.labels))
            parts.append((volume.view(number, kept), (own,)))
        return parts

    def encode_in_training(self, images: ImageBatch, text: TextEmbeddings) -> CostVolume:
        """Compute the cost volume of a training batch, see `encode`; images are resized to ``train_image_size``."""
        return self.encode(images.pixels, text, side=self.config.train_image_size)

    def encode(self, views: Tensor, text: TextEmbeddings, *, side: int | None = None) -> CostVolume:
        """Compute the cost volume of views [B, 3, S, S], float RGB in 0..1, resized to ``side``; default is ``image_size``."""
        side = side or self.config.image_size
        features = self.clip.features(_resized(views, (side, side)))
        dense = self.clip.project(features)
        if self.behaviour == "official":
            classes = text.first()
            cost = correlation(dense, classes)
        else:
            classes = text.mean()
            cost = text.per_class(correlation(dense, text.vectors).movedim(1, -1)).movedim(-1, 1)
        return CostVolume(dense, classes, cost, features.levels[:LEVELS])

    def nearest(self, cost: Tensor) -> Tensor | None:
        """Indices [B, M] of the classes that are kept in each view, of costs [B, K, h, w]; None: all."""
        return nearest_classes(cost, self.config.max_classes, self.config.ranking, logit_scale=self.clip.logit_scale)

    @abstractmethod
    def decode(self, volume: CostVolume, trace: Trace | None = None, /) -> Tensor:
        """Decode a cost volume to logits [B, K, 4h, 4w]; a trace requires B = 1."""

    def decode_in_training(self, volume: CostVolume) -> Tensor:
        """Decode in training; default is `decode`."""
        return self.decode(volume)

    def view_decoder(self, _images: Sequence[Tensor], _whole: CostVolume, trace: Trace | None, /) -> ViewDecoder:
        """Return the decoder for the views of B images [3, H, W], given the cost volume of the whole images."""

        def decode(volume: CostVolume, box: UnitBox) -> Tensor:
            return self.decode(volume, trace if box == WHOLE else None)

        return ViewDecoder(decode)

    def _predicted(self, images: Sequence[Tensor], text: TextEmbeddings, trace: Trace | None) -> PixelPrediction:
        """Prediction of B images [3, H, W]."""
        whole = self.encode(torch.cat([self._whole_view(image) for image in images]), text)
        if trace is not None:
            trace |= {"clip": whole.dense[0], "cost": whole.cost[0]}
        decoder = self.view_decoder(images, whole, trace)
        logits = decoder.decode(whole, WHOLE)
        if self.config.sliding:
            parts = ((box, decoder.decode(self.encode(views, text), box)) for box, views in crops(images))
            probabilities = mosaic(logits, parts)
        else:
            probabilities = logits.sigmoid()
        geometries = tuple(Geometry.unresized(size_of(image)) for image in images)
        masks = None if decoder.classify is None else decoder.classify(probabilities)
        return PixelPrediction(probabilities, geometries, masks)

    def _whole_view(self, image: Tensor) -> Tensor:
        """Resize an image [3, H, W] to one view [1, 3, S, S]."""
        if self.config.sliding:
            return _resized(image[None], (CROP, CROP))
        image = self.clip.padded(image, MULTIPLE) if self.behaviour == "official" else image
        return _resized(image[None], (self.config.image_size, self.config.image_size))


def mean_losses(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of the losses of the parts of a batch, which have as many images each."""
    every = list(parts)
    return {name: torch.stack([part[name] for part in every]).mean() for name in every[0]}


def crops(images: Sequence[Tensor]) -> Iterator[tuple[UnitBox, Tensor]]:
    """Yield four overlapping boxes and their crops [B, 3, 384, 384] of images [3, H, W] resized to 640 × 640 (CAT-Seg)."""
    canvas = torch.cat([_resized(image[None], (CANVAS, CANVAS)) for image in images])
    starts = range(0, CANVAS - CROP + 1, STRIDE)
    for top in starts:
        for left in starts:
            box = (left / CANVAS, top / CANVAS, (left + CROP) / CANVAS, (top + CROP) / CANVAS)
            yield box, canvas[..., top : top + CROP, left : left + CROP]


def mosaic(whole: Tensor, parts: Iterable[tuple[UnitBox, Tensor]]) -> Tensor:
    """Average the probabilities of whole images, logits [B, K, h, w], and of their crops: [B, K, 640, 640] (CAT-Seg)."""
    total = _resized(_resized(whole, (CROP, CROP)).sigmoid(), (CANVAS, CANVAS))
    covering = torch.zeros(CANVAS, device=whole.device)
    for start in range(0, CANVAS - CROP + 1, STRIDE):
        covering[start : start + CROP] += 1
    for (left, top, _, _), logits in parts:
        rows, columns = (slice(round(start * CANVAS), round(start * CANVAS) + CROP) for start in (top, left))
        total[..., rows, columns] += _resized(logits, (CROP, CROP)).sigmoid() / (covering[rows, None] * covering[columns])
    return total.div_(2)


def _resized(maps: Tensor, size: Size) -> Tensor:
    """Resize maps [B, C, h, w] bilinearly, without antialiasing, as in the official code."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
