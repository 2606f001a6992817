"""Post-processing: predictions to semantic, panoptic and instance results.

Pixels and regions are *void* where no class reaches ``threshold`` or the best class is a ``background`` class. Masks are
resized only for queries that can affect the result, and each of them once.

`Policy` has an option for each difference from Mask2Former's code, which FC-CLIP and CMPF use; `MASK2FORMER` sets them all. Its
semantic scores are sums over queries, ours are divided by the number of overlapping masks: the classes are the same, and
``semantic_scores(..., divide=False)`` gives the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.ops.masks import areas_of_masks
from lexiseg.ops.memory import masks_at_once, require_memory
from lexiseg.structures import Geometry, MaskPrediction, PixelPrediction, Size, TextEmbeddings, masks_of

VOID = -1  # label of pixels without a class
ROWS = 64  # greatest number of masks resized at once
SLACK = 1e-3  # relative margin of a bound against rounding
PIXELS = 4096  # pixels whose classes are compared at once; bounds the memory for any number of classes
STRIP = 2**22  # pixels processed at once where rows are independent
REGION_BYTES = 3  # per pixel and region: the mask, the stack of all masks (`as_segmentation`), and what saving adds


@dataclass(frozen=True)
class Policy:
    """Options of post-processing.

    Attributes:
        threshold: minimum score of a region or pixel, 0..1.
        object_threshold: a query takes part in a panoptic result if its score exceeds this, 0..1.
        overlap: minimum fraction of its mask that a panoptic region must retain, 0..1.
        background: labels that compete like any class and become void where they win.
        detections: maximum number of instances per image.
        generous_overlap: count pixels that a region wins outside its mask as retained, too; they stay void.
        stuff_detections: select the ``detections`` among stuff and things before stuff is dropped, so fewer things may
            remain.
    """

    threshold: float = 0.0
    object_threshold: float = 0.0
    overlap: float = 0.8
    background: frozenset[int] = frozenset()
    detections: int = 100
    generous_overlap: bool = False
    stuff_detections: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold", "object_threshold", "overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must be in 0..1, not {value}")

    def document(self) -> dict[str, Any]:
        """The policy as JSON values."""
        return {**asdict(self), "background": sorted(self.background)}


def as_mask2former(policy: Policy) -> Policy:
    """The same policy with the rules of Mask2Former's code where they differ from ours."""
    return replace(policy, generous_overlap=True, stuff_detections=True)


MASK2FORMER = as_mask2former(Policy())


@dataclass(frozen=True)
class Region:
    """Mask [H, W] bool with a label and a score."""

    mask: Tensor
    label: int
    score: float


# --- semantic ---------------------------------------------------------------------------------------------------------


def semantic(prediction: MaskPrediction | PixelPrediction, policy: Policy = Policy()) -> list[Tensor]:
    """Label maps, one per image: [H, W] int32, `VOID` where no class is assigned."""
    return [label_map(score, label, policy) for score, label in semantic_best(prediction)]


def semantic_scores(prediction: MaskPrediction | PixelPrediction, *, divide: bool = True) -> Iterator[Tensor]:
    """Class probabilities of the pixels of each image, [K, H, W].

    For masks: r, the sum over queries of class probability p × mask probability m (CMPF, Sec. 3.2.4), divided by the sum of
    mask probabilities where that exceeds 1, so that a score is a probability even if masks overlap. [decided] For a mask
    ensemble (``prediction.semantic_ensemble``): the sums of its parts are added, and divided by the largest sum of mask
    probabilities.

    Args:
        prediction: of B images.
        divide: False returns the sums, as Mask2Former's code.
    """
    if isinstance(prediction, PixelPrediction):
        for index, geometry in enumerate(prediction.geometries):
            yield geometry.upsample(prediction.probabilities[index])
        return
    parts = _parts(prediction)
    for index, size in enumerate(geometry.size for geometry in prediction.geometries):
        total = parts[0].masks.new_zeros((parts[0].per_class().shape[-1], *size), dtype=torch.float32)
        most = total.new_ones(size)
        for part in parts:
            rows, cover = _rows(part, index), total.new_zeros(size)
            for chunk in rows.split(ROWS):
                masks = part.geometries[index].upsample(part.masks[index, chunk]).sigmoid()
                total += torch.einsum("qk,qhw->khw", part.per_class()[index, chunk].float().exp(), masks)
                cover += masks.sum(0)
            most = torch.maximum(most, cover)
        yield total / most if divide else total


