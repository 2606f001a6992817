"""CAT-Seg (Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation", CVPR 2024).

How alike each cell of CLIP's dense features and each class are makes a cost volume, which is refined over space and over
classes and decoded pixel by pixel. CLIP is tuned along the way, in the query and value projections of both its towers.

    dense features   values of CLIP's last block, the class token as residual           `backbones/clip_vit.py`
    costs            cosines of cells and classes, and their aggregation                `layers/cost_aggregation.py`
    guides           CLIP's maps after the first and the second third of its blocks, enlarged here
    pixels           the whole picture and overlapping crops of it, probabilities averaged here
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.ensembles import Behaviour
from lexiseg.errors import UsageError
from lexiseg.layers.cost_aggregation import CostAggregation, correlation
from lexiseg.losses.matching import PointSource
from lexiseg.losses.pixel_loss import PixelLossOptions, pixel_loss
from lexiseg.methods.base import Segmenter, Trained, check_trace
from lexiseg.structures import ImageBatch, MaskTarget, PixelPrediction, Size, TextEmbeddings, Trace

GUIDES = (256, 128)  # channels of the guides, of twice and four times the resolution of the features
CANVAS, CROP, STRIDE = 640, 384, 256  # pixels of the enlarged picture, of a crop, and from one crop to the next
POOLING = 2  # cells a side that are one in attention over classes, in training
MULTIPLE = 32  # the official program pads whole pictures to multiples of it


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
        guides: of the decoder, [B, G, 2h, 2w] and [B, G', 4h, 4w].
    """

    dense: Tensor
    classes: Tensor
    costs: Tensor
    guides: tuple[Tensor, Tensor]


