"""What CAT-Seg and its relatives have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lexiseg.losses.pixel_loss import PixelLossOptions
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.correlation import CorrelationSegmenter, CostVolume
from lexiseg.methods.escnet.model import EscNet, EscNetLossOptions
from lexiseg.methods.sam_mi.model import SamMi, SamMiLossOptions
from lexiseg.structures import WHOLE, ImageBatch, MaskTarget
from tests.laws.builders import some_images, some_text, tiny_catseg, tiny_escnet, tiny_sam_mi


@pytest.mark.parametrize("build", [partial(tiny_catseg, max_classes=0), tiny_escnet], ids=["catseg", "escnet"])
def test_parts_learn_the_same_and_keep_less(build: Callable[..., CorrelationSegmenter]) -> None:
    """In training, what a part of the classes needed is computed again on the way back."""
    images, text = some_images((64, 64), (64, 64)), some_text(9)
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    gradients, kept = [], []
    for at_once in (None, 2):
        segmenter, held = build(classes_at_once=at_once).train(), [0]

        def count(tensor: Tensor, held: list[int] = held) -> Tensor:
            held[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = segmenter.loss(images, text, targets)["pixels"]
        loss.backward()
        kept.append(held[0])
        gradients.append([p.grad for name, p in segmenter.named_parameters() if not name.startswith("clip.")])
    assert kept[1] < 0.5 * kept[0]
    assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-3)


def loss_of(segmenter: CorrelationSegmenter, *batch: Any, max_classes: int = 0) -> Tensor:
    """Loss of the pixels of a batch; unlabelled ones are negative for all classes."""
    pixels = PixelLossOptions(max_classes=max_classes)
    options = {CatSeg: pixels, SamMi: SamMiLossOptions(pixels=pixels), EscNet: EscNetLossOptions(pixels=pixels)}
    torch.manual_seed(0)  # of SAM-MI's points
    return segmenter.loss(*batch, options[type(segmenter)])["pixels"]


@pytest.mark.parametrize(
    "build", [tiny_catseg, partial(tiny_sam_mi, inject=()), tiny_escnet], ids=["catseg", "sam_mi", "escnet"]
)
def test_an_image_learns_its_own_and_its_nearest_classes(build: Callable[..., CorrelationSegmenter]) -> None:
    """With ``max_classes`` the loss of a batch is the mean of the losses of its images, each with few classes only."""
    images, text = some_images((64, 64), (64, 64)), some_text(9)
    half = torch.zeros(1, 64, 64, dtype=torch.bool)
    half[..., :30] = True
    targets = [MaskTarget(torch.cat([half, ~half]), torch.tensor(labels)) for labels in ([0, 7], [2, 3])]
    segmenter = build(max_classes=0)
    scores = segmenter.encode(images.pixels, text).cost.amax((-2, -1))
    expected = []
    for pixels, target, ranked in zip(images.pixels, targets, scores.argsort(descending=True).tolist(), strict=True):
        labels = target.labels.tolist()
        classes = sorted([*labels, *[label for label in ranked if label not in labels][:2]])
        own = MaskTarget(target.masks, torch.tensor([classes.index(label) for label in labels]))
        expected.append(loss_of(segmenter, ImageBatch.of([pixels]), text.select(torch.tensor(classes)), [own]))
    result = loss_of(segmenter, images, text, targets, max_classes=4)
    assert_close(result, torch.stack(expected).mean())
    assert (result - loss_of(segmenter, images, text, targets)).abs() > 1e-3
    assert_close(loss_of(segmenter, images, text, targets, max_classes=9), loss_of(segmenter, images, text, targets))


def test_an_image_of_many_classes_keeps_them_all() -> None:
    segmenter, text = tiny_catseg(max_classes=0), some_text(9)
    volume = segmenter.encode(some_images((64, 64)).pixels, text)
    target = MaskTarget(torch.ones(5, 64, 64, dtype=torch.bool), torch.tensor([8, 1, 6, 1, 3]))
    ((part, (own,)),) = segmenter.training_parts(volume, [target], PixelLossOptions(max_classes=2))
    assert part.cost.shape[1] == 4
    assert torch.equal(part.classes[own.labels], volume.classes[target.labels])
    assert torch.equal(part.cost[:, own.labels], volume.cost[:, target.labels])


def test_masks_stay_with_their_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM-MI's masks, when the images of a batch are decoded alone."""
    segmenter, given, masks = tiny_sam_mi(), [], []
    of_images, aggregated = segmenter._masks, segmenter.aggregated

    def kept(*arguments: Any) -> Any:
        each = of_images(*arguments)
        masks.extend(image.in_box(WHOLE) for image in each)
        return each

    def recorded(volume: CostVolume, inside: list[Tensor], **options: Any) -> Tensor:
        given.append((volume, *inside))
        return aggregated(volume, inside, **options)

    monkeypatch.setattr(segmenter, "_masks", kept)
    monkeypatch.setattr(segmenter, "aggregated", recorded)
    images, text = some_images((64, 64), (64, 64)), some_text(9)
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([label])) for label in (0, 2)]
    loss_of(segmenter, images, text, targets, max_classes=4)
    dense = segmenter.encode(images.pixels, text).dense
    assert [len(inside) for _, *inside in given] == [1, 1]
    for number, (volume, mask) in enumerate(given):
        assert torch.equal(volume.dense[0], dense[number])
        assert torch.equal(mask, masks[number])
    assert masks[0].shape != masks[1].shape or not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("build", [tiny_catseg, tiny_sam_mi, tiny_escnet], ids=["catseg", "sam_mi", "escnet"])
def test_images_are_smaller_in_training(build: Callable[..., CorrelationSegmenter]) -> None:
    """A model of 8 × 8 cells that is trained with 4 × 4 learns as one of 4 × 4."""
    images, text = some_images((64, 64)), some_text(4)
    targets = [MaskTarget(torch.ones(1, 64, 64, dtype=torch.bool), torch.tensor([2]))]
    large, small = build(image_size=128, train_image_size=64), build(image_size=64)
    assert_close(loss_of(large, images, text, targets), loss_of(small, images, text, targets), atol=0, rtol=0)
    assert large.encode(images.pixels, text).cost.shape == (1, 4, 8, 8)
    assert small.encode(images.pixels, text).cost.shape == (1, 4, 4, 4)