def semantic_best(prediction: MaskPrediction | PixelPrediction) -> Iterator[tuple[Tensor, Tensor]]:
    """Probability and index of the best class of every pixel of each image, both [H, W].

    The maximum of `semantic_scores` over the classes, computed in bands of rows to avoid K × H × W values.
    """
    for size, scores in scores_of_rows(prediction):
        yield _best_by_bands(size, scores)


def semantic_maps(prediction: MaskPrediction | PixelPrediction) -> Iterator[Tensor]:
    """`semantic_scores` of each image in half precision, on the CPU, [K, H, W] float16.

    Raises:
        MemoryError: there is not enough memory for them.
    """
    for size, scores in scores_of_rows(prediction):
        yield _maps_by_bands(size, scores)


RowScores = Callable[[int, int], Tensor]  # first pixel row, row after the last -> class probabilities [K, rows, W]


def scores_of_rows(prediction: MaskPrediction | PixelPrediction) -> Iterator[tuple[Size, RowScores]]:
    """Size of each image, and the function that computes `semantic_scores` of some of its rows."""
    if isinstance(prediction, PixelPrediction):
        for probabilities, geometry in zip(prediction.probabilities, prediction.geometries, strict=True):
            yield geometry.size, partial(geometry.upsample_rows, probabilities)
        return
    parts = _parts(prediction)
    for index, geometry in enumerate(prediction.geometries):
        masks = [_of_rows(part.masks, part, index) for part in parts]
        classes = [_of_rows(part.per_class(), part, index).float().exp() for part in parts]
        geometries = [part.geometries[index] for part in parts]
        yield geometry.size, partial(_mask_scores, masks, classes, geometries)


