"""Data structures of lexiseg: images, text embeddings, predictions, segments.

Letters, in the whole project: B images, Q queries or masks, K classes, S names (synonyms counted), T templates,
C channels, D width of CLIP's joint space, H × W pixels of an image, h × w cells of a feature or mask grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]  # (height, width)
UnitBox = tuple[float, float, float, float]  # (left, top, right, bottom) as fractions of an image's width and height
Task = Literal["panoptic", "semantic", "instance"]


class PixelWindows(Protocol):
    """Picture [H, W, 3] uint8 RGB that is read by windows; NumPy reads it as a whole."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, W and 3."""
        ...

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[np.uint8]:
        """The pixels of some rows and columns."""
        ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]: ...


WHOLE: UnitBox = (0.0, 0.0, 1.0, 1.0)
OUTSIDE = -100.0  # logit of cells outside a mask and of classes outside the top-k, log-probability of excluded classes


def size_of(image: Tensor) -> Size:
    """(height, width) of an image or map [..., H, W]."""
    return int(image.shape[-2]), int(image.shape[-1])


@dataclass(frozen=True)
class Geometry:
    """Position of a grid on an image: it covers the network input, which holds the resized image in its top-left corner.

    Sizes are (height, width) in pixels.

    Attributes:
        padded_size: of the network input, padding included.
        resized_size: of the image in the network input.
        size: of the original image.
    """

    padded_size: Size
    resized_size: Size
    size: Size

    @classmethod
    def unresized(cls, size: Size, padded_size: Size | None = None) -> Geometry:
        """Geometry of an image that is not resized and, without ``padded_size``, not padded."""
        return cls(padded_size or size, size, size)

    def one_step(self) -> Geometry:
        """The same grid with the padded size in pixels of the original image, rounded, so that it is resized only once."""
        sides = zip(self.padded_size, self.size, self.resized_size, strict=True)
        high, wide = (round(padded * length / resized) for padded, length, resized in sides)
        return Geometry.unresized(self.size, (high, wide))

    @property
    def padded_box(self) -> UnitBox:
        """Box of the network input; its right and bottom exceed 1 if it is padded."""
        return 0.0, 0.0, self.padded_size[1] / self.resized_size[1], self.padded_size[0] / self.resized_size[0]

    def cells(self, grid: Size) -> tuple[float, float]:
        """(height, width) of the image in cells of a grid of ``grid`` (height, width) cells."""
        sides = zip(self.resized_size, grid, self.padded_size, strict=True)
        high, wide = (resized * cells / padded for resized, cells, padded in sides)
        return high, wide

    def upsample(self, maps: Tensor) -> Tensor:
        """Upsample maps [N, h, w] to the original image, [N, H, W], in two steps as the official code of SAM and Mask2Former.

        Bilinear to the padded size, crop of the padding, bilinear to the original size; corners are not aligned.
        """
        if len(maps) == 0:
            return maps.new_zeros((0, *self.size))
        pixels = _interpolated(maps.float(), self.padded_size)[:, : self.resized_size[0], : self.resized_size[1]]
        return _interpolated(pixels, self.size)

    def upsample_rows(self, maps: Tensor, top: int, bottom: int) -> Tensor:
        """Rows ``top`` to ``bottom`` of the result of `upsample`, [N, bottom - top, W], computed alone."""
        if len(maps) == 0:
            return maps.new_zeros((0, bottom - top, self.size[1]))
        above, below, weight = _neighbours(torch.arange(top, bottom, device=maps.device), self.size[0], self.resized_size[0])
        first, last = int(above[0]), int(below[-1])
        resized_rows = torch.arange(first, last + 1, device=maps.device)
        rows = _lerp(maps.float(), *_neighbours(resized_rows, self.padded_size[0], maps.shape[-2]))
        wide = _interpolated(rows, (rows.shape[-2], self.padded_size[1]))[..., : self.resized_size[1]]
        return _interpolated(_lerp(wide, above - first, below - first, weight), (bottom - top, self.size[1]))

    def sample(self, maps: Tensor, size: Size, box: UnitBox = WHOLE, *, outside: float = OUTSIDE) -> Tensor:
        """Sample maps [N, h, w] bilinearly at the centres of cells of a box, [N, height, width].

        Args:
            maps: on the grid.
            size: (height, width) of the output, in cells.
            box: box of the image, which may extend beyond it.
            outside: value of cells with centres beyond the image.
        """
        if len(maps) == 0:
            return maps.new_zeros((0, *size))
        left, top, right, bottom = box
        y, x = (
            start + (torch.arange(cells, device=maps.device) + 0.5) / cells * (stop - start)
            for cells, start, stop in zip(size, (top, left), (bottom, right), strict=True)
        )
        high, wide = (resized / padded for resized, padded in zip(self.resized_size, self.padded_size, strict=True))
        points = torch.stack(torch.meshgrid(y * high * 2 - 1, x * wide * 2 - 1, indexing="ij")[::-1], -1)
        values = functional.grid_sample(maps.float()[None], points[None], padding_mode="border", align_corners=False)[0]
        return values.masked_fill(((y < 0) | (y > 1))[:, None] | (x < 0) | (x > 1), outside)


