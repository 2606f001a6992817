"""CAT-Seg's loss: of every pixel and every class, whether the pixel is of the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.ops.options import options
from lexiseg.structures import MaskTarget


@options(frozen=True)
class PixelLossOptions:
    """CAT-Seg's loss."""

    unlabelled: Literal["negative", "ignored"] = "negative"
    """Pixels of no segment, beyond the picture too: "negative" for all classes, as in the official program, or "ignored"."""


def pixel_loss(logits: Tensor, targets: Sequence[MaskTarget], options: PixelLossOptions) -> Tensor:
    """Binary cross-entropy, the mean over all pixels and classes.

    Args:
        logits: [B, K, h, w]; are enlarged to the targets.
        targets: one an image, all of one size; segments of one class are one.
        options: see there.

    Returns:
        A scalar. Ignored pixels are in what it is the mean over, with a loss of zero: so the mean over processes is that of
        all their images.
    """
    truth = torch.stack([class_masks(target, logits.shape[1]) for target in targets]).to(logits.dtype)
    logits = functional.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
    if options.unlabelled == "negative":
        return functional.binary_cross_entropy_with_logits(logits, truth)
    return functional.binary_cross_entropy_with_logits(logits, truth, weight=truth.amax(1, keepdim=True))


def class_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of cells over the classes, the mean over all cells; those of no class have a loss of zero.

    Args:
        logits: [B, K, h, w].
        truth: [B, K, H, W] in 0..1, which classes each pixel is of; a cell's classes are its pixels' means.
    """
    shares = functional.adaptive_avg_pool2d(truth, (logits.shape[-2], logits.shape[-1]))
    shares = shares / shares.sum(1, keepdim=True).clamp(min=1)  # segments may overlap
    return -(shares * logits.log_softmax(1)).sum(1).mean()


def class_masks(target: MaskTarget, classes: int) -> Tensor:
    """Where each class is, [K, H, W] bool."""
    masks = torch.zeros((classes, *target.masks.shape[1:]), dtype=torch.bool, device=target.masks.device)
    for label, mask in zip(target.labels.tolist(), target.masks, strict=True):
        masks[label] |= mask
    return masks
