"""Data structures of lexiseg: images, text embeddings, predictions, segments.

Letters, in the whole project: B images, Q queries or masks, K classes, S names (synonyms counted), T templates,
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

OUTSIDE = -100.0  # logit of cells outside a mask, and log-probability of classes that are excluded


def size_of(image: Tensor) -> Size:
    """(height, width) of an image or map [..., H, W]."""
    return int(image.shape[-2]), int(image.shape[-1])


@dataclass(frozen=True)
class ImageBatch:
    """Batch of images of any sizes, padded to one tensor.

    Attributes:
        pixels: [B, 3, H, W] float RGB in 0..1, each image in the top-left corner, padded with zeros.
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
        """Iterate over the images without padding."""
        return (self.image(index) for index in range(len(self)))

    def image(self, index: int) -> Tensor:
        """Image ``index`` without its padding, [3, H_i, W_i]."""
        high, wide = self.sizes[index]
        return self.pixels[index, :, :high, :wide]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ImageBatch:
        return replace(self, pixels=self.pixels.to(device=device, dtype=dtype))


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of a vocabulary in CLIP's joint space. Text is an argument of every method, never part of its state.

    Attributes:
        vectors: [S, D] unit vectors, one per name.
        class_index: [S] class of each row, ascending.
        names: names of the K classes.
        things: [K] True for things, False for stuff.
        seen: [K] True for classes the method was trained on; None if not determined.
    """

    vectors: Tensor
    class_index: Tensor
    names: tuple[str, ...]
    things: Tensor
    seen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def per_class(self, scores: Tensor) -> Tensor:
        """Maximum over the names of each class: scores [..., S] -> [..., K]."""
        if scores.shape[-1] == len(self):
            return scores
        shape = (*scores.shape[:-1], len(self))
        lowest = scores.new_full(shape, -torch.inf)
        return lowest.scatter_reduce(-1, self.class_index.expand(scores.shape), scores, "amax", include_self=False)

    def first(self) -> Tensor:
        """Embedding of the first name of each class, [K, D]."""
        numbers = torch.arange(len(self), device=self.class_index.device)
        return self.vectors[torch.searchsorted(self.class_index, numbers)]

    def mean(self) -> Tensor:
        """Mean embedding of the names of each class, unit vectors [K, D]."""
        total = self.vectors.new_zeros(len(self), self.vectors.shape[1]).index_add(0, self.class_index, self.vectors)
        return functional.normalize(total, dim=-1)

    def select(self, classes: Sequence[int] | Tensor) -> TextEmbeddings:
        """Embeddings of a subset of the classes, in the order given."""
        order = torch.as_tensor(classes, device=self.class_index.device)
        rows = [torch.nonzero(self.class_index == label).flatten() for label in order]
        class_index = torch.cat([torch.full_like(members, number) for number, members in enumerate(rows)])
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
    """Named intermediate maps [..., h, w] of one forward pass on one image, for figures and inspection.

    ``segmenter(images, text, trace=trace)`` fills it; the names are documented in ``forward`` of each method. Tracing does not
    change the prediction.

    Attributes:
        fraction: (vertical, horizontal) fraction of each map that the image covers, from the top-left corner; the rest is
            padding.
    """

    fraction: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class MaskPrediction:
    """Masks with class scores: the prediction of query-based methods and mask generators.

    Attributes:
        masks: [B, Q, h, w] logits; positive is inside.
        classes: [B, Q, K] log-probabilities, or [B, Q, K + 1] with "no object" last if ``void``.
        void: whether ``classes`` includes "no object".
        sizes: (height, width) of each image in pixels.
        padded_sizes: (height, width) in pixels of the area that the h × w grid covers, from the top-left corner of each
            image, padding included.
        resized_sizes: (height, width) of each image in the network, if it was resized; padded_sizes then refer to the resized
            image, and masks are resized twice, as in the official code. None: images were not resized.
        valid: [B, Q] bool, False for queries that pad the batch; None if all are valid.
        auxiliary: predictions of earlier decoder layers, for deep supervision.
        semantic: predictions of the same images whose scores are summed for the semantic result (a mask ensemble); empty if
            it is computed from this prediction. Panoptic and instance results ignore them.
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
        """Class scores without "no object", [B, Q, K]."""
        return self.classes[..., :-1] if self.void else self.classes

    def split(self) -> list[MaskPrediction]:
        """Split into predictions of one image each, as views."""
        return [self] if len(self.sizes) == 1 else [self._of(slice(index, index + 1)) for index in range(len(self.sizes))]

    def _of(self, images: slice) -> MaskPrediction:
        return MaskPrediction(
            masks=self.masks[images],
            classes=self.classes[images],
            void=self.void,
            sizes=self.sizes[images],
            padded_sizes=self.padded_sizes[images],
            valid=None if self.valid is None else self.valid[images],
            auxiliary=tuple(layer._of(images) for layer in self.auxiliary),
            resized_sizes=None if self.resized_sizes is None else self.resized_sizes[images],
            semantic=tuple(part._of(images) for part in self.semantic),
        )

    @classmethod
    def join(cls, predictions: Sequence[MaskPrediction]) -> MaskPrediction:
        """Batch predictions of one image each; the inverse of `split`.

        Smaller grids, whose cells must have one size, are padded by replication; missing masks are not ``valid``.
        """
        if len(predictions) == 1:
            return predictions[0]
        rows = max(image.masks.shape[1] for image in predictions)
        grid = max(image.masks.shape[2] for image in predictions), max(image.masks.shape[3] for image in predictions)
        padded = [image._padded(rows, grid) for image in predictions]
        all_valid = all(image.valid is None for image in padded)
        return MaskPrediction(
            masks=torch.cat([image.masks for image in padded]),
            classes=torch.cat([image.classes for image in padded]),
            void=padded[0].void,
            sizes=tuple(image.sizes[0] for image in padded),
            padded_sizes=tuple(image.padded_sizes[0] for image in padded),
            valid=None if all_valid else torch.cat([image._valid_rows() for image in padded]),
            auxiliary=tuple(cls.join(parts) for parts in zip(*(image.auxiliary for image in padded), strict=True)),
            resized_sizes=tuple(image.resized_sizes[0] for image in padded if image.resized_sizes is not None) or None,
            semantic=tuple(cls.join(parts) for parts in zip(*(image.semantic for image in padded), strict=True)),
        )

    def _padded(self, rows: int, grid: Size) -> MaskPrediction:
        """Pad the prediction of one image to ``rows`` masks on a larger grid of equal cells."""
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
        """`valid`, or all True, [B, Q] bool."""
        return self.masks.new_ones(self.masks.shape[:2], dtype=torch.bool) if self.valid is None else self.valid


