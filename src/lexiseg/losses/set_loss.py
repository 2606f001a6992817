"""Mask2Former's set loss, with which FC-CLIP and CMPF are trained (Cheng et al., 2022, section 3).

The predictions of each layer are matched with the targets. All queries have a class loss, with the class "no object" for
unmatched ones; matched queries also have a mask loss, cross-entropy and dice on sampled points.

`MaskPrediction.classes` are log-probabilities where the official code has logits. The loss is the same: cross-entropy applies
a log-softmax, which is idempotent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, distributed
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.losses.masks import dice_loss, mask_cross_entropy, sample_points, uncertain_points
from lexiseg.losses.matching import (
    Costs,
    Match,
    PointSource,
    in_full_precision,
    match,
    prediction_rows,
    sample_target,
    uniform_points,
)
from lexiseg.ops.options import NonNegative, Positive, Unit, options
from lexiseg.structures import MaskPrediction, MaskTarget

UNANSWERED = -100  # label of rows without loss


@options(frozen=True)
class SetLossOptions:
    """Options of `set_loss`; the defaults are Mask2Former's."""

    classes: NonNegative = 2.0
    """Weight of the class loss."""
    mask: NonNegative = 5.0
    """Weight of the binary cross-entropy of the masks."""
    dice: NonNegative = 5.0
    """Weight of the dice loss of the masks."""
    void: NonNegative = 0.1
    """Weight of "no object" in the class loss; 0: unmatched queries have no class loss."""
    points: Positive = 12_544
    """Number of points on which masks are compared."""
    oversample: Annotated[float, Ge(1)] = 3.0
    """Candidates per sampled point."""
    importance: Unit = 0.75
    """Fraction of the points taken from the least certain candidates; the others are uniform."""
    costs: Costs = field(default_factory=Costs)
    """Weights of the matching cost."""


def set_loss(
    prediction: MaskPrediction,
    targets: Sequence[MaskTarget],
    options: SetLossOptions = SetLossOptions(),
    draw: PointSource | None = None,
) -> dict[str, Tensor]:
    """The weighted losses "class", "mask" and "dice", and "class_0", … of the auxiliary layers; their sum is the loss.

    If the weights of "mask" and "dice" are 0, both are left out.

    Args:
        prediction: of B images; without "no object", unmatched queries have no class loss.
        targets: one per image, on the prediction's device.
        options: see `SetLossOptions`.
        draw: source of the points. Called, layer by layer, for the matching of each image, then for the candidates of each
            image, then for the uniform points of each image; images without pairs are left out.

    Raises:
        UsageError: the targets do not match the prediction.
    """
    _check(prediction, targets)
    draw = draw or uniform_points(prediction.masks.device)
    if not prediction.void:
        options = replace(options, void=0.0)
    weight, count = _normalisers(prediction, targets, options)
    dtype = torch.promote_types(prediction.masks.dtype, torch.float32)
    targets = [replace(target, masks=target.masks.to(dtype)) for target in targets]  # once, not for every layer
    losses = {}
    layers = [("", prediction), *((f"_{number}", layer) for number, layer in enumerate(prediction.auxiliary))]
    for suffix, layer in layers:
        matches = match(layer, targets, points=options.points, costs=options.costs, draw=draw)
        losses[f"class{suffix}"] = options.classes * _class_loss(layer, targets, matches, options.void) / weight
        if not (options.mask or options.dice):
            continue
        entropy, dice = _mask_losses(layer, targets, matches, options, draw)
        losses[f"mask{suffix}"] = options.mask * entropy.sum() / count
        losses[f"dice{suffix}"] = options.dice * dice.sum() / count
    return losses


def _check(prediction: MaskPrediction, targets: Sequence[MaskTarget]) -> None:
    if len(targets) != len(prediction.masks):
        raise UsageError(f"{len(targets)} targets for {len(prediction.masks)} images")
    classes = prediction.per_class().shape[-1]
    for index, target in enumerate(targets):
        if len(target.masks) != len(target):
            raise UsageError(f"target {index} has {len(target.masks)} masks and {len(target)} labels")
        if len(target) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < classes:
            raise UsageError(f"target {index} has labels {target.labels.tolist()}, the prediction classes 0 to {classes - 1}")


def _normalisers(prediction: MaskPrediction, targets: Sequence[MaskTarget], options: SetLossOptions) -> tuple[Tensor, Tensor]:
    """Sum of the weights of all queries and number of targets (at least 1), both as means over the processes.

    With these normalisers the mean of the losses of all processes is the loss of all their images in one batch. [decided] The
    official code does so for the masks only, and clamps after the mean.
    """
    rows = [len(prediction_rows(prediction, index)) for index in range(len(targets))]
    matched = sum(min(count, len(target)) for count, target in zip(rows, targets, strict=True))
    weight = matched + options.void * (sum(rows) - matched)
    device = prediction.masks.device
    totals = torch.tensor([weight, sum(map(len, targets))], dtype=torch.float32, device=device)
    processes = 1
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(totals)
        processes = distributed.get_world_size()
    weight_sum, count = totals.clamp(min=totals.new_tensor([options.void or 1.0, 1.0])) / processes
    return weight_sum, count


def _class_loss(prediction: MaskPrediction, targets: Sequence[MaskTarget], matches: Sequence[Match], void: float) -> Tensor:
    """Σ weight × cross-entropy over all queries, or over the matched ones if ``void`` is 0."""
    classes = in_full_precision(prediction.classes)
    nothing = classes.shape[-1] - 1
    rest = nothing if void else UNANSWERED
    labels = torch.full(classes.shape[:2], rest, dtype=torch.int64, device=classes.device)
    if prediction.valid is not None:
        labels[~prediction.valid] = UNANSWERED
    for index, (target, pairs) in enumerate(zip(targets, matches, strict=True)):
        labels[index, pairs.queries] = target.labels[pairs.targets]
    weights = classes.new_ones(nothing + 1)
    if void:
        weights[-1] = void
    return functional.cross_entropy(classes.flatten(0, 1), labels.flatten(), weights, ignore_index=UNANSWERED, reduction="sum")


def _mask_losses(
    prediction: MaskPrediction,
    targets: Sequence[MaskTarget],
    matches: Sequence[Match],
    options: SetLossOptions,
    draw: PointSource,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of each matched pair, both [M], image by image."""
    counts = [len(pairs.queries) for pairs in matches]
    rows = torch.cat([pairs.queries for pairs in matches])
    images = torch.arange(len(matches), device=rows.device).repeat_interleave(torch.tensor(counts, device=rows.device))
    masks = in_full_precision(prediction.masks[images, rows])
    if len(masks) == 0:  # an empty sum that keeps the masks in its graph
        empty = masks.sum((1, 2))
        return empty, empty
    paired = [index for index, count in enumerate(counts) if count]
    certain = int(options.importance * options.points)
    candidates = torch.cat([draw(index, counts[index], int(options.oversample * options.points)) for index in paired])
    points = uncertain_points(masks, candidates, certain)
    if certain < options.points:
        uniform = torch.cat([draw(index, counts[index], options.points - certain) for index in paired])
        points = torch.cat([points, uniform.to(points)], 1)
    truths = torch.cat(
        [
            sample_target(target.masks[pairs.targets], coordinates, geometry.padded_size)
            for target, pairs, coordinates, geometry in zip(
                targets, matches, points.split(counts), prediction.geometries, strict=True
            )
        ]
    )
    logits = sample_points(masks, points)
    return mask_cross_entropy(logits, truths), dice_loss(logits, truths)
