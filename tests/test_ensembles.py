"""Both ensembles: the formulas, what switches them off exactly, and each row where paper and official code differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from lexiseg.ensembles import class_ensemble, classify_masks, classify_vectors, geometric_mean, kept_masks, mask_ensemble
from lexiseg.errors import UsageError
from lexiseg.postprocess import instances, panoptic, semantic, semantic_best, semantic_scores
from lexiseg.structures import Geometry, MaskPrediction, TextEmbeddings
from tests.laws.builders import tiny_clip

SIZE = (12, 16)
SEEN = torch.tensor([True, False, True, False, False])
BEHAVIOURS = pytest.mark.parametrize("behaviour", ["paper", "official"])


def text_of(vectors: Tensor, class_index: Tensor) -> TextEmbeddings:
    count = int(class_index.max()) + 1
    names = tuple(map(str, range(count)))
    return TextEmbeddings(functional.normalize(vectors, dim=-1), class_index, names, torch.ones(count, dtype=torch.bool))


def random_prediction(queries: int = 7, *, void: bool = True, images: int = 2) -> MaskPrediction:
    names = (2 * torch.randn(images, queries, len(SEEN) + void)).log_softmax(-1)
    masks = 4 * torch.randn(images, queries, 6, 8)
    return MaskPrediction(masks, names, void, (Geometry.unresized(SIZE),) * images)


def random_clip(queries: int = 7, images: int = 2) -> Tensor:
    return (3 * torch.randn(images, queries, len(SEEN))).log_softmax(-1)


# --- classes of masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convnext", "resnet"])
@torch.no_grad()
def test_masks_are_called_by_the_features_under_them(kind: str) -> None:
    clip = tiny_clip(kind)
    features = clip.features(torch.rand(1, 3, 64, 96))
    text = text_of(torch.randn(4, clip.width), torch.arange(4))
    high, wide = features.grid
    logits = torch.full((1, 3, high, wide), -1.0)
    logits[0, 0], logits[0, 1, 0, 0] = 1.0, 1.0
    classes, covered = classify_masks(clip, features, logits, text)
    assert covered.tolist() == [[True, True, False]]
    assert_close(classes[0, 2].exp(), torch.full((4,), 0.25))
    inside = (logits > 0).float()
    assert_close(classes, classify_vectors(clip.embed_regions(features, inside), text, clip.logit_scale))
    coarse = functional.interpolate(logits, (4 * high, 4 * wide), mode="nearest")
    assert_close(classify_masks(clip, features, coarse, text)[0], classes)


def test_classes_are_the_softmax_of_the_best_name_and_of_nothing():
    vectors, names, nothing = torch.randn(2, 5, 8), torch.randn(4, 8), torch.randn(8)
    text = text_of(names, torch.tensor([0, 1, 1, 2]))
    cosine = functional.cosine_similarity(vectors[..., None, :], torch.cat([names, nothing[None]]), dim=-1)
    best = torch.stack([cosine[..., 0], cosine[..., 1:3].amax(-1), cosine[..., 3]], -1)
    assert_close(classify_vectors(vectors, text, 10.0).exp(), (10 * best).softmax(-1))
    with_void = classify_vectors(vectors, text, 10.0, nothing).exp()
    assert_close(with_void, (10 * torch.cat([best, cosine[..., 4:]], -1)).softmax(-1))


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def test_the_mean_is_geometric():
    detector, clip = random_clip(), random_clip()
    found = geometric_mean(detector, clip, SEEN, alpha=0.4, beta=0.8).exp()
    for label, seen in enumerate(SEEN.tolist()):
        weight = 0.4 if seen else 0.8
        assert_close(found[..., label], detector.exp()[..., label] ** (1 - weight) * clip.exp()[..., label] ** weight)


def test_weights_of_zero_and_one_are_exact():
    detector, clip = random_clip(), random_clip()
    assert torch.equal(geometric_mean(detector, clip, SEEN, alpha=0, beta=0), detector)
    assert torch.equal(geometric_mean(detector, clip, SEEN, alpha=1, beta=1), clip)
    mixed = geometric_mean(detector, clip, SEEN, alpha=0, beta=1)
    assert torch.equal(mixed, torch.where(SEEN, detector, clip))


@BEHAVIOURS
def test_ensemble_switched_off_and_fully_on(behaviour):
    prediction, clip = random_prediction(), random_clip()
    off = class_ensemble(prediction, clip, SEEN, alpha=0, beta=0, behaviour=behaviour)
    assert_close(off.classes.exp(), prediction.classes.exp(), rtol=0, atol=1e-6)
    on = class_ensemble(prediction, clip, SEEN, alpha=1, beta=1, behaviour=behaviour)
    present = 1 - prediction.classes[..., -1:].exp()
    assert_close(on.per_class().exp(), clip.exp() * present, rtol=0, atol=1e-6)
    assert_close(on.classes[..., -1].exp(), prediction.classes[..., -1].exp(), rtol=0, atol=1e-6)


@BEHAVIOURS
def test_the_ensemble_is_a_distribution_over_classes_and_no_object(behaviour):
    """Eq. (7) of the two distributions over classes, normalised to what "no object" leaves, written out."""
    prediction, clip = random_prediction(), random_clip()
    found = class_ensemble(prediction, clip, SEEN, behaviour=behaviour).classes.exp()
    assert_close(found.sum(-1), torch.ones(2, 7), rtol=0, atol=1e-6)
    probability = prediction.classes.exp()
    present = 1 - probability[..., -1:]
    weight = torch.where(SEEN, 0.4, 0.8)
    mean = (probability[..., :-1] / present) ** (1 - weight) * clip.exp() ** weight
    assert_close(found[..., :-1], present * mean / mean.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_without_no_object_the_ensemble_is_equation_7_as_written():
    prediction, clip = random_prediction(void=False), random_clip()
    mean = geometric_mean(prediction.classes, clip, SEEN, alpha=0.4, beta=0.8)
    assert torch.equal(class_ensemble(prediction, clip, SEEN).classes, mean)


@BEHAVIOURS
def test_a_mask_without_a_cell_is_left_to_the_detector(behaviour):
    prediction, clip = random_prediction(), random_clip()
    covered = torch.rand(2, 7) > 0.5
    clip = torch.where(covered[..., None], clip, torch.nan)
    found = class_ensemble(prediction, clip, SEEN, behaviour=behaviour, covered=covered).classes
    detector = class_ensemble(prediction, random_clip(), SEEN, alpha=0, beta=0, behaviour=behaviour).classes
    assert_close(found[~covered], detector[~covered])
    assert (found[covered] - detector[covered]).abs().amax(-1).min() > 1e-3


@BEHAVIOURS
def test_probabilities_that_underflow_stay_finite(behaviour):
    prediction = random_prediction()
    classes = prediction.classes.clone()
    classes[:, 0], classes[:, 1, 2], classes[:, 2, :-1], classes[:, 2, -1] = -200.0, -torch.inf, -torch.inf, 0.0
    clip = random_clip()
    clip[:, 0], clip[:, 1, 2], clip[:, 3] = -500.0, -torch.inf, -torch.inf
    found = class_ensemble(replace(prediction, classes=classes), clip, SEEN, behaviour=behaviour).classes
    assert found.isfinite().all()
    assert found[:, 1, 2].exp().max() <= 1.1e-8


# --- stage 2 ----------------------------------------------------------------------------------------------------------


def sam_prediction(count: int = 4) -> MaskPrediction:
    """SAM's masks on a grid of their own; each is sure of another class, the last of none."""
    names = torch.full((2, count, len(SEEN)), -3.0)
    for row in range(count - 1):
        names[:, row, row] = 3.0
    return MaskPrediction(
        4 * torch.randn(2, count, 9, 9), names.log_softmax(-1), False, (Geometry.unresized(SIZE, (16, 16)),) * 2
    )