class CatSeg(Segmenter):
    """Cost aggregation on a CLIP with a vision transformer.

    Args:
        clip: its first two levels guide the decoder.
        side: pixels a side of what CLIP looks at; the picture and its crops are squeezed into such squares.
        sliding: look at crops, too, as published; else at the whole picture only.
        guides: channels of the decoder's guides.
        templates: the prompts its names are embedded with.
        classes_at_once: bounds the memory; the result is the same.
        behaviour: "official" knows the first name of a class only, and pads a picture that is seen whole without taking the
            padding out again; else the best name counts in every cell, and the mean of all guides.
        trained_on: the vocabulary of its training, by which classes count as seen.
        aggregation: sizes, see `CostAggregation`.
    """

    tasks = ("semantic", "panoptic")
    tunes_text = True

    def __init__(
        self,
        clip: ClipViT,
        *,
        side: int = 384,
        sliding: bool = True,
        guides: tuple[int, int] = GUIDES,
        templates: str = "catseg",
        classes_at_once: int | None = 32,
        behaviour: Behaviour = "paper",
        trained_on: str | None = None,
        **aggregation: Any,
    ) -> None:
        super().__init__()
        if len(clip.channels) < len(guides):
            raise UsageError(f"CAT-Seg takes a CLIP of two levels or more; this one has {len(clip.channels)}")
        self.clip: ClipViT = clip
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(channels, own, factor, factor)
            for channels, own, factor in zip(clip.channels, guides, (2, 4), strict=False)
        )
        self.aggregation = CostAggregation(clip.width, guides, classes_at_once=classes_at_once, **aggregation)
        self.side, self.sliding, self.templates = side, sliding, templates
        self.behaviour, self.trained_on = behaviour, trained_on

    def parts(self) -> Mapping[str, nn.Module]:
        return {"clip": self.clip, "enlarge": self.enlarge, "aggregation": self.aggregation}

    def trained_parts(self) -> frozenset[str]:
        return frozenset(self.parts())

    def trainable(self) -> Iterator[Trained]:
        """Of CLIP the query and value projections; the keys between them in one packed weight stay as they are."""
        for one in super().trainable():
            if not one.name.startswith("clip."):
                yield one
            elif one.name.endswith("attn.in_proj_weight"):
                width = len(one.parameter) // 3
                yield replace(one, kept=slice(width, 2 * width))

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> PixelPrediction:
        """Probabilities, for each class was asked for by itself.

        A trace gets ``clip`` [D, h, w], the dense features of the whole picture, and ``cost`` [K, h, w], its costs.
        """
        check_trace(images, trace)
        look = self._mosaic if self.sliding else self._whole
        found = [look(images.image(index), text, trace) for index in range(len(images))]
        return PixelPrediction(torch.stack(found), images.sizes, images.sizes, link="identity")

    def loss(
        self,
        images: ImageBatch,
        text: TextEmbeddings,
        targets: Sequence[MaskTarget],
        options: PixelLossOptions | None = None,
        draw: PointSource | None = None,  # noqa: ARG002 - every pixel counts
    ) -> dict[str, Tensor]:
        """The loss of a training batch, all its images of one square size.

        Args:
            images: B images, looked at once.
            text: the vocabulary of the training, with gradients if the text tower is to learn.
            targets: what is in each of them.
            options: see there.
            draw: not used.
        """
        logits = self.decode(self.see(images.pixels, text), pooling=POOLING)
        return {"pixels": pixel_loss(logits, targets, options or PixelLossOptions())}

    def see(self, squares: Tensor, text: TextEmbeddings) -> Seen:
        """What CLIP sees of squares [B, 3, S, S], float RGB in 0..1, at ``side`` × ``side``."""
        features = self.clip.features(_resized(squares, (self.side, self.side)))
        dense = self.clip.project(features)
        if self.behaviour == "official":
            classes = text.first()
            costs = correlation(dense, classes)
        else:
            classes = text.mean()
            costs = text.per_class(correlation(dense, text.vectors).movedim(1, -1)).movedim(-1, 1)
        first, second = (enlarge(level) for enlarge, level in zip(self.enlarge, features.levels, strict=False))
        return Seen(dense, classes, costs, (first, second))

    def decode(self, seen: Seen, masks: Sequence[Tensor] | None = None, *, pooling: int = 1) -> Tensor:
        """Logits [B, K, 4h, 4w].

        Args:
            seen: of B squares.
            masks: what of each square belongs together, for methods that know.
            pooling: see `CostAggregation`.
        """
        appearance, guides = self.guidance(seen, masks)
        logits: Tensor = self.aggregation(seen.costs, seen.classes, appearance, guides, pooling=pooling)
        return logits

    def guidance(self, seen: Seen, masks: Sequence[Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # noqa: ARG002
        """What guides the aggregation over space, and the decoder: CLIP's features alone."""
        return seen.dense, seen.guides

    def masks_of(self, image: Tensor, seen: Seen, trace: Trace | None) -> Masks | None:  # noqa: ARG002
        """What in an image [3, H, W] belongs together: nobody says."""
        return None

    def _whole(self, image: Tensor, text: TextEmbeddings, trace: Trace | None) -> Tensor:
        """Probabilities [K, 4h, 4w] of an image [3, H, W] looked at once."""
        if self.behaviour == "official":
            image = self.clip.padded(image, MULTIPLE)
        seen = self.see(image[None], text)
        masks = self.masks_of(image, seen, trace)
        if trace is not None:
            trace |= {"clip": seen.dense[0], "cost": seen.costs[0]}
        return self.decode(seen, masks and [masks(WHOLE)])[0].sigmoid()

    def _mosaic(self, image: Tensor, text: TextEmbeddings, trace: Trace | None) -> Tensor:
        """Probabilities [K, 640, 640] of an image [3, H, W]: half of its crops, half of the whole, each enlarged to pixels.

        As published: what CLIP sees are a 640 × 640 version of the picture in four overlapping crops and a 384 × 384 one.
        """
        seen = self.see(_resized(image[None], (CROP, CROP)), text)
        masks = self.masks_of(image, seen, trace)
        if trace is not None:
            trace |= {"clip": seen.dense[0], "cost": seen.costs[0]}
        whole = self.decode(seen, masks and [masks(WHOLE)])
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


def _resized(maps: Tensor, size: Size) -> Tensor:
    """Maps [B, C, h, w] at another size, without antialiasing, as the official program does."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