def _interpolated(maps: Tensor, size: Size) -> Tensor:
    if size_of(maps) == size:
        return maps
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _neighbours(rows: Tensor, length: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear resizing from ``cells`` to ``length``: for some output rows the cell above, the cell below, and its weight."""
    y = ((rows + 0.5) * (cells / length) - 0.5).clamp(min=0)
    above = y.long().clamp(max=cells - 1)
    return above, (above + 1).clamp(max=cells - 1), (y - above)[:, None]


def _lerp(maps: Tensor, above: Tensor, below: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(maps[:, above], maps[:, below], weight)


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
    """Names of a vocabulary and their embeddings. Text is an argument of every method, never part of its state.

    Attributes:
        vectors: [S, D] unit vectors in CLIP's joint space, one per name; D = 0 for methods that read the names themselves.
        class_index: [S] class of each row, ascending.
        names: names of the K classes.
        things: [K] True for things, False for stuff.
        seen: [K] True for classes the method was trained on; None if not determined.
        all_names: the S names, one per row, synonyms included; empty if only vectors are known.
    """

    vectors: Tensor
    class_index: Tensor
    names: tuple[str, ...]
    things: Tensor
    seen: Tensor | None = None
    all_names: tuple[str, ...] = ()

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
        numbers = torch.cat(rows)
        return TextEmbeddings(
            self.vectors[numbers],
            class_index,
            tuple(self.names[int(label)] for label in order),
            self.things[order],
            None if self.seen is None else self.seen[order],
            tuple(self.all_names[number] for number in numbers.tolist()) if self.all_names else (),
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
        geometry: of all maps on the image; None: they cover the image without padding.
    """

    geometry: Geometry | None = None


@dataclass(frozen=True)
class MaskPrediction:
    """Masks with class scores: the prediction of query-based methods and mask generators.

    Attributes:
        masks: [B, Q, h, w] logits; positive is inside.
        classes: [B, Q, K] log-probabilities, or [B, Q, K + 1] with "no object" last if ``void``.
        void: whether ``classes`` includes "no object".
        geometries: position of the h × w grid on each image.
        valid: [B, Q] bool, False for queries that pad the batch; None if all are valid.
        auxiliary: predictions of earlier decoder layers, for deep supervision.
        semantic_ensemble: predictions of the same images whose semantic scores are summed instead of this one's; empty: only
            this one's. Panoptic and instance results ignore them.
    """

    masks: Tensor
    classes: Tensor
    void: bool
    geometries: tuple[Geometry, ...]
    valid: Tensor | None = None
    auxiliary: tuple[MaskPrediction, ...] = field(default=(), repr=False)
    semantic_ensemble: tuple[MaskPrediction, ...] = field(default=(), repr=False)

    def per_class(self) -> Tensor:
        """Class scores without "no object", [B, Q, K]."""
        return self.classes[..., :-1] if self.void else self.classes

    def split(self) -> list[MaskPrediction]:
        """Split into predictions of one image each, as views."""
        count = len(self.geometries)
        return [self] if count == 1 else [self._of(slice(index, index + 1)) for index in range(count)]

    def _of(self, images: slice) -> MaskPrediction:
        return MaskPrediction(
            masks=self.masks[images],
            classes=self.classes[images],
            void=self.void,
            geometries=self.geometries[images],
            valid=None if self.valid is None else self.valid[images],
            auxiliary=tuple(layer._of(images) for layer in self.auxiliary),
            semantic_ensemble=tuple(part._of(images) for part in self.semantic_ensemble),
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
            geometries=tuple(image.geometries[0] for image in padded),
            valid=None if all_valid else torch.cat([image._valid_rows() for image in padded]),
            auxiliary=tuple(map(cls.join, zip(*(image.auxiliary for image in padded), strict=True))),
            semantic_ensemble=tuple(map(cls.join, zip(*(image.semantic_ensemble for image in padded), strict=True))),
        )

    def _padded(self, rows: int, grid: Size) -> MaskPrediction:
        """Pad the prediction of one image to ``rows`` masks on a larger grid of equal cells."""
        padded = self
        down, right = grid[0] - self.masks.shape[2], grid[1] - self.masks.shape[3]
        if down or right:
            cell = self.geometries[0].padded_size[0] // self.masks.shape[2]
            masks = functional.pad(self.masks, (0, right, 0, down), mode="replicate")
            geometry = replace(self.geometries[0], padded_size=(grid[0] * cell, grid[1] * cell))
            padded = replace(padded, masks=masks, geometries=(geometry,))
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
    """Class probabilities of every pixel: the prediction of cost-aggregation methods.

    Attributes:
        probabilities: [B, K, h, w], independent of each other: they need not sum to 1.
        geometries: as in `MaskPrediction`.
        mask_prediction: masks of the same images with class scores, for panoptic and instance results; None: panoptic results
            have one region per class, and there are no instances.
    """

    probabilities: Tensor
    geometries: tuple[Geometry, ...]
    mask_prediction: MaskPrediction | None = None

    def per_class(self) -> Tensor:
        """Probabilities with the K classes last, [B, h, w, K]."""
        return self.probabilities.movedim(1, -1)

    def split(self) -> list[PixelPrediction]:
        """Split into predictions of one image each, as views."""
        count = len(self.geometries)
        masks = [None] * count if self.mask_prediction is None else self.mask_prediction.split()
        parts = zip(self.probabilities.split(1), self.geometries, masks, strict=True)
        return [PixelPrediction(probabilities, (geometry,), each) for probabilities, geometry, each in parts]

    @classmethod
    def join(cls, predictions: Sequence[PixelPrediction]) -> PixelPrediction:
        """Batch predictions with grids of one size; the inverse of `split`."""
        if len(predictions) == 1:  # without a copy
            return predictions[0]
        masks = [each for part in predictions if part.mask_prediction is not None for each in part.mask_prediction.split()]
        return cls(
            torch.cat([part.probabilities for part in predictions]),
            tuple(geometry for part in predictions for geometry in part.geometries),
            MaskPrediction.join(masks) if masks else None,
        )


def masks_of(prediction: MaskPrediction | PixelPrediction) -> MaskPrediction | None:
    """The masks of a prediction for panoptic and instance results; None if it is of pixels alone."""
    return prediction if isinstance(prediction, MaskPrediction) else prediction.mask_prediction


@dataclass(frozen=True)
class Segment:
    """Named region of a result.

    Attributes:
        id: its number in the panoptic map, from 1; instances are numbered by descending score, results of prompts by the
            prompts; in a video it is kept over the frames.
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