def _bands(size: Size, scores: RowScores) -> Iterator[tuple[slice, Tensor]]:
    """Scores of an image in bands of rows, about `PIXELS` pixels at a time."""
    high = max(1, PIXELS // size[1])
    for top in range(0, size[0], high):
        bottom = min(top + high, size[0])
        yield slice(top, bottom), scores(top, bottom)


def _best_by_bands(size: Size, scores: RowScores) -> tuple[Tensor, Tensor]:
    """Maximum over classes of ``scores``, and its int32 index."""
    best: list[tuple[Tensor, Tensor]] = []
    for rows, band in _bands(size, scores):
        score, label = band.max(0)
        if not best:
            best.append((score.new_empty(size), label.new_empty(size, dtype=torch.int32)))
        best[0][0][rows], best[0][1][rows] = score, label
    return best[0]


def _maps_by_bands(size: Size, scores: RowScores) -> Tensor:
    """``scores`` of all rows, [K, H, W] float16 on the CPU."""
    maps: list[Tensor] = []
    for rows, band in _bands(size, scores):
        if not maps:
            require_memory(len(band) * size[0] * size[1] * 2, f"scores of {len(band)} classes")
            maps.append(torch.empty((len(band), *size), dtype=torch.float16))
        maps[0][:, rows] = band.to(device="cpu", dtype=torch.float16)
    return maps[0]


def _mask_scores(
    masks: Sequence[Tensor], classes: Sequence[Tensor], geometries: Sequence[Geometry], top: int, bottom: int
) -> Tensor:
    grids = zip(masks, geometries, strict=True)
    bands = [geometry.upsample_rows(logits, top, bottom).sigmoid() for logits, geometry in grids]
    sums = [torch.einsum("qk,qhw->khw", scores, band) for scores, band in zip(classes, bands, strict=True)]
    most = torch.stack([band.sum(0) for band in bands]).amax(0).clamp(min=1)
    return sum(sums[1:], sums[0]) / most


def _parts(prediction: MaskPrediction) -> tuple[MaskPrediction, ...]:
    return prediction.semantic_ensemble or (prediction,)


def label_map(score: Tensor, label: Tensor, policy: Policy) -> Tensor:
    """Label map [H, W] int32 from the best classes [H, W] and their probabilities; `VOID` where the policy rejects them."""
    labels = label.to(torch.int32, copy=True)
    labels[(score <= 0) | (score < policy.threshold)] = VOID
    for background in policy.background:
        labels[labels == background] = VOID
    return labels


def class_regions(score: Tensor, labels: Tensor) -> list[Region]:
    """One region per class of a label map [H, W]; its score is the mean of ``score`` [H, W] over its pixels."""
    strips = _strips((labels.shape[0], labels.shape[1]))
    present = sorted({label for rows in strips for label in labels[rows].unique().tolist()} - {VOID})
    require_memory(len(present) * labels.numel() * REGION_BYTES, f"{len(present)} regions")
    masks = [labels == label for label in present]
    return [Region(mask, label, _mean(score, mask, strips)) for label, mask in zip(present, masks, strict=True)]


def _mean(values: Tensor, mask: Tensor, strips: Sequence[slice]) -> float:
    """Mean of ``values`` [H, W] inside a non-empty mask."""
    inside = [values[rows][mask[rows]] for rows in strips]
    return sum(float(part.sum()) for part in inside) / sum(len(part) for part in inside)


# --- panoptic ---------------------------------------------------------------------------------------------------------


def panoptic(
    prediction: MaskPrediction | PixelPrediction, text: TextEmbeddings, policy: Policy = Policy()
) -> list[tuple[Tensor, list[Region]]]:
    """Panoptic map [H, W] int32 (0 is void, n is the n-th region) and regions of each image.

    Every pixel is assigned to the query with the largest score × mask probability, arg max p · m (CMPF, Sec. 3.2.4); queries
    that retain less than ``overlap`` of their mask are dropped; stuff regions of one class are merged.
    """
    masks = masks_of(prediction)
    if masks is None:
        return [_panoptic_of_pixels(score, label, policy) for score, label in semantic_best(prediction)]
    return [_panoptic_of_masks(masks, index, text.things.tolist(), policy) for index in range(len(masks.geometries))]


def _panoptic_of_masks(
    prediction: MaskPrediction, index: int, things: list[bool], policy: Policy
) -> tuple[Tensor, list[Region]]:
    geometry = prediction.geometries[index]
    size = geometry.size
    score, label = prediction.classes[index].float().exp().max(-1)
    rows = _rows(prediction, index)
    accepted = (score[rows] > policy.object_threshold) & (score[rows] >= policy.threshold)
    rows = rows[accepted & (label[rows] < prediction.per_class().shape[-1])]
    rows = rows[_may_win(prediction.masks[index, rows], score[rows], 2 if geometry.resized_size == size else 3)]
    own, kept, won, area = _owners(prediction.masks[index], rows, score[rows], geometry)
    counted = won if policy.generous_overlap else kept
    claims = [
        (position, category, confidence)
        for position, (category, confidence) in enumerate(zip(label[rows].tolist(), score[rows].tolist(), strict=True))
        if kept[position] and counted[position] / area[position] >= policy.overlap and category not in policy.background
    ]
    require_memory(len(claims) * own.numel() * REGION_BYTES, f"{len(claims)} regions")
    numbers = torch.zeros(size, dtype=torch.int32, device=score.device)
    regions: list[Region] = []
    stuff: dict[int, int] = {}
    for position, category, confidence in claims:
        mask = own == position
        if category in stuff:
            number = stuff[category]
            merged = regions[number - 1]
            regions[number - 1] = Region(merged.mask | mask, category, max(merged.score, confidence))
        else:
            regions.append(Region(mask, category, confidence))
            number = len(regions)
            if not things[category]:
                stuff[category] = number
        numbers.masked_fill_(mask, number)
    return numbers, regions


def _owners(masks: Tensor, rows: Tensor, score: Tensor, geometry: Geometry) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Assign each pixel to the query with the largest score × mask probability.

    Args:
        masks: logits [Q, h, w].
        rows: indices of the N queries that take part.
        score: their scores [N].
        geometry: of the grid.

    Returns:
        Owner 0..N - 1 of each pixel [H, W] int32, -1 where there is none or the pixel is outside its mask; and, for each query,
        the number of pixels it owns, of pixels it wins including those outside its mask, and of pixels of its mask.
    """
    owner = torch.full(geometry.size, -1, dtype=torch.int32, device=score.device)
    inside = torch.zeros(geometry.size, dtype=torch.bool, device=score.device)
    highest = score.new_full(geometry.size, -1.0)
    strips, some = _strips(geometry.size), masks_at_once(geometry.size, ROWS)
    areas = [torch.zeros(0, dtype=torch.int64, device=score.device)]
    for start in range(0, len(rows), some):
        logits = geometry.upsample(masks[rows[start : start + some]])
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
    """Number of occurrences of each of 0..count - 1 in a map [H, W] of these and -1."""
    total = numbers.new_zeros(count + 1, dtype=torch.int64)
    for rows in strips:
        total += torch.bincount(numbers[rows].flatten() + 1, minlength=count + 1)
    return total[1:].tolist()


def _strips(size: Size) -> list[slice]:
    """Slices of the rows of an image, of about `STRIP` pixels each."""
    high = max(1, STRIP // size[1])
    return [slice(top, min(top + high, size[0])) for top in range(0, size[0], high)]


def _may_win(masks: Tensor, score: Tensor, reach: int) -> Tensor:
    """Masks [Q, h, w] that can have the largest score × probability at some pixel after resizing, [Q] bool.

    A resized pixel is a weighted mean of a window of at most ``reach`` × ``reach`` cells (2 if masks are resized once, 3 if
    twice), so it lies between the minimum and the maximum of the window. A query whose maximum is, in every window, less than
    the minimum of another query wins no pixel, and need not be resized.
    """
    parts = list(zip(masks.split(ROWS), score[:, None, None].split(ROWS), strict=True))
    least = [(weight * (-_greatest(-logits, reach)).sigmoid()).amax(0) for logits, weight in parts if len(logits)]
    assured = torch.stack(least).amax(0) * (1 - SLACK) if least else score.new_zeros(())
    possible = ((weight * _greatest(logits, reach).sigmoid() >= assured).flatten(1).any(1) for logits, weight in parts)
    return torch.cat(list(possible))


def _greatest(logits: Tensor, reach: int) -> Tensor:
    """Maximum over every ``reach`` × ``reach`` window of a grid, with replicated edges."""
    wide = functional.pad(logits.float()[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.max_pool2d(wide, reach, stride=1)[:, 0]


def _panoptic_of_pixels(score: Tensor, label: Tensor, policy: Policy) -> tuple[Tensor, list[Region]]:
    """One region per class: pixels alone do not separate instances."""
    regions = class_regions(score, label_map(score, label, policy))
    numbers = torch.zeros(label.shape, dtype=torch.int32, device=label.device)
    for number, region in enumerate(regions, start=1):
        numbers.masked_fill_(region.mask, number)
    return numbers, regions


# --- instances --------------------------------------------------------------------------------------------------------


def instances(
    prediction: MaskPrediction | PixelPrediction, text: TextEmbeddings, policy: Policy = Policy()
) -> list[list[Region]]:
    """Instances of things of each image by descending score; masks may overlap.

    The ``detections`` best pairs of query and thing class; the score is class probability × mean probability inside the mask.
    """
    masks = masks_of(prediction)
    if masks is None:
        raise UsageError("this model predicts pixels, not instances; use --task semantic or a mask model")
    return [_instances(masks, index, text.things, policy) for index in range(len(masks.geometries))]


def _instances(prediction: MaskPrediction, index: int, things: Tensor, policy: Policy) -> list[Region]:
    rows = _rows(prediction, index)
    wanted = things.clone()
    wanted[list(policy.background)] = False
    labels = torch.arange(len(wanted), device=wanted.device) if policy.stuff_detections else torch.nonzero(wanted).flatten()
    probability = prediction.per_class()[index][rows][:, labels].float().exp()
    score, flat = probability.flatten().topk(min(policy.detections, probability.numel()))
    row, label = rows[flat // max(1, len(labels))], labels[flat % max(1, len(labels))]
    positive = prediction.masks[index].amax((-2, -1)) > 0  # interpolation of negative logits is negative
    possible = wanted[label] & positive[row] & (score > 0) & (score >= policy.threshold)  # masks can only lower scores
    score, row, label = score[possible], row[possible], label[possible]
    queries, position = row.unique(return_inverse=True)
    geometry = prediction.geometries[index]
    require_memory(len(row) * geometry.size[0] * geometry.size[1] * REGION_BYTES, f"{len(row)} regions")
    masks, certainties = [], []
    for chunk in queries.split(masks_at_once(geometry.size, ROWS)):
        logits = geometry.upsample(prediction.masks[index, chunk])
        inside = logits > 0
        masks += list(inside)
        certainties.append((logits.sigmoid() * inside).sum((1, 2)) / areas_of_masks(inside).clamp(min=1))
    score = score * torch.cat(certainties)[position]
    best, order = score.sort(descending=True, stable=True)
    kept = order[(best > 0) & (best >= policy.threshold)]
    numbers = zip(position[kept].tolist(), label[kept].tolist(), score[kept].tolist(), strict=True)  # three GPU syncs
    return [Region(masks[mask], category, certainty) for mask, category, certainty in numbers]


def of_each_mask(prediction: MaskPrediction, policy: Policy = Policy()) -> list[Region | None]:
    """Each mask of a single image with its best class, in their order; masks may overlap.

    Returns:
        One region per mask; None where it is void, or the mask is empty or invalid.
    """
    geometry, score_label = prediction.geometries[0], prediction.classes[0].float().exp().max(-1)
    score, label = (values.tolist() for values in score_label)
    void = policy.background | {prediction.per_class().shape[-1]}  # "no object" is the column after the classes
    rows = [row for row in _rows(prediction, 0).tolist() if label[row] not in void and not score[row] < policy.threshold]
    require_memory(len(rows) * geometry.size[0] * geometry.size[1] * REGION_BYTES, f"{len(rows)} regions")
    regions: list[Region | None] = [None] * len(score)
    for row in rows:
        mask = geometry.upsample(prediction.masks[0, row : row + 1])[0] > 0
        if mask.any():
            regions[row] = Region(mask, label[row], score[row])
    return regions


# --- shared -----------------------------------------------------------------------------------------------------------


def _rows(prediction: MaskPrediction, index: int) -> Tensor:
    """Indices of the valid queries of image ``index``."""
    queries = torch.arange(prediction.masks.shape[1], device=prediction.masks.device)
    return queries if prediction.valid is None else queries[prediction.valid[index]]


def _of_rows(values: Tensor, prediction: MaskPrediction, index: int) -> Tensor:
    """Values [B, Q, ...] of the valid queries of image ``index``; a view if all are valid."""
    return values[index] if prediction.valid is None else values[index, prediction.valid[index]]