def test_epsilon_of_zero_is_the_prediction_itself():
    prediction = random_prediction()
    assert mask_ensemble(prediction, sam_prediction(), SEEN, epsilon=0) is prediction


def test_only_semantic_results_are_made_of_both():
    prediction, text = random_prediction(), text_of(torch.eye(5), torch.arange(5))
    both = mask_ensemble(prediction, sam_prediction(), SEEN, epsilon=0.3)
    assert all(torch.equal(getattr(both, name), getattr(prediction, name)) for name in ("masks", "classes"))
    assert both.void == prediction.void
    for one, other in zip(panoptic(both, text), panoptic(prediction, text), strict=True):
        assert torch.equal(one[0], other[0])
    assert [[region.score for region in image] for image in instances(both, text)] == [
        [region.score for region in image] for image in instances(prediction, text)
    ]
    assert not torch.equal(next(semantic_scores(both)), next(semantic_scores(prediction)))


@BEHAVIOURS
def test_scores_follow_equation_12(behaviour):
    prediction = random_prediction()
    sam = replace(sam_prediction(), geometries=(Geometry.unresized(SIZE, (12, 16)),) * 2)
    both = mask_ensemble(prediction, sam, SEEN, epsilon=0.3, behaviour=behaviour)
    kept = kept_masks(sam, SEEN, behaviour=behaviour)
    logits = functional.interpolate(sam.masks, SIZE, mode="bilinear", align_corners=False)
    theirs = (logits > 0).float() if behaviour == "paper" else logits.sigmoid()
    ours = functional.interpolate(prediction.masks, SIZE, mode="bilinear", align_corners=False).sigmoid()
    model = torch.einsum("bqk,bqhw->bkhw", prediction.per_class().exp(), ours)
    zero_shot = torch.einsum("bqk,bqhw->bkhw", sam.classes.exp() * kept[..., None], theirs)
    expected = torch.where(SEEN[:, None, None], model, 0.7 * model + 0.3 * zero_shot)
    assert_close(torch.stack(list(semantic_scores(both, divide=False))), expected, rtol=0, atol=2e-4)
    for index, (score, label) in enumerate(semantic_best(both)):
        assert (label == expected[index].argmax(0)).float().mean() > 0.99, "ties may fall either way"
        assert 0 <= score.min() <= score.max() <= 1
    assert len(semantic(both)) == 2


