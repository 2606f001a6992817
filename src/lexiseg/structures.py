"""The values that flow through lexiseg: images, text embeddings, predictions, segments.

Letters, for the whole project: B images, Q queries or masks, K classes, S names (synonyms counted), T templates,
C channels, D width of CLIP's joint space, H × W pixels of an image, h × w cells of a feature or mask grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]  # (height, width)
Link = Literal["softmax", "sigmoid", "identity"]
Task = Literal["panoptic", "semantic", "instance"]

OUTSIDE = -100.0  # logit of a cell that is in no mask, and log-probability of a class that is not meant


def size_of(image: Tensor) -> Size:
    """(height, width) of an image or map [..., H, W]."""
    return int(image.shape[-2]), int(image.shape[-1])


@dataclass(frozen=True)
class ImageBatch:
    """Images of any sizes in one tensor.

    Attributes:
        pixels: [B, 3, H, W] float RGB in 0..1, each image in the top-left corner, zeros beyond it.
        sizes: (height, width) of each image.
    """

    pixels: Tensor
    sizes: tuple[Size, ...]

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Batch images [3, H_i, W_i], float RGB in 0..1."""
        sizes = tuple(size_of(image) for image in images)
        high, wide = max(h for h, _ in sizes), max(w for _, w in sizes)
        if len(images) == 1:  # without a copy
            return cls(images[0][None], sizes)
        padded = [functional.pad(image, (0, wide - w, 0, high - h)) for image, (h, w) in zip(images, sizes, strict=True)]
        return cls(torch.stack(padded), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Tensor]:
        """The images one by one, as `image` gives them."""
        return (self.image(index) for index in range(len(self)))

    def image(self, index: int) -> Tensor:
        """Image ``index`` without its padding, [3, H_i, W_i]."""
        high, wide = self.sizes[index]
        return self.pixels[index, :, :high, :wide]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ImageBatch:
        return replace(self, pixels=self.pixels.to(device=device, dtype=dtype))


