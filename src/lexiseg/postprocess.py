"""From predictions to results: semantic, panoptic and instance, with one policy for what has no name.

Pixels and regions stay *void* where no class reaches ``threshold`` or the winner is one of ``background``'s classes.
Masks are resized only for the queries that can still win something, and each of them once.

Where Mask2Former's code, and with it FC-CLIP's and CMPF's, counts otherwise, `Policy` has an option; `MASK2FORMER` sets
them all. Its semantic scores are sums over queries, ours are divided by how many masks lie on a pixel: the classes are
the same, and ``semantic_scores(..., divide=False)`` gives the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.ops.masks import areas_of_masks
from lexiseg.ops.memory import masks_at_once, require_memory
from lexiseg.structures import MaskPrediction, PixelPrediction, Size, TextEmbeddings

VOID = -1  # the label of a pixel without a class
ROWS = 64  # masks resized at once at most
SLACK = 1e-3  # relative; what a bound says must not depend on rounding
PIXELS = 4096  # pixels whose classes are compared at once: what bounds the memory, not the number of classes
STRIP = 2**22  # pixels of an image that are looked at at once, where it can be done row by row
# Of a region's pixel: its mask, the stack of all masks, and what torch makes of that to add it up (`as_segmentation`).
REGION_BYTES = 10


@dataclass(frozen=True)
class Policy:
    """What counts as a result.

    Attributes:
        threshold: least score of a named region or pixel, 0..1.
        overlap: a panoptic region keeps its place if at least this share of its mask is still its own.
        background: labels that compete like any class and become void where they win.
        detections: the most instances an image may have.
        generous_overlap: a region keeps its place also by pixels that it won outside its mask, where it is the least
            unlikely of all. They count, but stay void.
        stuff_detections: stuff takes places among the ``detections`` before it is dropped, so fewer things may remain.
    """

    threshold: float = 0.0
    overlap: float = 0.8
    background: frozenset[int] = frozenset()
    detections: int = 100
    generous_overlap: bool = False
    stuff_detections: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold", "overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must lie in 0..1, not {value}")


MASK2FORMER = Policy(generous_overlap=True, stuff_detections=True)


@dataclass(frozen=True)
class Region:
    """A mask with a label and a score: ``mask`` [H, W] bool."""

    mask: Tensor
    label: int
    score: float


# --- semantic ---------------------------------------------------------------------------------------------------------


def semantic(prediction: MaskPrediction | PixelPrediction, policy: Policy = Policy()) -> list[Tensor]:
    """Label maps, one an image: [H, W] int32 with `VOID` where nothing is named."""
    return [label_map(score, label, policy) for score, label in semantic_best(prediction)]


def semantic_scores(prediction: MaskPrediction | PixelPrediction, *, divide: bool = True) -> Iterator[Tensor]:
    """For each image the class probabilities of its pixels, [K, H, W].

    Masks: sum over queries of class probability × mask probability, divided by the sum of mask probabilities where that
    exceeds one, so that a score is a probability however many masks overlap. [decided] Of a mask ensemble
    (``prediction.semantic``): the sum of the sums of its parts, divided by the largest of theirs.

    Args:
        prediction: of B images.
        divide: False for the sums themselves, which are what Mask2Former's code gives.
    """
    if isinstance(prediction, PixelPrediction):
        for index in range(len(prediction.sizes)):
            yield prediction.probabilities(resized(prediction.logits[index], Placing.of(prediction, index)))
        return
    parts = _parts(prediction)
    for index, size in enumerate(parts[0].sizes):
        total = parts[0].masks.new_zeros((parts[0].per_class().shape[-1], *size), dtype=torch.float32)
        most = total.new_ones(size)
        for part in parts:
            rows, cover = _rows(part, index), total.new_zeros(size)
            for chunk in rows.split(ROWS):
                masks = resized(part.masks[index, chunk], Placing.of(part, index)).sigmoid()
                total += torch.einsum("qk,qhw->khw", part.per_class()[index, chunk].float().exp(), masks)
                cover += masks.sum(0)
            most = torch.maximum(most, cover)
        yield total / most if divide else total


def semantic_best(prediction: MaskPrediction | PixelPrediction) -> Iterator[tuple[Tensor, Tensor]]:
    """For each image the probability of every pixel's best class, and that class, [H, W] both.

    The maximum of `semantic_scores` over the classes, band by band of the image: K × H × W numbers never exist.
    """
    if isinstance(prediction, PixelPrediction):
        for index, size in enumerate(prediction.sizes):
            yield _best_by_bands(size, partial(_pixel_scores, prediction, index))
        return
    parts = _parts(prediction)
    for index, size in enumerate(parts[0].sizes):
        masks = [_of_rows(part.masks, part, index) for part in parts]
        classes = [_of_rows(part.per_class(), part, index).float().exp() for part in parts]
        places = [Placing.of(part, index) for part in parts]
        yield _best_by_bands(size, partial(_mask_scores, masks, classes, places))


def _best_by_bands(size: Size, scores: Callable[[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """The maximum over classes of ``scores`` (first pixel row, row after the last -> [K, rows, W]), and its class in int32."""
    height, width = size
    high = max(1, PIXELS // width)
    best: list[tuple[Tensor, Tensor]] = []
    for top in range(0, height, high):
        score, label = scores(top, min(top + high, height)).max(0)
        if not best:
            best.append((score.new_empty(size), label.new_empty(size, dtype=torch.int32)))
        best[0][0][top : top + high], best[0][1][top : top + high] = score, label
    return best[0]


def _pixel_scores(prediction: PixelPrediction, index: int, top: int, bottom: int) -> Tensor:
    return prediction.probabilities(_band(prediction.logits[index], Placing.of(prediction, index), top, bottom))


def _mask_scores(
    masks: Sequence[Tensor], classes: Sequence[Tensor], places: Sequence[Placing], top: int, bottom: int
) -> Tensor:
    bands = [_band(logits, place, top, bottom).sigmoid() for logits, place in zip(masks, places, strict=True)]
    sums = [torch.einsum("qk,qhw->khw", named, band) for named, band in zip(classes, bands, strict=True)]
    most = torch.stack([band.sum(0) for band in bands]).amax(0).clamp(min=1)
    return sum(sums[1:], sums[0]) / most


def _parts(prediction: MaskPrediction) -> tuple[MaskPrediction, ...]:
    return prediction.semantic or (prediction,)


def label_map(score: Tensor, label: Tensor, policy: Policy) -> Tensor:
    """The class of every pixel [H, W] int32, or `VOID`, of the best classes [H, W] and their probabilities."""
    named = label.to(torch.int32, copy=True)
    named[(score <= 0) | (score < policy.threshold)] = VOID
    for background in policy.background:
        named[named == background] = VOID
    return named


def class_regions(score: Tensor, labels: Tensor) -> list[Region]:
    """One region for each class of a label map [H, W]; its score is the mean over its pixels of ``score`` [H, W]."""
    strips = _strips((labels.shape[0], labels.shape[1]))
    present = sorted({label for rows in strips for label in labels[rows].unique().tolist()} - {VOID})
    require_memory(len(present) * labels.numel() * REGION_BYTES, f"{len(present)} regions")
    masks = [labels == label for label in present]
    return [Region(mask, label, _mean(score, mask, strips)) for label, mask in zip(present, masks, strict=True)]


def _mean(values: Tensor, mask: Tensor, strips: Sequence[slice]) -> float:
    """The mean of ``values`` [H, W] inside a mask that is not empty."""
    inside = [values[rows][mask[rows]] for rows in strips]
    return sum(float(part.sum()) for part in inside) / sum(len(part) for part in inside)


# --- panoptic ---------------------------------------------------------------------------------------------------------


def panoptic(
    prediction: MaskPrediction | PixelPrediction, text: TextEmbeddings, policy: Policy = Policy()
) -> list[tuple[Tensor, list[Region]]]:
    """For each image a map of region numbers [H, W] int32 (0 is void, n is the n-th region) and the regions.

    Every pixel goes to the query with the largest score × mask probability; what keeps less than ``overlap`` of its
    mask is dropped; stuff of one class is one region.
    """
    if isinstance(prediction, PixelPrediction):
        return [_panoptic_of_pixels(score, label, policy) for score, label in semantic_best(prediction)]
    return [_panoptic_of_masks(prediction, index, text.things.tolist(), policy) for index in range(len(prediction.sizes))]


def _panoptic_of_masks(
    prediction: MaskPrediction, index: int, things: list[bool], policy: Policy
) -> tuple[Tensor, list[Region]]:
    size, place = prediction.sizes[index], Placing.of(prediction, index)
    score, label = prediction.classes[index].float().exp().max(-1)
    rows = _rows(prediction, index)
    named = (label[rows] < prediction.per_class().shape[-1]) & (score[rows] > 0) & (score[rows] >= policy.threshold)
    rows = rows[named]
    rows = rows[_may_win(prediction.masks[index, rows], score[rows], 2 if place.resized_size == size else 3)]
    own, kept, won, area = _owners(prediction.masks[index], rows, score[rows], place)
    counted = won if policy.generous_overlap else kept
    claims = [
        (position, name, sureness)
        for position, (name, sureness) in enumerate(zip(label[rows].tolist(), score[rows].tolist(), strict=True))
        if kept[position] and counted[position] / area[position] >= policy.overlap and name not in policy.background
    ]
    require_memory(len(claims) * own.numel() * REGION_BYTES, f"{len(claims)} regions")
    numbers = torch.zeros(size, dtype=torch.int32, device=score.device)
    regions: list[Region] = []
    stuff: dict[int, int] = {}
    for position, name, sureness in claims:
        mask = own == position
        if name in stuff:
            number = stuff[name]
            merged = regions[number - 1]
            regions[number - 1] = Region(merged.mask | mask, name, max(merged.score, sureness))
        else:
            regions.append(Region(mask, name, sureness))
            number = len(regions)
            if not things[name]:
                stuff[name] = number
        numbers.masked_fill_(mask, number)
    return numbers, regions


def _owners(masks: Tensor, rows: Tensor, score: Tensor, place: Placing) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Which query each pixel goes to, by the largest score × mask probability.

    Args:
        masks: logits [Q, h, w].
        rows: which of them take part, [N].
        score: theirs, [N].
        place: how the grid lies on the image.

    Returns:
        The number 0..N - 1 of the owner of each pixel [H, W] int32, -1 where there is none or the pixel is outside of its mask;
        and for each of the N how many pixels it owns, how many it would with those outside of its mask, and how many its mask
        has.
    """
    owner = torch.full(place.size, -1, dtype=torch.int32, device=score.device)
    inside = torch.zeros(place.size, dtype=torch.bool, device=score.device)
    highest = score.new_full(place.size, -1.0)
    strips, some = _strips(place.size), masks_at_once(place.size, ROWS)
    areas = [torch.zeros(0, dtype=torch.int64, device=score.device)]
    for start in range(0, len(rows), some):
        logits = resized(masks[rows[start : start + some]], place)
        weights, area = score[start : start + some, None, None], rows.new_zeros(len(logits))
        for strip in strips:
            certain = logits[:, strip].sigmoid()
            within = certain >= 0.5
            area += areas_of_masks(within)
            claim, row = (weights * certain).max(0)
            better = claim > highest[strip]
            owner[strip] = torch.where(better, row.int() + start, owner[strip])
            inside[strip] = torch.where(better, within.gather(0, row[None])[0], inside[strip])
            highest[strip] = torch.where(better, claim, highest[strip])
        areas.append(area)
    won = _counts(owner, len(rows), strips)
    owner.masked_fill_(inside.logical_not_(), -1)
    return owner, _counts(owner, len(rows), strips), won, torch.cat(areas).tolist()


