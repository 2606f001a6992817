"""CAT-Seg's loss: binary cross-entropy of every pixel and class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.ops.options import Natural, options
from lexiseg.structures import MaskTarget


@options(frozen=True)
class PixelLossOptions:
    """Options of `pixel_loss`."""

    unlabelled: Literal["negative", "ignored"] = "negative"
    """Treatment of unlabelled pixels, padding included: "negative" for all classes, as in the official code, or "ignored"."""
    max_classes: Natural = 0
    """Classes of an image that are decoded: those in it, filled up with the nearest, as at inference; 0: all of the batch."""


def pixel_loss(logits: Tensor, targets: Sequence[MaskTarget], options: PixelLossOptions) -> Tensor:
    """Binary cross-entropy, the mean over all pixels and classes.

    Args:
        logits: [B, K, h, w], upsampled to the targets.
        targets: one per image, all of one size; segments of one class are merged.
        options: see `PixelLossOptions`.

    Returns:
        A scalar. Ignored pixels count in the mean with a loss of zero, so that the mean over processes equals the loss of all
        their images.
    """
    truth = torch.stack([class_masks(target, logits.shape[1]) for target in targets]).to(logits.dtype)
    logits = functional.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
    if options.unlabelled == "negative":
        return functional.binary_cross_entropy_with_logits(logits, truth)
    return functional.binary_cross_entropy_with_logits(logits, truth, weight=truth.amax(1, keepdim=True))


def class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Softmax cross-entropy over the classes, the mean over all cells; unlabelled cells have a loss of zero.

    Args:
        logits: [B, K, h, w].
        truth: class masks [B, K, H, W] in 0..1, averaged over the pixels of each cell.
    """
    fractions = functional.adaptive_avg_pool2d(truth, (logits.shape[-2], logits.shape[-1]))
    fractions = fractions / fractions.sum(1, keepdim=True).clamp(min=1)  # segments may overlap
    return -(fractions * logits.log_softmax(1)).sum(1).mean()


def class_masks(target: MaskTarget, classes: int) -> Tensor:
    """Masks of the classes, [K, H, W] bool."""
    masks = torch.zeros((classes, *target.masks.shape[1:]), dtype=torch.bool, device=target.masks.device)
    for label, mask in zip(target.labels.tolist(), target.masks, strict=True):
        masks[label] |= mask
    return masks
