"""Oracles: what a method would score if one half of its work were perfect.

``masks``: every true region is given, and takes the classes of the predicted mask that overlaps it most: what remains is
how well the method names. (A method that names any masks, `lexiseg.methods.base.NamesRegions`, is asked for these instead.)
``labels``: every predicted mask is named after the true region it overlaps most: what remains is how well it finds regions.
Both take a prediction and give one, so that all tasks and metrics work on them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.ops.rle import decode_counts
from lexiseg.postprocess import Placing, resized
from lexiseg.structures import IGNORED, Instances, MaskPrediction, PanopticMap, PixelPrediction

INSIDE = 20.0  # logits of a mask without doubt
ORACLES = ("masks", "labels")

Truth = NDArray[np.int32] | PanopticMap | Instances


def apply(kind: str, prediction: MaskPrediction | PixelPrediction, truth: Truth) -> MaskPrediction | PixelPrediction:
    """The prediction of one image, with its masks or its labels made true.

    Raises:
        UsageError: labels of a method that predicts pixels, which has no masks to name.
    """
    regions, labels = true_regions(truth)
    if kind == "masks":
        return true_masks(prediction, regions)
    if isinstance(prediction, PixelPrediction):
        raise UsageError("--oracle labels needs a method that predicts masks; this one predicts pixels")
    return true_labels(prediction, regions, labels)


def true_regions(truth: Truth) -> tuple[Tensor, Tensor]:
    """Masks [R, H, W] bool and labels [R] of what a truth of any task marks, without crowds."""
    if isinstance(truth, PanopticMap):
        marked = [(truth.ids == segment.id, segment.label) for segment in truth.segments if not segment.crowd]
        size = truth.ids.shape
    elif isinstance(truth, Instances):
        marked = [(decode_counts(t.counts, truth.size).numpy(), t.label) for t in truth.things if not t.crowd]
        size = truth.size
    else:
        marked = [(truth == label, label) for label in np.unique(truth).tolist() if label != IGNORED]
        size = truth.shape
    masks = np.stack([mask for mask, _ in marked]) if marked else np.zeros((0, *size), bool)
    return torch.from_numpy(masks), torch.tensor([label for _, label in marked], dtype=torch.int64)


def true_masks(prediction: MaskPrediction | PixelPrediction, regions: Tensor) -> MaskPrediction | PixelPrediction:
    """The true regions [R, H, W] with the classes predicted there; those no mask touches are left out."""
    size = prediction.sizes[0]
    if isinstance(prediction, PixelPrediction):
        logits = resized(prediction.logits[0], Placing.of(prediction, 0))
        if prediction.link == "softmax":
            logits = logits.log_softmax(0)  # a constant for all classes of a pixel says nothing
        regions = regions.to(logits.device)
        mean = torch.einsum("khw,rhw->rk", logits, regions.float()) / regions.sum((1, 2)).clamp(min=1)[:, None]
        painted = torch.einsum("rk,rhw->khw", mean, regions.float())
        return replace(
            prediction, logits=torch.where(regions.any(0), painted, logits)[None], padded_sizes=(size,), resized_sizes=None
        )
    if prediction.masks.shape[1] == 0:
        return prediction
    overlap, best = _overlap(prediction, regions).max(0)
    found = overlap > 0
    best = best[found]
    masks = torch.where(regions.to(found.device)[found], INSIDE, -INSIDE)[None]
    return replace(
        prediction,
        masks=masks,
        classes=prediction.classes[:, best],
        padded_sizes=(size,),
        resized_sizes=None,
        valid=None,
        auxiliary=(),
        semantic=(),
    )


def true_labels(prediction: MaskPrediction, regions: Tensor, labels: Tensor) -> MaskPrediction:
    """The predicted masks, each with the label of the region it overlaps most, its score their IoU. [decided]"""
    overlap = _overlap(prediction, regions)
    classes = torch.full_like(prediction.classes, -torch.inf)
    if overlap.numel():
        score, region = overlap.max(1)
        classes[0, torch.arange(len(region)), labels.to(region.device)[region]] = score.log()
    touched = classes[0].amax(-1) > -torch.inf
    valid = touched if prediction.valid is None else touched & prediction.valid[0]
    if prediction.void:
        classes[0, ~touched, -1] = 0.0
    return replace(prediction, classes=classes, valid=valid[None], auxiliary=(), semantic=())


def _overlap(prediction: MaskPrediction, regions: Tensor) -> Tensor:
    """IoU [Q, R] of the masks of the only image with true regions [R, H, W]; rows that only pad have 0."""
    masks = resized(prediction.masks[0], Placing.of(prediction, 0)) > 0
    if prediction.valid is not None:
        masks = masks & prediction.valid[0, :, None, None]
    one, other = masks.flatten(1).float(), regions.to(masks.device).flatten(1).float()
    inside = one @ other.T
    return inside / (one.sum(1)[:, None] + other.sum(1) - inside).clamp(min=1)
