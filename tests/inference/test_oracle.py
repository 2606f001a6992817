"""Oracles: the perfect half is perfect, the other half is the method's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lexiseg.errors import UsageError
from lexiseg.inference import oracle
from lexiseg.inference.evaluation import _predictions as predictions
from lexiseg.inference.pipeline import load, regions_of
from lexiseg.ops.rle import encode_masks
from lexiseg.postprocess import Policy, semantic
from lexiseg.structures import (
    IGNORED,
    Geometry,
    Instance,
    Instances,
    MaskPrediction,
    PanopticMap,
    PanopticSegment,
    PixelPrediction,
    TextEmbeddings,
)
from lexiseg.text.vocabulary import Vocabulary

SIZE = (8, 12)
TEXT = TextEmbeddings(torch.eye(3), torch.arange(3), ("a", "b", "c"), torch.tensor([True, True, False]))


def halves() -> PanopticMap:
    """Class 0 on the left, class 2 on the right, a column of nobody's in between."""
    ids = np.zeros(SIZE, np.int32)
    ids[:, :5], ids[:, 6:] = 1, 2
    return PanopticMap(ids, (PanopticSegment(1, 0), PanopticSegment(2, 2)))


def rough(names: list[list[float]], *, void: bool = True) -> MaskPrediction:
    """A mask of the left third and one of the right half."""
    masks = torch.full((1, 2, *SIZE), -9.0)
    masks[0, 0, :, :4], masks[0, 1, :, 6:] = 9.0, 9.0
    return MaskPrediction(masks, torch.tensor([names]).log(), void, (Geometry.unresized(SIZE),))


def test_who_names_any_masks_is_given_the_true_ones():
    pipeline, pixels = load("maskclip-tiny", device="cpu"), np.zeros((*SIZE, 3), np.uint8)
    text = pipeline.embed(Vocabulary.parse("sky; grass; dog"))
    [found] = predictions(pipeline, [pixels], text, "masks", [halves()])
    assert isinstance(found, MaskPrediction)
    assert torch.equal(found.masks[0] > 0, oracle.true_regions(halves())[0])
    assert found.per_class().shape == (1, 2, 3)
    [own] = predictions(pipeline, [pixels], text, None, [halves()])
    assert own.per_class().shape == (1, 24, 3)


def test_given_masks_leave_the_names_to_the_method():
    prediction = rough([[0.1, 0.8, 0.05, 0.05], [0.1, 0.1, 0.7, 0.1]])
    found = regions_of(oracle.apply("masks", prediction, halves()), TEXT, "panoptic", Policy())
    assert [region.label for region in found] == [1, 2]
    for region, number in zip(found, (1, 2), strict=True):
        assert torch.equal(region.mask, torch.from_numpy(halves().ids == number))


@pytest.mark.parametrize("void", [True, False])
def test_given_labels_leave_the_masks_to_the_method(void):
    prediction = rough(
        [[0.1, 0.8, 0.05, 0.05], [0.7, 0.1, 0.1, 0.1]] if void else [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]], void=void
    )
    found = regions_of(oracle.apply("labels", prediction, halves()), TEXT, "panoptic", Policy())
    assert [(region.label, round(region.score, 3)) for region in found] == [(0, 0.8), (2, 1.0)]
    assert torch.equal(found[0].mask, prediction.masks[0, 0] > 0)


def test_a_mask_on_nothing_and_a_region_without_a_mask_are_left_out():
    ids = np.zeros(SIZE, np.int32)
    ids[:, 4:6] = 1
    alone = PanopticMap(ids, (PanopticSegment(1, 0),))
    prediction = rough([[0.1, 0.8, 0.05, 0.05], [0.1, 0.1, 0.7, 0.1]])
    for kind in oracle.ORACLES:
        assert regions_of(oracle.apply(kind, prediction, alone), TEXT, "panoptic", Policy()) == []
        empty = MaskPrediction(torch.zeros(1, 0, *SIZE), torch.zeros(1, 0, 4), True, (Geometry.unresized(SIZE),))
        assert regions_of(oracle.apply(kind, empty, alone), TEXT, "panoptic", Policy()) == []


def test_all_truths_mark_the_same_regions():
    masks, labels = oracle.true_regions(halves())
    counts = encode_masks(masks)
    things = tuple(Instance(int(k), c, 1.0, (0, 0, 1, 1)) for k, c in zip(labels, counts, strict=True))
    crowd = Instance(1, counts[0], 1.0, (0, 0, 1, 1), crowd=True)
    semantic_truth = np.full(SIZE, IGNORED, np.int32)
    semantic_truth[:, :5], semantic_truth[:, 6:] = 0, 2
    for other in (Instances(SIZE, (*things, crowd)), semantic_truth):
        again, names = oracle.true_regions(other)
        assert torch.equal(again, masks)
        assert torch.equal(names, labels)


def test_pixels_take_the_mean_of_the_given_region():
    generator = torch.Generator().manual_seed(0)
    prediction = PixelPrediction(torch.rand(1, 3, *SIZE, generator=generator), (Geometry.unresized(SIZE),))
    found = semantic(oracle.apply("masks", prediction, halves()))[0]
    for number in (1, 2):
        inside = torch.from_numpy(halves().ids == number)
        assert len(found[inside].unique()) == 1
        assert found[inside][0] == prediction.probabilities[0][:, inside].mean(1).argmax()
    with pytest.raises(UsageError, match="predicts pixels"):
        oracle.apply("labels", prediction, halves())


def test_pixels_with_masks_have_true_masks_and_true_labels():
    probabilities = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    prediction = PixelPrediction(
        probabilities, (Geometry.unresized(SIZE),), rough([[0.8, 0.1, 0.05], [0.8, 0.1, 0.1]], void=False)
    )
    regions, labels = oracle.true_regions(halves())
    found = regions_of(oracle.apply("masks", prediction, halves()), TEXT, "panoptic", Policy())
    best = torch.stack([probabilities[0][:, mask].mean(1) for mask in regions]).argmax(1)
    assert {region.label for region in found} == set(best.tolist())
    assert torch.equal(torch.stack([region.mask for region in found]).any(0), regions.any(0))
    found = regions_of(oracle.apply("labels", prediction, halves()), TEXT, "panoptic", Policy())
    assert [region.label for region in found] == labels.tolist()