@dataclass(frozen=True)
class PixelPrediction:
    """Class scores of every pixel: the prediction of cost-aggregation methods.

    Attributes:
        logits: [B, K, h, w].
        sizes, padded_sizes, resized_sizes: as in `MaskPrediction`.
        link: function from resized logits to probabilities: "softmax" over the classes, "sigmoid" of each class, or
            "identity" if ``logits`` are independent probabilities already.
    """

    logits: Tensor
    sizes: tuple[Size, ...]
    padded_sizes: tuple[Size, ...]
    resized_sizes: tuple[Size, ...] | None = None
    link: Link = "softmax"

    def probabilities(self, resized: Tensor) -> Tensor:
        """Probabilities of the resized logits [K, ...] of one image."""
        if self.link == "softmax":
            return resized.softmax(0)
        return resized.sigmoid() if self.link == "sigmoid" else resized

    def per_class(self) -> Tensor:
        """Logits with the K classes last, [B, h, w, K]."""
        return self.logits.movedim(1, -1)

    def split(self) -> list[PixelPrediction]:
        """Split into predictions of one image each, as views."""
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
    """Named region of a result.

    Attributes:
        id: its number in the panoptic map, from 1; instances are numbered by descending score.
        label: class index in the vocabulary.
        name: class name.
        thing: whether the class is a thing class.
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


# --- ground truth, and results that are evaluated -------------------------------------------------------------------

IGNORED = -1  # ignore label of a semantic ground truth [H, W] int32


@dataclass(frozen=True)
class PanopticSegment:
    """Segment of a panoptic map.

    Attributes:
        id: its number in the map.
        label: its class.
        crowd: whether it is a crowd region, a group of things that are not annotated individually.
        area: of a ground truth, in pixels as annotated, which PQ uses (ADE20K includes occluded pixels); None: counted in the
            map.
    """

    id: int
    label: int
    crowd: bool = False
    area: float | None = None


@dataclass(frozen=True)
class PanopticMap:
    """Panoptic ground truth or result.

    Attributes:
        ids: [H, W] int32, the segment of each pixel; 0 is void.
        segments: one per number in ``ids``.
    """

    ids: NDArray[np.int32]
    segments: tuple[PanopticSegment, ...]


@dataclass(frozen=True)
class Instance:
    """Instance of a thing class, of a ground truth or a result.

    Attributes:
        label: its class.
        counts: its mask as COCO run lengths, see `lexiseg.ops.rle`.
        area: as annotated (in COCO that of the polygon); of results, in pixels.
        box: (left, top, width, height) in pixels.
        crowd: whether it is a crowd region; results inside it are not false positives.
        score: of results, confidence in 0..1.
    """

    label: int
    counts: NDArray[np.int64]
    area: float
    box: tuple[float, float, float, float]
    crowd: bool = False
    score: float = 1.0


@dataclass(frozen=True)
class Instances:
    """Instances of one image.

    Attributes:
        size: (height, width) in pixels.
        things: the instances.
        checked: labels that were annotated or verified as absent; results of other labels are ignored (LVIS is federated).
            None: all.
        partly: labels that are not exhaustively annotated, so that unmatched results are ignored (LVIS).
    """

    size: Size
    things: tuple[Instance, ...]
    checked: frozenset[int] | None = None
    partly: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MaskTarget:
    """Ground-truth masks of one image, for losses.

    Attributes:
        masks: [N, H, W] bool, from the top-left corner of the image; pixels beyond H × W are in no mask.
        labels: [N] int64, the class of each mask.
    """

    masks: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> MaskTarget:
        return MaskTarget(self.masks.to(device), self.labels.to(device))
