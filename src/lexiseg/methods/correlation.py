"""What CAT-Seg, SAM-MI and ESC-Net share: CLIP's correlations of cells and classes, and a picture's way through them.

    views      squares of pictures: the whole of each, and overlapping crops
    encode     views by CLIP: dense features, class embeddings, and their cosines     `CostVolume`
    decode     cost volumes into logits of every class                                each method's own
    mosaic     the probabilities of all views of each picture on one canvas

Views have one size, whatever the pictures': the same view of B pictures is one batch. A method is a `decode`; one that knows
more of the pictures than cost volumes (SAM-MI: SAM's masks) gives a `ViewDecoder` of its own for each batch of them. CLIP is
tuned along the way, in the query and value projections of both its towers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.ensembles import Behaviour
from lexiseg.errors import UsageError
from lexiseg.layers.cost_aggregation import correlation
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, pixel_loss
from lexiseg.methods.base import Segmenter, Trained, check_trace
from lexiseg.methods.catseg.config import CorrelationConfig
from lexiseg.structures import ImageBatch, MaskTarget, PixelPrediction, Size, TextEmbeddings, Trace

CANVAS, CROP, STRIDE = 640, 384, 256  # pixels of the enlarged picture, of a crop, and from one crop to the next
MULTIPLE = 32  # the official program pads whole pictures to multiples of it
LEVELS = 2  # of CLIP, early ones, guide a decoder
PAIRS = 1024  # of a picture and a class, in pictures that are looked at together: what bounds the memory of a batch

UnitBox = tuple[float, float, float, float]  # (left, top, right, bottom) in widths and heights of an image
WHOLE: UnitBox = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class CostVolume:
    """What CLIP makes of B views and K classes.

    Attributes:
        dense: [B, D, h, w] features of cells in the joint space.
        classes: [K, D] class embeddings.
        cost: [B, K, h, w] cosines of cells and classes.
        levels: [B, C, h, w] each: CLIP's maps after the first and the second third of its blocks.
    """

    dense: Tensor
    classes: Tensor
    cost: Tensor
    levels: tuple[Tensor, ...]


ViewDecoder = Callable[[CostVolume, UnitBox], Tensor]  # B pictures' volumes of a view, its box -> logits [B, K, 4h, 4w]


class CorrelationSegmenter(Segmenter):
    """Logits of every class from the correlations of cells and classes, on a CLIP with a vision transformer.

    Args:
        clip: its first two levels guide the decoder.
        config: how pictures are looked at.

    Raises:
        UsageError: the CLIP has too few levels.
    """

    tasks = ("semantic", "panoptic")
    tunes_text = True
    behaviour: Behaviour = "paper"
    config: CorrelationConfig

    def __init__(self, clip: ClipViT, config: CorrelationConfig) -> None:
        super().__init__(config)
        if len(clip.channels) < LEVELS:
            raise UsageError(f"this method takes a CLIP of two levels or more; this one has {len(clip.channels)}")
        self.clip: ClipViT = clip

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts())

    def trainable(self) -> Iterator[Trained]:
        """Of CLIP the query and value projections; the keys between them in one packed weight stay as they are."""
        for one in super().trainable():
            if not one.name.startswith("clip."):
                yield one
            elif one.name.endswith("attn.in_proj_weight"):
                width = len(one.parameter) // 3
                yield replace(one, frozen_rows=slice(width, 2 * width))

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> PixelPrediction:
        """Probabilities of each class by itself.

        A trace gets ``clip`` [D, h, w], the dense features of the whole picture, and ``cost`` [K, h, w], its costs.
        """
        check_trace(images, trace)
        pictures, together = list(images), max(1, PAIRS // len(text))
        maps = [
            self._probabilities(pictures[start : start + together], text, trace) for start in range(0, len(pictures), together)
        ]
        return PixelPrediction(maps[0] if len(maps) == 1 else torch.cat(maps), images.sizes, images.sizes, link="identity")

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: Any = None,
        draw: PointSource | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a training batch, all its images of one square size; every pixel counts.

        Args:
            images: B images, looked at once.
            text: the vocabulary of the training, with gradients if the text tower is to learn.
            targets: what is in each of them.
            options: a `PixelLossOptions`.
            draw: not used.
        """
        del draw
        logits = self.decode_in_training(self.encode(images.pixels, text))
        return {"pixels": pixel_loss(logits, targets, options or PixelLossOptions())}

    def encode(self, views: Tensor, text: TextEmbeddings) -> CostVolume:
        """The cost volume of views [B, 3, S, S], float RGB in 0..1, seen at ``image_size`` × ``image_size``."""
        features = self.clip.features(_resized(views, (self.config.image_size, self.config.image_size)))
        dense = self.clip.project(features)
        if self.behaviour == "official":
            classes = text.first()
            cost = correlation(dense, classes)
        else:
            classes = text.mean()
            cost = text.per_class(correlation(dense, text.vectors).movedim(1, -1)).movedim(-1, 1)
        return CostVolume(dense, classes, cost, features.levels[:LEVELS])

    @abstractmethod
    def decode(self, volume: CostVolume, trace: Trace | None = None, /) -> Tensor:
        """Logits [B, K, 4h, 4w] of B views; a trace is of one view."""

    def decode_in_training(self, volume: CostVolume) -> Tensor:
        """As `decode`, but for what a method does otherwise in training."""
        return self.decode(volume)

    def view_decoder(self, _images: Sequence[Tensor], _whole: CostVolume, trace: Trace | None, /) -> ViewDecoder:
        """How the views of B images [3, H, W] are decoded, the whole of each first, whose cost volumes are given."""

        def decode(volume: CostVolume, box: UnitBox) -> Tensor:
            return self.decode(volume, trace if box == WHOLE else None)

        return decode

    def _probabilities(self, images: Sequence[Tensor], text: TextEmbeddings, trace: Trace | None) -> Tensor:
        """Probabilities [B, K, h, w] of B images [3, H, W]."""
        whole = self.encode(torch.cat([self._whole_view(image) for image in images]), text)
        if trace is not None:
            trace |= {"clip": whole.dense[0], "cost": whole.cost[0]}
        decode = self.view_decoder(images, whole, trace)
        logits = decode(whole, WHOLE)
        if not self.config.sliding:
            return logits.sigmoid()
        return mosaic(logits, ((box, decode(self.encode(views, text), box)) for box, views in crops(images)))

    def _whole_view(self, image: Tensor) -> Tensor:
        """An image [3, H, W] as one view [1, 3, S, S]."""
        if self.config.sliding:
            return _resized(image[None], (CROP, CROP))
        image = self.clip.padded(image, MULTIPLE) if self.behaviour == "official" else image
        return _resized(image[None], (self.config.image_size, self.config.image_size))


