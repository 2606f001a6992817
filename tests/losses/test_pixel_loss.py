"""The loss of pixels: cross-entropy written out, and what an ignored pixel is worth."""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.testing import assert_close

from lexiseg.losses.pixel_loss import PixelLossOptions, class_masks, pixel_loss
from lexiseg.structures import MaskTarget


def example() -> tuple[torch.Tensor, list[MaskTarget]]:
    """Two images of 6 × 8 pixels and 3 classes; the first has two segments of class 2 and unlabelled pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, generator=generator)
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, :2], masks[1, 3:5, :4], masks[2, 2] = True, True, True
    full = torch.ones(1, 6, 8, dtype=torch.bool)
    return logits, [MaskTarget(masks, torch.tensor([2, 2, 0])), MaskTarget(full, torch.tensor([1]))]


def by_hand(logits: torch.Tensor, targets: list[MaskTarget], *, ignore: bool) -> float:
    """Pixel by pixel, with logarithms."""
    total, (high, wide) = 0.0, targets[0].masks.shape[-2:]
    large = functional.interpolate(logits, (high, wide), mode="bilinear", align_corners=False).double()
    for image, target in zip(large, targets, strict=True):
        for row in range(high):
            for column in range(wide):
                here = {int(label) for label, mask in zip(target.labels, target.masks, strict=True) if mask[row, column]}
                for label in range(len(image)):
                    share = torch.sigmoid(image[label, row, column])
                    if here or not ignore:
                        total -= float(torch.log(share if label in here else 1 - share))
    return total / large.numel()


def test_as_written_out():
    logits, targets = example()
    for unlabelled in ("negative", "ignored"):
        found = pixel_loss(logits, targets, PixelLossOptions(unlabelled))
        assert_close(float(found), by_hand(logits, targets, ignore=unlabelled == "ignored"), atol=1e-6, rtol=0)


def test_ignored_pixels_have_no_gradient():
    logits, targets = example()
    logits = functional.interpolate(logits, (6, 8)).requires_grad_()
    pixel_loss(logits, targets, PixelLossOptions("ignored")).backward()
    assert logits.grad is not None
    labelled = targets[0].masks.any(0)
    assert (logits.grad[0][:, ~labelled] == 0).all()
    assert (logits.grad[0][:, labelled] != 0).all()


def test_the_loss_of_a_batch_is_the_mean_of_its_images():
    logits, targets = example()
    for unlabelled in ("negative", "ignored"):
        options = PixelLossOptions(unlabelled)
        apart = [pixel_loss(one[None], [target], options) for one, target in zip(logits, targets, strict=True)]
        assert_close(pixel_loss(logits, targets, options), torch.stack(apart).mean())


def test_segments_of_a_class_are_one():
    _, (target, _) = example()
    found = class_masks(target, 3)
    assert torch.equal(found[2], target.masks[0] | target.masks[1])
    assert not found[1].any()