def _counts(numbers: Tensor, count: int, strips: Sequence[slice]) -> list[int]:
    """How often each of 0..count - 1 is in a map [H, W] of these and -1."""
    total = numbers.new_zeros(count + 1, dtype=torch.int64)
    for rows in strips:
        total += torch.bincount(numbers[rows].flatten() + 1, minlength=count + 1)
    return total[1:].tolist()


def _strips(size: Size) -> list[slice]:
    """The rows of an image in slices of about `STRIP` pixels."""
    high = max(1, STRIP // size[1])
    return [slice(top, min(top + high, size[0])) for top in range(0, size[0], high)]


def _may_win(masks: Tensor, score: Tensor, reach: int) -> Tensor:
    """Which of logits [Q, h, w] can have the largest score × probability at any pixel once resized, [Q] bool.

    A pixel is a mean of cells that lie close together, ``reach`` squared at most (2 when resized once; 3 when twice, for
    neighbouring pixels of the first size are less than a cell apart): between their least and their greatest. A query
    whose greatest is, in every such window, less than some other's least never wins, and need not be resized to find out.
    """
    parts = list(zip(masks.split(ROWS), score[:, None, None].split(ROWS), strict=True))
    least = [(weight * (-_greatest(-logits, reach)).sigmoid()).amax(0) for logits, weight in parts if len(logits)]
    assured = torch.stack(least).amax(0) * (1 - SLACK) if least else score.new_zeros(())
    possible = ((weight * _greatest(logits, reach).sigmoid() >= assured).flatten(1).any(1) for logits, weight in parts)
    return torch.cat(list(possible))


def _greatest(logits: Tensor, reach: int) -> Tensor:
    """The greatest cell of every window of a grid, ``reach`` cells a side, those over its edge included."""
    wide = functional.pad(logits.float()[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.max_pool2d(wide, reach, stride=1)[:, 0]


def _panoptic_of_pixels(score: Tensor, label: Tensor, policy: Policy) -> tuple[Tensor, list[Region]]:
    """Without masks every class is one region: pixels do not say where one thing ends and the next begins."""
    regions = class_regions(score, label_map(score, label, policy))
    numbers = torch.zeros(label.shape, dtype=torch.int32, device=label.device)
    for number, region in enumerate(regions, start=1):
        numbers.masked_fill_(region.mask, number)
    return numbers, regions


# --- instances --------------------------------------------------------------------------------------------------------


def instances(
    prediction: MaskPrediction | PixelPrediction, text: TextEmbeddings, policy: Policy = Policy()
) -> list[list[Region]]:
    """For each image its things, best first, masks free to overlap.

    The ``detections`` best pairs of query and thing class; the score is class probability × mean mask probability inside.
    """
    if isinstance(prediction, PixelPrediction):
        raise UsageError("this model predicts pixels, not instances; use --task semantic or a mask model")
    return [_instances(prediction, index, text.things, policy) for index in range(len(prediction.sizes))]


def _instances(prediction: MaskPrediction, index: int, things: Tensor, policy: Policy) -> list[Region]:
    rows = _rows(prediction, index)
    wanted = things.clone()
    wanted[list(policy.background)] = False
    labels = torch.arange(len(wanted), device=wanted.device) if policy.stuff_detections else torch.nonzero(wanted).flatten()
    probability = prediction.per_class()[index][rows][:, labels].float().exp()
    score, flat = probability.flatten().topk(min(policy.detections, probability.numel()))
    row, label = rows[flat // max(1, len(labels))], labels[flat % max(1, len(labels))]
    positive = prediction.masks[index].amax((-2, -1)) > 0  # interpolation puts no pixel inside where no cell is
    possible = wanted[label] & positive[row] & (score > 0) & (score >= policy.threshold)  # the mask can only lower a score
    score, row, label = score[possible], row[possible], label[possible]
    queries, place = row.unique(return_inverse=True)
    size = prediction.sizes[index]
    require_memory(len(row) * size[0] * size[1] * REGION_BYTES, f"{len(row)} regions")
    masks, certainties = [], []
    for chunk in queries.split(masks_at_once(size, ROWS)):
        logits = resized(prediction.masks[index, chunk], Placing.of(prediction, index))
        inside = logits > 0
        masks += list(inside)
        certainties.append((logits.sigmoid() * inside).sum((1, 2)) / areas_of_masks(inside).clamp(min=1))
    score = score * torch.cat(certainties)[place]
    best, order = score.sort(descending=True, stable=True)
    kept = order[(best > 0) & (best >= policy.threshold)]
    numbers = zip(place[kept].tolist(), label[kept].tolist(), score[kept].tolist(), strict=True)  # a GPU is waited for thrice
    return [Region(masks[mask], name, certainty) for mask, name, certainty in numbers]


# --- shared -----------------------------------------------------------------------------------------------------------


def _rows(prediction: MaskPrediction, index: int) -> Tensor:
    """The numbers of the queries of image ``index`` that are not padding."""
    queries = torch.arange(prediction.masks.shape[1], device=prediction.masks.device)
    return queries if prediction.valid is None else queries[prediction.valid[index]]


def _of_rows(values: Tensor, prediction: MaskPrediction, index: int) -> Tensor:
    """What [B, Q, ...] holds for the queries of image ``index`` that are not padding; no copy where all count."""
    return values[index] if prediction.valid is None else values[index, prediction.valid[index]]


@dataclass(frozen=True)
class Placing:
    """How a grid lies on an image; each (height, width) in pixels.

    Attributes:
        padded_size: what the grid covers.
        resized_size: the image inside it, in the top-left corner.
        size: the image itself; `resized_size`, if the network saw it at its own size.
    """

    padded_size: Size
    resized_size: Size
    size: Size

    @classmethod
    def of(cls, prediction: MaskPrediction | PixelPrediction, index: int) -> Placing:
        size = prediction.sizes[index]
        return cls(
            prediction.padded_sizes[index], size if prediction.resized_sizes is None else prediction.resized_sizes[index], size
        )


def resized(maps: Tensor, place: Placing) -> Tensor:
    """Maps [N, h, w] at pixel resolution, [N, H, W]: bilinear to the extent, cut to the image, bilinear to its size."""
    if len(maps) == 0:
        return maps.new_zeros((0, *place.size))
    pixels = _interpolated(maps.float(), place.padded_size)[:, : place.resized_size[0], : place.resized_size[1]]
    return _interpolated(pixels, place.size)


def _interpolated(maps: Tensor, size: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


def _band(maps: Tensor, place: Placing, top: int, bottom: int) -> Tensor:
    """The pixel rows ``top`` to ``bottom`` of what `resized` gives, [N, bottom - top, W]."""
    if len(maps) == 0:
        return maps.new_zeros((0, bottom - top, place.size[1]))
    above, below, share = _between(torch.arange(top, bottom, device=maps.device), place.size[0], place.resized_size[0])
    first, last = int(above[0]), int(below[-1])
    rows = _lerp(
        maps.float(), *_between(torch.arange(first, last + 1, device=maps.device), place.padded_size[0], maps.shape[-2])
    )
    wide = _interpolated(rows, (rows.shape[-2], place.padded_size[1]))[..., : place.resized_size[1]]
    band = _lerp(wide, above - first, below - first, share)
    return _interpolated(band, (bottom - top, place.size[1]))


def _between(rows: Tensor, length: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of ``cells`` the ``rows`` of a length lie between, and how near to the second, as bilinear resizing has it."""
    y = ((rows + 0.5) * (cells / length) - 0.5).clamp(min=0)
    above = y.long().clamp(max=cells - 1)
    return above, (above + 1).clamp(max=cells - 1), (y - above)[:, None]


def _lerp(maps: Tensor, above: Tensor, below: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(maps[:, above], maps[:, below], share)