@dataclass(frozen=True)
class TextEmbeddings:
    """What a vocabulary looks like in CLIP's joint space. Text is an argument of every method, never its state.

    Attributes:
        vectors: [S, D] unit rows, one a name.
        class_index: [S] the class each row belongs to, ascending.
        names: the K class names.
        things: [K] True for things, False for stuff.
        seen: [K] True where the method was trained on the class; None where nobody asked.
    """

    vectors: Tensor
    class_index: Tensor
    names: tuple[str, ...]
    things: Tensor
    seen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def per_class(self, scores: Tensor) -> Tensor:
        """The best name of each class: scores [..., S] -> [..., K]."""
        if scores.shape[-1] == len(self):
            return scores
        shape = (*scores.shape[:-1], len(self))
        lowest = scores.new_full(shape, -torch.inf)
        return lowest.scatter_reduce(-1, self.class_index.expand(scores.shape), scores, "amax", include_self=False)

    def first(self) -> Tensor:
        """The first name of each class, [K, D]."""
        numbers = torch.arange(len(self), device=self.class_index.device)
        return self.vectors[torch.searchsorted(self.class_index, numbers)]

    def mean(self) -> Tensor:
        """The mean of each class's names, as unit rows [K, D]."""
        total = self.vectors.new_zeros(len(self), self.vectors.shape[1]).index_add(0, self.class_index, self.vectors)
        return functional.normalize(total, dim=-1)

    def select(self, classes: Sequence[int] | Tensor) -> TextEmbeddings:
        """The same embeddings for some classes only, in the order given."""
        order = torch.as_tensor(classes, device=self.class_index.device)
        rows = [torch.nonzero(self.class_index == label).flatten() for label in order]
        class_index = torch.cat([torch.full_like(found, number) for number, found in enumerate(rows)])
        return TextEmbeddings(
            self.vectors[torch.cat(rows)],
            class_index,
            tuple(self.names[int(label)] for label in order),
            self.things[order],
            None if self.seen is None else self.seen[order],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextEmbeddings:
        return replace(
            self,
            vectors=self.vectors.to(device=device, dtype=dtype),
            class_index=self.class_index.to(device),
            things=self.things.to(device),
            seen=None if self.seen is None else self.seen.to(device),
        )


class Trace(dict[str, Tensor]):
    """Named maps [..., h, w] from inside one forward pass on one image, for figures and for looking.

    ``segmenter(images, text, trace=trace)`` fills it; which names there are is the method's, and stands in its docstring.
    What is returned is the same with and without.

    Attributes:
        share: of the area that each map covers, what the image fills, down and across, from the top-left corner; the rest
            is padding.
    """

    share: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class MaskPrediction:
    """Scored masks: what query-based methods and mask generators predict.

    Attributes:
        masks: [B, Q, h, w] logits; positive is inside.
        classes: [B, Q, K] log-probabilities, or [B, Q, K + 1] with "no object" last if ``void``.
        void: whether ``classes`` has that last column.
        sizes: (height, width) of each image in pixels.
        padded_sizes: (height, width) in pixels of the area the h × w grid covers from each image's top-left corner;
            larger than the image where the network saw padding.
        resized_sizes: (height, width) of each image where the network saw it at another size than its own: padded_sizes are
            pixels of that picture then, and masks are resized twice, as the official programs do. None: its own size.
        valid: [B, Q] False for rows that only pad a batch; None if all count.
        auxiliary: the predictions of earlier decoder layers, for deep supervision.
        semantic: predictions of the same images whose scores, summed, are the semantic result (a mask ensemble); empty where
            that is made of this prediction itself. No other result looks at them.
    """

    masks: Tensor
    classes: Tensor
    void: bool
    sizes: tuple[Size, ...]
    padded_sizes: tuple[Size, ...]
    valid: Tensor | None = None
    auxiliary: tuple[MaskPrediction, ...] = field(default=(), repr=False)
    resized_sizes: tuple[Size, ...] | None = None
    semantic: tuple[MaskPrediction, ...] = field(default=(), repr=False)

    def per_class(self) -> Tensor:
        """Scores whose last axis is the K classes, [B, Q, K]."""
        return self.classes[..., :-1] if self.void else self.classes

    def split(self) -> list[MaskPrediction]:
        """The predictions of the images one by one, as views."""
        return [self] if len(self.sizes) == 1 else [self._of(slice(index, index + 1)) for index in range(len(self.sizes))]

    def _of(self, images: slice) -> MaskPrediction:
        return MaskPrediction(
            masks=self.masks[images],
            classes=self.classes[images],
            void=self.void,
            sizes=self.sizes[images],
            padded_sizes=self.padded_sizes[images],
            valid=None if self.valid is None else self.valid[images],
            auxiliary=tuple(part._of(images) for part in self.auxiliary),
            resized_sizes=None if self.resized_sizes is None else self.resized_sizes[images],
            semantic=tuple(part._of(images) for part in self.semantic),
        )

    @classmethod
    def join(cls, predictions: Sequence[MaskPrediction]) -> MaskPrediction:
        """The prediction of a batch, of predictions of one image each; the inverse of `split`.

        Smaller grids, which must have cells of one size, are padded by repeating their edges; where there
        are fewer masks the rest is not ``valid``.
        """
        if len(predictions) == 1:
            return predictions[0]
        rows = max(one.masks.shape[1] for one in predictions)
        grid = max(one.masks.shape[2] for one in predictions), max(one.masks.shape[3] for one in predictions)
        whole = [one._padded(rows, grid) for one in predictions]
        return MaskPrediction(
            masks=torch.cat([one.masks for one in whole]),
            classes=torch.cat([one.classes for one in whole]),
            void=whole[0].void,
            sizes=tuple(one.sizes[0] for one in whole),
            padded_sizes=tuple(one.padded_sizes[0] for one in whole),
            valid=None if all(one.valid is None for one in whole) else torch.cat([one._valid_rows() for one in whole]),
            auxiliary=tuple(cls.join(parts) for parts in zip(*(one.auxiliary for one in whole), strict=True)),
            resized_sizes=tuple(one.resized_sizes[0] for one in whole if one.resized_sizes is not None) or None,
            semantic=tuple(cls.join(parts) for parts in zip(*(one.semantic for one in whole), strict=True)),
        )

    def _padded(self, rows: int, grid: Size) -> MaskPrediction:
        """The prediction of one image with more masks, on a larger grid of the same cells."""
        padded = self
        down, right = grid[0] - self.masks.shape[2], grid[1] - self.masks.shape[3]
        if down or right:
            cell = self.padded_sizes[0][0] // self.masks.shape[2]
            masks = functional.pad(self.masks, (0, right, 0, down), mode="replicate")
            padded = replace(padded, masks=masks, padded_sizes=((grid[0] * cell, grid[1] * cell),))
        if missing := rows - self.masks.shape[1]:
            padded = replace(
                padded,
                masks=functional.pad(padded.masks, (0, 0, 0, 0, 0, missing), value=OUTSIDE),
                classes=functional.pad(padded.classes, (0, 0, 0, missing), value=OUTSIDE),
                valid=functional.pad(self._valid_rows(), (0, missing)),
            )
        return padded

    def _valid_rows(self) -> Tensor:
        """[B, Q] bool, `valid` or True everywhere."""
        return self.masks.new_ones(self.masks.shape[:2], dtype=torch.bool) if self.valid is None else self.valid


@dataclass(frozen=True)
class PixelPrediction:
    """Class scores of every pixel: what cost-aggregation methods predict.

    Attributes:
        logits: [B, K, h, w].
        sizes, padded_sizes, resized_sizes: as in `MaskPrediction`.
        link: what makes them probabilities, after they are resized: "softmax" over the classes, "sigmoid" of each class by
            itself, or "identity": they are probabilities of each class by itself already.
    """

    logits: Tensor
    sizes: tuple[Size, ...]
    padded_sizes: tuple[Size, ...]
    resized_sizes: tuple[Size, ...] | None = None
    link: Link = "softmax"

    def probabilities(self, resized: Tensor) -> Tensor:
        """Of resized logits of one image, [K, ...]."""
        if self.link == "softmax":
            return resized.softmax(0)
        return resized.sigmoid() if self.link == "sigmoid" else resized

    def per_class(self) -> Tensor:
        """Scores whose last axis is the K classes, [B, h, w, K]."""
        return self.logits.movedim(1, -1)

    def split(self) -> list[PixelPrediction]:
        """The predictions of the images one by one, as views."""
        return [
            PixelPrediction(
                self.logits[index : index + 1],
                (size,),
                (self.padded_sizes[index],),
                None if self.resized_sizes is None else (self.resized_sizes[index],),
                self.link,
            )
            for index, size in enumerate(self.sizes)
        ]


@dataclass(frozen=True)
class Segment:
    """One named region of a result.

    Attributes:
        id: its number in the panoptic map (from 1); instances are numbered in the order of their scores.
        label: index of its class in the vocabulary.
        name: name of its class.
        thing: whether the class is countable.
        score: confidence in 0..1.
        area: pixels.
        box: (left, top, width, height) in pixels, COCO's order.
    """

    id: int
    label: int
    name: str
    thing: bool
    score: float
    area: int
    box: tuple[int, int, int, int]


# --- truth, and results to be measured against it ---------------------------------------------------------------------

IGNORED = -1  # in a semantic truth [H, W] int32: nobody says what this pixel is, so it is not measured


@dataclass(frozen=True)
class PanopticSegment:
    """What a number of a panoptic map means.

    Attributes:
        id: the number.
        label: its class.
        crowd: a group of things nobody counted.
        area: of a truth, pixels as the data set states them, which PQ goes by (ADE20K counts what lies under things);
            None: those of the map.
    """

    id: int
    label: int
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class PanopticMap:
    """A panoptic truth or result.

    Attributes:
        ids: [H, W] int32, the segment of each pixel; 0 is void.
        segments: one a number in ``ids``.
    """

    ids: NDArray[np.int32]
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True)
class Instance:
    """One thing of a truth or a result.

    Attributes:
        label: its class.
        counts: its mask as COCO's runs, see `lexiseg.ops.rle`.
        area: as its data set states it (COCO's is that of the polygon); of results, pixels.
        box: (left, top, width, height) in pixels.
        crowd: a group nobody counted; results may lie in it without being wrong.
        score: of results, the confidence.
    """

    label: int
    counts: NDArray[np.int64]
    area: float
    box: tuple[float, float, float, float]
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class Instances:
    """The things of one image.

    Attributes:
        size: (height, width) in pixels.
        things: the instances.
        checked: the labels somebody looked for; results of others are not measured. None: all (LVIS is federated).
        partly: the labels of which only some instances are marked, so that further results are not wrong (LVIS).
    """

    size: Size
    things: tuple[Instance, ...]
    checked: frozenset[int] | None = None
    partly: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MaskTarget:
    """What the masks of one image should be, for losses.

    Attributes:
        masks: [N, H, W] bool, in pixels from the image's top-left corner; what lies beyond H × W is in no mask.
        labels: [N] int64, the class of each.
    """

    masks: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> MaskTarget:
        return MaskTarget(self.masks.to(device), self.labels.to(device))