def crops(images: Sequence[Tensor]) -> Iterator[tuple[UnitBox, Tensor]]:
    """Four boxes, overlapping, and the crops [B, 3, 384, 384] there of a 640 × 640 version of images [3, H, W] (CAT-Seg)."""
    canvas = torch.cat([_resized(image[None], (CANVAS, CANVAS)) for image in images])
    starts = range(0, CANVAS - CROP + 1, STRIDE)
    for top in starts:
        for left in starts:
            box = (left / CANVAS, top / CANVAS, (left + CROP) / CANVAS, (top + CROP) / CANVAS)
            yield box, canvas[..., top : top + CROP, left : left + CROP]


def mosaic(whole: Tensor, parts: Iterable[tuple[UnitBox, Tensor]]) -> Tensor:
    """Probabilities [B, K, 640, 640] of logits [B, K, h, w]: half the mean of the crops', half the whole's (CAT-Seg)."""
    total = _resized(_resized(whole, (CROP, CROP)).sigmoid(), (CANVAS, CANVAS))
    covering = torch.zeros(CANVAS, device=whole.device)
    for start in range(0, CANVAS - CROP + 1, STRIDE):
        covering[start : start + CROP] += 1
    for (left, top, _, _), logits in parts:
        rows, columns = (slice(round(start * CANVAS), round(start * CANVAS) + CROP) for start in (top, left))
        total[..., rows, columns] += _resized(logits, (CROP, CROP)).sigmoid() / (covering[rows, None] * covering[columns])
    return total.div_(2)


def _resized(maps: Tensor, size: Size) -> Tensor:
    """Maps [B, C, h, w] at another size, without antialiasing, as the official program does."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