def test_seen_classes_are_the_models_alone():
    prediction = random_prediction()
    before, after = (
        torch.stack(list(semantic_scores(parts, divide=False)))
        for parts in (prediction, mask_ensemble(prediction, sam_prediction(), SEEN))
    )
    assert torch.equal(before[:, SEEN], after[:, SEEN])
    assert not torch.equal(before[:, ~SEEN], after[:, ~SEEN])


def test_epsilon_of_one_leaves_unseen_classes_to_sam():
    prediction, sam = random_prediction(), sam_prediction()
    with_sam = torch.stack(list(semantic_scores(mask_ensemble(prediction, sam, SEEN, epsilon=1), divide=False)))
    other = torch.stack(list(semantic_scores(mask_ensemble(random_prediction(), sam, SEEN, epsilon=1), divide=False)))
    assert torch.equal(with_sam[:, ~SEEN], other[:, ~SEEN])


def test_masks_are_kept_by_all_classes_in_the_paper_and_by_unseen_ones_in_the_code():
    sam = sam_prediction()
    assert kept_masks(sam, SEEN)[0].tolist() == [True, True, True, False]
    assert kept_masks(sam, SEEN, behaviour="official")[0].tolist() == [False, True, False, False]
    padded = replace(sam, valid=torch.tensor([[True, False, True, True]] * 2))
    assert kept_masks(padded, SEEN)[0].tolist() == [True, False, True, False]
    assert not kept_masks(sam, SEEN, xi=1.0).any()


def test_without_kept_masks_unseen_scores_shrink_and_no_more():
    prediction = random_prediction()
    both = mask_ensemble(prediction, sam_prediction(), SEEN, xi=1.0)
    found, model = (torch.stack(list(semantic_scores(part, divide=False))) for part in (both, prediction))
    assert_close(found, torch.where(SEEN[:, None, None], model, 0.8 * model))


def test_what_makes_no_sense_is_refused():
    prediction, sam, clip = random_prediction(), sam_prediction(), random_clip()
    with pytest.raises(UsageError, match=r"alpha must be in 0\.\.1"):
        class_ensemble(prediction, clip, SEEN, alpha=1.5)
    with pytest.raises(UsageError, match=r"epsilon must be in 0\.\.1"):
        mask_ensemble(prediction, sam, SEEN, epsilon=-0.1)
    with pytest.raises(UsageError, match="different images"):
        mask_ensemble(prediction, replace(sam, geometries=(Geometry.unresized((1, 1)),) * 2), SEEN)
    with pytest.raises(UsageError, match="'no object'"):
        class_ensemble(random_prediction(void=False), clip, SEEN, behaviour="official")
