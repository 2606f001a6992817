"""Oracles: replace predicted masks or labels by the ground truth, to measure the other alone.

``masks``: true regions with the class scores of the predicted mask of highest IoU, which measures classification. (A method
that classifies given masks, `lexiseg.methods.base.NamesRegions`, classifies the true ones instead.)
``labels``: predicted masks with the label of the true region of highest IoU, which measures the masks.
Both map a prediction to a prediction, so that they work with all tasks and metrics.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.ops.rle import decode_counts
from lexiseg.structures import IGNORED, Geometry, Instances, MaskPrediction, PanopticMap, PixelPrediction, masks_of

INSIDE = 20.0  # logit inside a true mask
ORACLES = ("masks", "labels")

Truth = NDArray[np.int32] | PanopticMap | Instances


def apply(kind: str, prediction: MaskPrediction | PixelPrediction, truth: Truth) -> MaskPrediction | PixelPrediction:
    """Replace the masks or the labels of the prediction of one image by the true ones.

    Raises:
        UsageError: ``labels`` for a method that predicts pixels and has no masks.
    """
    regions, labels = true_regions(truth)
    if kind == "masks":
        return true_masks(prediction, regions)
    masks = masks_of(prediction)
    if masks is None:
        raise UsageError("--oracle labels needs a method that predicts masks; this one predicts pixels")
    return true_labels(masks, regions, labels)


def true_regions(truth: Truth) -> tuple[Tensor, Tensor]:
    """Masks [R, H, W] bool and labels [R] of the regions of a ground truth of any task, without crowds."""
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
    """The true regions [R, H, W] with the predicted class scores; regions that overlap no mask are left out.

    Regions of a pixel prediction have the mean probabilities of their pixels.
    """
    (geometry,) = prediction.geometries
    of_pixels = (Geometry.unresized(geometry.size),)
    if isinstance(prediction, PixelPrediction):
        probabilities = geometry.upsample(prediction.probabilities[0])
        regions = regions.to(probabilities.device)
        mean = torch.einsum("khw,rhw->rk", probabilities, regions.float()) / regions.sum((1, 2)).clamp(min=1)[:, None]
        painted = torch.einsum("rk,rhw->khw", mean, regions.float())
        named = None
        if prediction.mask_prediction is not None:
            logits = torch.where(regions, INSIDE, -INSIDE)[None]
            named = MaskPrediction(logits, mean[None].log(), False, of_pixels)
        return PixelPrediction(torch.where(regions.any(0), painted, probabilities)[None], of_pixels, named)
    if prediction.masks.shape[1] == 0:
        return prediction
    overlap, best = _overlap(prediction, regions).max(0)
    overlapped = overlap > 0
    best = best[overlapped]
    masks = torch.where(regions.to(overlapped.device)[overlapped], INSIDE, -INSIDE)[None]
    return MaskPrediction(masks, prediction.classes[:, best], prediction.void, of_pixels)


def true_labels(prediction: MaskPrediction, regions: Tensor, labels: Tensor) -> MaskPrediction:
    """The predicted masks with the label of the region of highest IoU, and that IoU as the score. [decided]"""
    overlap = _overlap(prediction, regions)
    classes = torch.full_like(prediction.classes, -torch.inf)
    if overlap.numel():
        score, region = overlap.max(1)
        classes[0, torch.arange(len(region)), labels.to(region.device)[region]] = score.log()
    labelled = classes[0].amax(-1) > -torch.inf
    valid = labelled if prediction.valid is None else labelled & prediction.valid[0]
    if prediction.void:
        classes[0, ~labelled, -1] = 0.0
    return MaskPrediction(prediction.masks, classes, prediction.void, prediction.geometries, valid[None])


def _overlap(prediction: MaskPrediction, regions: Tensor) -> Tensor:
    """IoU [Q, R] of the masks of a single image with true regions [R, H, W]; 0 for padding queries."""
    masks = prediction.geometries[0].upsample(prediction.masks[0]) > 0
    if prediction.valid is not None:
        masks = masks & prediction.valid[0, :, None, None]
    predicted, true = masks.flatten(1).float(), regions.to(masks.device).flatten(1).float()
    intersection = predicted @ true.T
    return intersection / (predicted.sum(1)[:, None] + true.sum(1) - intersection).clamp(min=1)
