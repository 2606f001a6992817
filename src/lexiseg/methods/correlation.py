"""What CAT-Seg and its relatives share: CLIP's correlations of cells and classes, and a picture's way through them.

    see        squares of a picture in CLIP's eyes: dense features, class embeddings, and the cosines of both
    decode     what the method makes of that, logits of every class
    pixels     the whole picture, or overlapping crops of it, too; probabilities are averaged

CLIP is tuned along the way, in the query and value projections of both its towers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
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

UnitBox = tuple[float, float, float, float]  # (left, top, right, bottom) in widths and heights of an image
Masks = Callable[[UnitBox], Tensor]  # the masks [N, s, s] bool in a box of an image
WHOLE: UnitBox = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Seen:
    """What CLIP makes of B squares and K classes.

    Attributes:
        dense: [B, D, h, w] features of cells in the joint space.
        classes: [K, D].
        costs: [B, K, h, w], how alike each cell and each class are.
        levels: [B, C, h, w] each: CLIP's maps after the first and the second third of its blocks.
    """

    dense: Tensor
    classes: Tensor
    costs: Tensor
    levels: tuple[Tensor, ...]


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
        """Probabilities, for each class was asked for by itself.

        A trace gets ``clip`` [D, h, w], the dense features of the whole picture, and ``cost`` [K, h, w], its costs.
        """
        check_trace(images, trace)
        look = self._mosaic if self.config.sliding else self._whole
        found = [look(images.image(index), text, trace) for index in range(len(images))]
        return PixelPrediction(torch.stack(found), images.sizes, images.sizes, link="identity")

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: Any = None,
        draw: PointSource | None = None,  # noqa: ARG002 - every pixel counts
    ) -> dict[str, Tensor]:
        """The loss of a training batch, all its images of one square size.

        Args:
            images: B images, looked at once.
            text: the vocabulary of the training, with gradients if the text tower is to learn.
            targets: what is in each of them.
            options: a `PixelLossOptions`.
            draw: not used.
        """
        logits = self.logits_in_training(self.see(images.pixels, text))
        return {"pixels": pixel_loss(logits, targets, options or PixelLossOptions())}

    def logits_in_training(self, seen: Seen) -> Tensor:
        """As `decode`, but for what a method does otherwise in training."""
        return self.decode(seen)

    def see(self, squares: Tensor, text: TextEmbeddings) -> Seen:
        """What CLIP sees of squares [B, 3, S, S], float RGB in 0..1, at ``image_size`` × ``image_size``."""
        features = self.clip.features(_resized(squares, (self.config.image_size, self.config.image_size)))
        dense = self.clip.project(features)
        if self.behaviour == "official":
            classes = text.first()
            costs = correlation(dense, classes)
        else:
            classes = text.mean()
            costs = text.per_class(correlation(dense, text.vectors).movedim(1, -1)).movedim(-1, 1)
        return Seen(dense, classes, costs, features.levels[:LEVELS])

    @abstractmethod
    def decode(self, seen: Seen, masks: Sequence[Tensor] | None = None, *, trace: Trace | None = None) -> Tensor:
        """Logits [B, K, 4h, 4w].

        Args:
            seen: of B squares.
            masks: what of each square belongs together, for methods that know.
            trace: of one square.
        """

    def masks_of(self, image: Tensor, seen: Seen, trace: Trace | None) -> Masks | None:  # noqa: ARG002
        """Class-agnostic masks of an image [3, H, W] to refine its prediction with; None: this method has none."""
        return None

    def _whole(self, image: Tensor, text: TextEmbeddings, trace: Trace | None) -> Tensor:
        """Probabilities [K, 4h, 4w] of an image [3, H, W] looked at once."""
        if self.behaviour == "official":
            image = self.clip.padded(image, MULTIPLE)
        return self._at_once(image, self.see(image[None], text), trace)[0][0].sigmoid()

    def _mosaic(self, image: Tensor, text: TextEmbeddings, trace: Trace | None) -> Tensor:
        """Probabilities [K, 640, 640] of an image [3, H, W]: half of its crops, half of the whole, each enlarged to pixels.

        As published for CAT-Seg: what CLIP sees are a 640 × 640 version of the picture in four overlapping crops and a
        384 × 384 one.
        """
        whole, masks = self._at_once(image, self.see(_resized(image[None], (CROP, CROP)), text), trace)
        total = _resized(_resized(whole, (CROP, CROP)).sigmoid(), (CANVAS, CANVAS))[0]
        canvas, starts = _resized(image[None], (CANVAS, CANVAS)), range(0, CANVAS - CROP + 1, STRIDE)
        times = torch.zeros(CANVAS, device=image.device)
        for start in starts:
            times[start : start + CROP] += 1
        for top in starts:
            for left in starts:
                rows, columns = slice(top, top + CROP), slice(left, left + CROP)
                box = (left / CANVAS, top / CANVAS, (left + CROP) / CANVAS, (top + CROP) / CANVAS)
                logits = self.decode(self.see(canvas[..., rows, columns], text), masks and [masks(box)])
                total[:, rows, columns] += _resized(logits, (CROP, CROP))[0].sigmoid() / (times[rows, None] * times[columns])
        return total / 2

    def _at_once(self, image: Tensor, seen: Seen, trace: Trace | None) -> tuple[Tensor, Masks | None]:
        """Logits [1, K, 4h, 4w] of the whole image, and what in it belongs together."""
        masks = self.masks_of(image, seen, trace)
        if trace is not None:
            trace |= {"clip": seen.dense[0], "cost": seen.costs[0]}
        return self.decode(seen, masks and [masks(WHOLE)], trace=trace), masks


def _resized(maps: Tensor, size: Size) -> Tensor:
    """Maps [B, C, h, w] at another size, without antialiasing, as the official program does."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
