"""From predictions to results: semantic, panoptic and instance, with one policy for what has no name.

Pixels and regions stay *void* where no class reaches ``threshold`` or the winner is one of ``background``'s classes.
Masks are resized only for the queries that can still win something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.structures import MaskPrediction, PixelPrediction, Size, TextEmbeddings

VOID = -1  # the label of a pixel without a class
ROWS = 64  # masks resized at once: what bounds the memory, not the number of queries
PIXELS = 4096  # pixels whose classes are compared at once: what bounds the memory, not the number of classes


@dataclass(frozen=True)
class Policy:
    """What counts as a result.

    Attributes:
        threshold: least score of a named region or pixel, 0..1.
        overlap: a panoptic region keeps its place if at least this share of its mask is still its own.
        background: labels that compete like any class and become void where they win.
        detections: the most instances an image may have.
    """

    threshold: float = 0.0
    overlap: float = 0.8
    background: frozenset[int] = frozenset()
    detections: int = 100

    def __post_init__(self) -> None:
        for name in ("threshold", "overlap"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must lie in 0..1, not {value}")


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


def semantic_scores(prediction: MaskPrediction | PixelPrediction) -> Iterator[Tensor]:
    """For each image the class probabilities of its pixels, [K, H, W].

    Masks: sum over queries of class probability × mask probability, divided by the sum of mask probabilities where that
    exceeds one, so that a score is a probability however many masks overlap. [decided]
    """
    if isinstance(prediction, PixelPrediction):
        for index, size in enumerate(prediction.sizes):
            yield resized(prediction.logits[index], prediction.extents[index], size).softmax(0)
        return
    for index, size in enumerate(prediction.sizes):
        rows = _rows(prediction, index)
        classes = prediction.per_class()[index, rows].exp()
        total = classes.new_zeros((classes.shape[1], *size))
        cover = classes.new_zeros(size)
        for chunk in rows.new_tensor(range(len(rows))).split(ROWS):
            masks = resized(prediction.masks[index, rows[chunk]], prediction.extents[index], size).sigmoid()
            total += torch.einsum("qk,qhw->khw", classes[chunk], masks)
            cover += masks.sum(0)
        yield total / cover.clamp(min=1)


def semantic_best(prediction: MaskPrediction | PixelPrediction) -> Iterator[tuple[Tensor, Tensor]]:
    """For each image the probability of every pixel's best class, and that class, [H, W] both.

    The maximum of `semantic_scores` over the classes, band by band of the image: K × H × W numbers never exist.
    """
    for index, (height, width) in enumerate(prediction.sizes):
        high = max(1, PIXELS // width)
        best = [_best_of_band(prediction, index, top, min(top + high, height)) for top in range(0, height, high)]
        score, label = (torch.cat(bands) for bands in zip(*best, strict=True))
        yield score, label


def _best_of_band(prediction: MaskPrediction | PixelPrediction, index: int, top: int, bottom: int) -> tuple[Tensor, Tensor]:
    extent, (_, width) = prediction.extents[index], prediction.sizes[index]
    if isinstance(prediction, PixelPrediction):
        scores = _band(prediction.logits[index], extent, width, top, bottom).softmax(0)
    else:
        rows = _rows(prediction, index)
        masks = _band(prediction.masks[index, rows], extent, width, top, bottom).sigmoid()
        classes = prediction.per_class()[index, rows].exp()
        scores = torch.einsum("qk,qhw->khw", classes, masks) / masks.sum(0).clamp(min=1)
    score, label = scores.max(0)
    return score, label


def label_map(score: Tensor, label: Tensor, policy: Policy) -> Tensor:
    """The class of every pixel [H, W] int32, or `VOID`, of the best classes [H, W] and their probabilities."""
    named = label.to(torch.int32)
    named[(score <= 0) | (score < policy.threshold)] = VOID
    for background in policy.background:
        named[named == background] = VOID
    return named


def class_regions(score: Tensor, labels: Tensor) -> list[Region]:
    """One region for each class of a label map [H, W]; its score is the mean over its pixels of ``score`` [H, W]."""
    masks = [(label, labels == label) for label in labels.unique().tolist() if label != VOID]
    return [Region(mask, label, float(score[mask].mean())) for label, mask in masks]


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
    size, extent = prediction.sizes[index], prediction.extents[index]
    score, label = prediction.classes[index].exp().max(-1)
    rows = _rows(prediction, index)
    named = (label[rows] < prediction.per_class().shape[-1]) & (score[rows] > 0) & (score[rows] >= policy.threshold)
    rows = rows[named]
    winner = torch.full(size, -1, dtype=torch.int64, device=score.device)
    highest = score.new_zeros(size)
    areas = []
    for start in range(0, len(rows), ROWS):
        chunk = rows[start : start + ROWS]
        masks = resized(prediction.masks[index, chunk], extent, size).sigmoid()
        areas.append((masks >= 0.5).sum((1, 2)))
        claim, row = (score[chunk, None, None] * masks).max(0)
        inside = masks.gather(0, row[None])[0] >= 0.5
        better = claim > highest
        winner = torch.where(better, torch.where(inside, row + start, -1), winner)
        highest = torch.where(better, claim, highest)
    numbers = torch.zeros(size, dtype=torch.int32, device=score.device)
    regions: list[Region] = []
    stuff: dict[int, int] = {}
    for position, row in enumerate(rows.tolist()):
        mask = winner == position
        area, own = int(areas[position // ROWS][position % ROWS]), int(mask.sum())
        name = int(label[row])
        if own == 0 or own < policy.overlap * area or name in policy.background:
            continue
        if name in stuff:
            number = stuff[name]
            merged = regions[number - 1]
            regions[number - 1] = Region(merged.mask | mask, name, max(merged.score, float(score[row])))
        else:
            regions.append(Region(mask, name, float(score[row])))
            number = len(regions)
            if not things[name]:
                stuff[name] = number
        numbers[mask] = number
    return numbers, regions


def _panoptic_of_pixels(score: Tensor, label: Tensor, policy: Policy) -> tuple[Tensor, list[Region]]:
    """Without masks every class is one region: pixels do not say where one thing ends and the next begins."""
    regions = class_regions(score, label_map(score, label, policy))
    numbers = torch.zeros(label.shape, dtype=torch.int32, device=label.device)
    for number, region in enumerate(regions, start=1):
        numbers[region.mask] = number
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
    labels = torch.nonzero(wanted).flatten()
    probability = prediction.per_class()[index][rows][:, labels].exp()
    if probability.numel() == 0:
        return []
    score, flat = probability.flatten().topk(min(policy.detections, probability.numel()))
    row, label = rows[flat // len(labels)], labels[flat % len(labels)]
    found = []
    for start in range(0, len(row), ROWS):
        masks = resized(prediction.masks[index, row[start : start + ROWS]], prediction.extents[index], prediction.sizes[index])
        inside = masks > 0
        certainty = (masks.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        found += [Region(inside[n], int(label[start + n]), float(score[start + n] * certainty[n])) for n in range(len(masks))]
    kept = [region for region in found if region.score > 0 and region.score >= policy.threshold and bool(region.mask.any())]
    return sorted(kept, key=lambda region: -region.score)


# --- shared -----------------------------------------------------------------------------------------------------------


def _rows(prediction: MaskPrediction, index: int) -> Tensor:
    """The numbers of the queries of image ``index`` that are not padding."""
    queries = torch.arange(prediction.masks.shape[1], device=prediction.masks.device)
    return queries if prediction.valid is None else queries[prediction.valid[index]]


def resized(maps: Tensor, extent: Size, size: Size) -> Tensor:
    """Maps [N, h, w] that cover ``extent`` pixels, at pixel resolution and cut to the image, [N, H, W]."""
    if len(maps) == 0:
        return maps.new_zeros((0, *size))
    if tuple(maps.shape[-2:]) != tuple(extent):
        maps = functional.interpolate(maps[None].float(), extent, mode="bilinear", align_corners=False)[0]
    return maps[:, : size[0], : size[1]]


def _band(maps: Tensor, extent: Size, width: int, top: int, bottom: int) -> Tensor:
    """The pixel rows ``top`` to ``bottom`` of what `resized` gives, [N, bottom - top, width]."""
    if len(maps) == 0:
        return maps.new_zeros((0, bottom - top, width))
    grid = maps.shape[-2]
    y = ((torch.arange(top, bottom, device=maps.device) + 0.5) * grid / extent[0] - 0.5).clamp(min=0)
    above = y.long().clamp(max=grid - 1)
    share = (y - above)[:, None]
    rows = torch.lerp(maps[:, above].float(), maps[:, (above + 1).clamp(max=grid - 1)].float(), share)
    wide = functional.interpolate(rows[None], (bottom - top, extent[1]), mode="bilinear", align_corners=False)[0]
    return wide[..., :width]
