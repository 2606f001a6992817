"""Post-processing against slow and plain references, and its policy for what has no name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lexiseg import postprocess
from lexiseg.errors import UsageError
from lexiseg.postprocess import MASK2FORMER, VOID, Policy, instances, panoptic, semantic, semantic_best, semantic_scores
from lexiseg.structures import Geometry, MaskPrediction, PixelPrediction, TextEmbeddings

SIZE = (12, 16)


def text(classes: int, things: set[int]) -> TextEmbeddings:
    is_thing = torch.tensor([label in things for label in range(classes)])
    return TextEmbeddings(torch.eye(classes), torch.arange(classes), tuple(map(str, range(classes))), is_thing)


def boxes_prediction(*boxes: tuple[int, int, int, int], probability: list[list[float]]) -> MaskPrediction:
    """Sharp masks of boxes (top, bottom, left, right); ``probability`` ends with that of no object."""
    masks = torch.full((1, len(boxes), *SIZE), -20.0)
    for row, (top, bottom, left, right) in enumerate(boxes):
        masks[0, row, top:bottom, left:right] = 20.0
    return MaskPrediction(masks, torch.tensor([probability]).log(), True, (Geometry.unresized(SIZE),))


def test_panoptic_gives_each_pixel_to_the_best_claim_and_merges_stuff():
    prediction = boxes_prediction(
        (0, 12, 0, 8), (0, 12, 8, 16), (2, 6, 2, 6),
        probability=[[0.05, 0.7, 0.05, 0.2], [0.05, 0.6, 0.05, 0.3], [0.9, 0.02, 0.03, 0.05]],
    )  # fmt: skip
    numbers, regions = panoptic(prediction, text(3, {0}))[0]
    assert [(region.label, round(region.score, 2)) for region in regions] == [(1, 0.7), (0, 0.9)]
    assert (numbers[2:6, 2:6] == 2).all()
    assert (numbers == 1).sum() == 12 * 16 - 16
    assert_close(regions[0].mask, numbers == 1)


def test_panoptic_drops_what_lost_most_of_its_mask():
    prediction = boxes_prediction((0, 12, 0, 10), (0, 12, 0, 16), probability=[[0.9, 0.05, 0.05], [0.05, 0.8, 0.15]])
    numbers, regions = panoptic(prediction, text(2, {0, 1}))[0]
    assert [region.label for region in regions] == [0]
    assert (numbers[:, 10:] == 0).all(), "its 37 % are void, not another's"
    both = panoptic(prediction, text(2, {0, 1}), Policy(overlap=0.3))[0][1]
    assert [region.label for region in both] == [0, 1]


def test_pixels_won_outside_the_mask_count_only_where_the_policy_is_generous():
    prediction = boxes_prediction((0, 12, 0, 10), (0, 12, 0, 6), probability=[[0.6, 0.3, 0.1], [0.05, 0.9, 0.05]])
    words = text(2, {0, 1})
    assert [region.label for region in panoptic(prediction, words)[0][1]] == [1], "4 of its 10 columns are left"
    prediction.masks[0, 0, :, 10:] = -1.0  # the best of the rest, yet no mask
    numbers, regions = panoptic(prediction, words, MASK2FORMER)[0]
    assert [region.label for region in regions] == [0, 1], "6 more columns are won"
    assert (numbers[:, 10:] == 0).all()
    assert [region.label for region in panoptic(prediction, words)[0][1]] == [1]


def test_no_object_is_no_region():
    prediction = boxes_prediction((0, 12, 0, 16), probability=[[0.2, 0.3, 0.5]])
    assert panoptic(prediction, text(2, {0}))[0][1] == []


def test_threshold_and_background_leave_void():
    prediction = boxes_prediction((0, 12, 0, 8), (0, 12, 8, 16), probability=[[0.6, 0.1, 0.3], [0.1, 0.8, 0.1]])
    words = text(2, {0, 1})
    assert [region.label for region in panoptic(prediction, words, Policy(threshold=0.7))[0][1]] == [1]
    hidden = Policy(background=frozenset({1}))
    numbers, regions = panoptic(prediction, words, hidden)[0]
    assert [region.label for region in regions] == [0]
    assert (numbers[:, 8:] == 0).all()
    assert (semantic(prediction, hidden)[0][:, 8:] == VOID).all()
    assert (semantic(prediction, Policy(threshold=0.7))[0][:, :8] == VOID).all()
    assert all(region.label == 0 for region in instances(prediction, words, hidden)[0])


def random_prediction(queries: int = 70, classes: int = 6) -> MaskPrediction:
    generator = torch.Generator().manual_seed(0)
    masks = 4 * torch.randn(1, queries, 6, 8, generator=generator)
    names = (3 * torch.randn(1, queries, classes + 1, generator=generator)).log_softmax(-1)
    return MaskPrediction(masks, names, True, (Geometry.unresized(SIZE),))


@pytest.mark.parametrize(("generous", "overlap"), [(False, 0.05), (True, 0.05), (True, 0.1)])
def test_panoptic_equals_the_plain_algorithm_of_mask2former(generous: bool, overlap: float) -> None:
    prediction, words = random_prediction(20), text(6, {0, 2, 4})
    policy = Policy(threshold=0.3, overlap=overlap, generous_overlap=generous)
    numbers, regions = panoptic(prediction, words, policy)[0]
    score, label = prediction.classes[0].exp().max(-1)
    keep = (label != 6) & (score >= 0.3)
    masks = torch.nn.functional.interpolate(prediction.masks, SIZE, mode="bilinear", align_corners=False)[0].sigmoid()[keep]
    score, label = score[keep], label[keep]
    winner = (score[:, None, None] * masks).argmax(0)
    expected, count, stuff = torch.zeros(SIZE, dtype=torch.int32), 0, {}
    for row in range(len(score)):
        own = (winner == row) & (masks[row] >= 0.5)
        won = (winner == row) if generous else own
        if own.sum() == 0 or won.sum() < overlap * (masks[row] >= 0.5).sum():
            continue
        name = int(label[row])
        if name in stuff:
            expected[own] = stuff[name]
            continue
        count += 1
        expected[own] = count
        if name not in {0, 2, 4}:
            stuff[name] = count
    assert count > 3
    assert_close(numbers, expected)
    assert len(regions) == count


def test_semantic_scores_are_probabilities_and_follow_the_formula():
    prediction = random_prediction()
    found = next(iter(semantic_scores(prediction)))
    masks = torch.nn.functional.interpolate(prediction.masks, SIZE, mode="bilinear", align_corners=False)[0].sigmoid()
    plain = torch.einsum("qk,qhw->khw", prediction.classes[0, :, :6].exp(), masks) / masks.sum(0).clamp(min=1)
    assert_close(found, plain)
    assert found.sum(0).max() <= 1 + 1e-5


def test_scores_without_division_are_sums_with_the_same_classes():
    prediction = random_prediction()
    sums, divided = next(semantic_scores(prediction, divide=False)), next(semantic_scores(prediction))
    masks = torch.nn.functional.interpolate(prediction.masks, SIZE, mode="bilinear", align_corners=False)[0].sigmoid()
    assert_close(sums, torch.einsum("qk,qhw->khw", prediction.classes[0, :, :6].exp(), masks))
    assert sums.sum(0).max() > 2
    assert torch.equal(sums.argmax(0), divided.argmax(0))


def test_the_parts_of_an_ensemble_are_summed_and_divided_by_the_largest_cover():
    padded = Geometry.unresized(SIZE, (16, 20))
    first, second = random_prediction(), replace(random_prediction(9), masks=torch.randn(1, 9, 5, 5), geometries=(padded,))
    sums = [next(semantic_scores(part, divide=False)) for part in (first, second)]
    both = replace(random_prediction(3), semantic_ensemble=(first, second))
    assert_close(next(semantic_scores(both, divide=False)), sums[0] + sums[1])
    covers = [
        torch.nn.functional.interpolate(part.masks, part.geometries[0].padded_size, mode="bilinear", align_corners=False)[0]
        .sigmoid()
        .sum(0)
        for part in (first, second)
    ]
    divided = next(semantic_scores(both))
    assert_close(divided, (sums[0] + sums[1]) / torch.maximum(covers[0], covers[1][:12, :16]).clamp(min=1))
    score, label = next(semantic_best(both))
    assert_close(score, divided.amax(0))
    assert (label == divided.argmax(0)).float().mean() > 0.99, "ties may fall either way"


@pytest.mark.parametrize("pixels", [1, 40, 10_000])
@pytest.mark.parametrize("resized_size", [(23, 29), (20, 24), (24, 30)])
@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_the_best_class_by_bands_is_that_of_all_scores(monkeypatch, pixels, kind, resized_size):
    monkeypatch.setattr(postprocess, "PIXELS", pixels)
    geometry = Geometry((25, 31), resized_size, (23, 29))
    if kind == "masks":
        prediction = replace(random_prediction(), geometries=(geometry,))
    else:
        prediction = PixelPrediction(torch.rand(1, 5, 6, 8, generator=torch.Generator().manual_seed(1)), (geometry,))
    expected, names = next(iter(semantic_scores(prediction))).max(0)
    score, label = next(semantic_best(prediction))
    assert_close(score, expected)
    assert (label == names).float().mean() > 0.99, "ties may fall either way"


def test_instances_are_sorted_things_with_scores_from_the_mask():
    prediction = boxes_prediction((0, 4, 0, 4), (4, 8, 4, 8), probability=[[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]])
    found = instances(prediction, text(2, {0}))[0]
    assert [round(region.score, 3) for region in found] == [0.9, 0.5]
    assert all(region.label == 0 for region in found)
    assert len(instances(prediction, text(2, {0, 1}), Policy(detections=3))[0]) == 3


def test_pixels_have_no_instances_but_a_panoptic_map():
    probabilities = torch.zeros(1, 2, 3, 4)
    probabilities[:, 0, :, :2], probabilities[:, 1, :, 2:] = 0.9, 0.9
    prediction = PixelPrediction(probabilities, (Geometry.unresized(SIZE),))
    numbers, regions = panoptic(prediction, text(2, {0}))[0]
    assert [region.label for region in regions] == [0, 1]
    assert (numbers > 0).all()
    with pytest.raises(UsageError, match="pixels, not instances"):
        instances(prediction, text(2, {0}))


def test_pixels_with_masks_have_the_regions_of_their_masks():
    masks = boxes_prediction((0, 4, 0, 4), (4, 8, 4, 8), probability=[[0.5, 0.4, 0.1], [0.9, 0.05, 0.05]])
    prediction = PixelPrediction(torch.rand(1, 2, 3, 4), (Geometry.unresized(SIZE),), masks)
    names = text(2, {0})
    assert torch.equal(panoptic(prediction, names)[0][0], panoptic(masks, names)[0][0])
    assert [region.score for region in instances(prediction, names)[0]] == [r.score for r in instances(masks, names)[0]]
    without = replace(prediction, mask_prediction=None)
    assert torch.equal(semantic(prediction)[0], semantic(without)[0]), "the label map remains that of the pixels"
    [part, other] = PixelPrediction.join([prediction, prediction]).split()
    assert torch.equal(part.mask_prediction.masks, masks.masks)
    assert torch.equal(other.probabilities, prediction.probabilities)
    assert PixelPrediction.join([without, without]).mask_prediction is None


def test_the_extent_beyond_the_image_is_cut_off():
    prediction = boxes_prediction((0, 6, 0, 16), probability=[[0.9, 0.05, 0.05]])
    cut = replace(prediction, geometries=(Geometry.unresized((6, 16), SIZE),))
    assert (panoptic(cut, text(2, {0}))[0][0] == 1).all()


def test_policy_refuses_what_is_no_share():
    with pytest.raises(UsageError, match=r"threshold must be in 0\.\.1"):
        Policy(threshold=math.pi)


# --- only what can win is resized ---------------------------------------------------------------------------------------


def crowd(seed: int) -> MaskPrediction:
    """Blobs of many sizes and scores, some of them twice, some nowhere positive, more than a chunk of them.

    The twins' scores differ: resizing rounds a map otherwise in another place of the batch, so equal claims fall either way.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 80, 3, 4, generator=generator) * torch.rand(80, 1, 1, generator=generator) * 12 - 4
    masks = torch.nn.functional.interpolate(coarse, (9, 12), mode="bilinear")
    masks[:, 7], masks[:, 70], masks[:, 40:44] = masks[:, 3], masks[:, 3], -9.0
    names = (4 * torch.randn(1, 80, 7, generator=generator)).log_softmax(-1)
    names[:, 70] = (0.99 * names[:, 3]).log_softmax(-1)
    return MaskPrediction(masks, names, True, (Geometry.unresized((33, 41), (36, 48)),))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of masks in each call of `Geometry.upsample`."""
    calls: list[int] = []
    upsample = Geometry.upsample

    def counting(geometry: Geometry, maps: torch.Tensor) -> torch.Tensor:
        calls.append(len(maps))
        return upsample(geometry, maps)

    monkeypatch.setattr(Geometry, "upsample", counting)
    return calls


@pytest.mark.parametrize(
    "policy", [Policy(overlap=0.02), Policy(threshold=0.5, overlap=0.02), replace(MASK2FORMER, overlap=0.05)]
)
@pytest.mark.parametrize("scale", [None, 0.7, 1.9])
@pytest.mark.parametrize("seed", range(4))
def test_panoptic_of_the_queries_that_may_win_is_that_of_all(monkeypatch, seed, policy, scale):
    prediction, words = crowd(seed), text(6, {0, 2, 4})
    if scale is not None:  # the network input was resized
        size = (round(33 * scale), round(41 * scale))
        prediction = replace(prediction, geometries=(Geometry((41, 51), (33, 41), size),))
    calls = counted(monkeypatch)
    numbers, regions = panoptic(prediction, words, policy)[0]
    resized_masks = sum(calls)
    monkeypatch.setattr(postprocess, "_may_win", lambda masks, _score, _reach: torch.ones(len(masks), dtype=torch.bool))
    all_numbers, all_regions = panoptic(prediction, words, policy)[0]
    assert resized_masks < sum(calls) - resized_masks or scale is not None
    assert torch.equal(numbers, all_numbers)
    assert len(regions) > 3
    assert [(region.label, region.score) for region in regions] == [(region.label, region.score) for region in all_regions]
    assert all(torch.equal(one.mask, other.mask) for one, other in zip(regions, all_regions, strict=True))


@pytest.mark.parametrize("rows", [1, 7])
def test_chunks_bound_the_memory_and_change_nothing(monkeypatch, rows):
    prediction, words = crowd(5), text(6, {0, 2, 4})
    policy = Policy(overlap=0.02)
    numbers, regions = panoptic(prediction, words, policy)[0]
    things = instances(prediction, words)[0]
    scores = next(semantic_scores(prediction))
    monkeypatch.setattr(postprocess, "ROWS", rows)
    calls = counted(monkeypatch)
    assert torch.equal(panoptic(prediction, words, policy)[0][0], numbers)
    assert regions
    again = instances(prediction, words)[0]
    assert [(one.label, one.score) for one in again] == [(one.label, one.score) for one in things]
    assert all(torch.equal(one.mask, other.mask) for one, other in zip(again, things, strict=True))
    assert_close(next(semantic_scores(prediction)), scores)
    assert max(calls) == rows


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_instances_are_those_of_all_masks_at_full_size(monkeypatch, threshold):
    prediction, words = crowd(6), text(6, {0, 2, 4})
    calls = counted(monkeypatch)
    found = instances(prediction, words, Policy(threshold=threshold, detections=60))[0]
    resized_masks = sum(calls)
    logits = torch.nn.functional.interpolate(prediction.masks, (36, 48), mode="bilinear", align_corners=False)[0, :, :33, :41]
    probability = prediction.classes[0].exp()
    pairs = sorted(((float(probability[q, k]), q, k) for q in range(80) for k in (0, 2, 4)), reverse=True)[:60]
    expected = []
    for score, query, label in pairs:
        inside = logits[query] > 0
        if inside.any() and score * float(logits[query].sigmoid()[inside].mean()) >= threshold:
            expected.append((score * float(logits[query].sigmoid()[inside].mean()), label, inside))
    expected.sort(key=lambda entry: -entry[0])
    assert len(found) == len(expected) > 5
    for region, (score, label, inside) in zip(found, expected, strict=True):
        assert abs(region.score - score) < 1e-5
        assert region.label == label
        assert torch.equal(region.mask, inside)
    assert resized_masks <= len({query for score, query, _ in pairs if score >= threshold}), "each query at most once"


def test_stuff_may_take_the_places_of_things():
    prediction = boxes_prediction((0, 4, 0, 4), (4, 8, 4, 8), probability=[[0.5, 0.4, 0.1], [0.05, 0.9, 0.05]])
    words = text(2, {0})
    assert [round(region.score, 2) for region in instances(prediction, words, Policy(detections=2))[0]] == [0.5, 0.05]
    policy = replace(MASK2FORMER, detections=2)
    assert [round(region.score, 2) for region in instances(prediction, words, policy)[0]] == [0.5]


def test_half_precision_and_no_query_are_fine():
    prediction, words = crowd(7), text(6, {0, 2, 4})
    half = replace(prediction, masks=prediction.masks.bfloat16(), classes=prediction.classes.bfloat16())
    none = replace(prediction, valid=torch.zeros(1, 80, dtype=torch.bool))
    for policy in (Policy(overlap=0.02), replace(MASK2FORMER, overlap=0.02)):
        assert panoptic(half, words, policy)[0][0].any()
        assert instances(half, words, policy)[0]
        assert not panoptic(none, words, policy)[0][0].any()
        assert instances(none, words, policy) == [[]]
    assert (semantic(half)[0] != VOID).all()
    assert (semantic(none)[0] == VOID).all()
    assert next(semantic_scores(none)).sum() == next(semantic_best(none))[0].sum() == 0


@pytest.mark.parametrize(("cells", "strip"), [(1, 1), (5 * 12 * 16, 40), (2**26, 40), (1, 2**22)])
@pytest.mark.parametrize("policy", [Policy(threshold=0.1, overlap=0.01), replace(MASK2FORMER, overlap=0.01)])
@pytest.mark.parametrize("size", [SIZE, (29, 23)])
def test_results_do_not_depend_on_how_much_is_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch, cells: int, strip: int, policy: Policy, size: tuple[int, int]
) -> None:
    prediction, words = (
        replace(random_prediction(), geometries=(Geometry.unresized(size, (31, 25) if size != SIZE else SIZE),)),
        text(6, {0, 2, 4}),
    )

    def results() -> list[tuple[torch.Tensor, list[postprocess.Region]]]:
        score, label = next(semantic_best(prediction))
        return [
            (label, postprocess.class_regions(score, postprocess.label_map(score, label, policy))),
            panoptic(prediction, words, policy)[0],
            (score, instances(prediction, words, policy)[0]),
        ]

    expected = results()
    monkeypatch.setattr("lexiseg.ops.memory.CELLS", cells)
    monkeypatch.setattr(postprocess, "STRIP", strip)
    for (whole, regions), (parts, same) in zip(expected, results(), strict=True):
        assert torch.equal(whole, parts)
        assert len(regions) == len(same) > 1
        for region, other in zip(regions, same, strict=True):
            assert torch.equal(region.mask, other.mask)
            assert (region.label, region.score) == (other.label, pytest.approx(other.score, rel=1e-6))


def test_a_label_map_leaves_the_labels_it_is_made_of_as_they_are() -> None:
    score, label = torch.tensor([[0.2, 0.9]]), torch.tensor([[1, 1]], dtype=torch.int32)
    assert postprocess.label_map(score, label, Policy(threshold=0.5)).tolist() == [[VOID, 1]]
    assert label.tolist() == [[1, 1]]


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_more_regions_than_there_is_memory_for_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    prediction, words = random_prediction(), text(6, {0, 2, 4})
    score, label = next(semantic_best(prediction))
    attempts = {
        "semantic": lambda: postprocess.class_regions(score, label),
        "panoptic": lambda: panoptic(prediction, words, Policy(overlap=0.01)),
        "instance": lambda: instances(prediction, words),
    }
    monkeypatch.setattr("lexiseg.ops.memory.memory_left", lambda: 1000)
    with pytest.raises(MemoryError, match=r"^\d+ regions need about 0\.0 GB, and 0\.0 GB are left$"):
        attempts[task]()
    monkeypatch.setattr("lexiseg.ops.memory.memory_left", lambda: None)
    assert attempts[task]()
