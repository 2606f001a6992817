"""Matching: against every possible assignment, and where there is little or nothing to match."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from lexiseg.losses.masks import dice_loss, mask_cross_entropy, sample_points
from lexiseg.losses.matching import Costs, match, matching_cost, uniform_points
from lexiseg.structures import Geometry, MaskPrediction, MaskTarget

SIZE = (24, 32)
NONE = MaskTarget(torch.zeros(0, *SIZE, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))


def random_prediction(queries: int, *, images: int = 1, classes: int = 3) -> MaskPrediction:
    masks, names = 3 * torch.randn(images, queries, 6, 8), torch.randn(images, queries, classes + 1)
    return MaskPrediction(masks, names.log_softmax(-1), True, (Geometry.unresized(SIZE),) * images)


def random_target(count: int, classes: int = 3) -> MaskTarget:
    return MaskTarget(torch.rand(count, *SIZE) > 0.5, torch.randint(classes, (count,)))


def boxes_target() -> MaskTarget:
    """Three masks with smooth borders."""
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :12], masks[1, 4:20, :10], masks[2, 14:, 16:] = True, True, True
    return MaskTarget(masks, torch.tensor([1, 0, 1]))


def fixed_points(image: int, rows: int, count: int) -> torch.Tensor:
    """The same for all rows, so that their order does not matter."""
    generator = torch.Generator().manual_seed(1000 * image + count)
    return torch.rand(1, count, 2, generator=generator).expand(rows, -1, -1)


def test_costs_are_those_of_the_losses_pair_by_pair():
    prediction, target, points = random_prediction(4), random_target(3), torch.rand(50, 2)
    found = matching_cost(prediction.masks[0], prediction.classes[0], target, points, SIZE, Costs(2, 5, 3))
    for query in range(4):
        for number in range(3):
            logits = sample_points(prediction.masks[0, query : query + 1], points)
            truth = sample_points(target.masks[number : number + 1].float(), points)
            named = prediction.classes[0, query, target.labels[number]].exp()
            expected = -2 * named + 5 * mask_cross_entropy(logits, truth)[0] + 3 * dice_loss(logits, truth)[0]
            assert_close(found[query, number], expected)


@pytest.mark.parametrize(("queries", "count"), [(5, 3), (3, 5), (4, 4)])
def test_no_assignment_is_cheaper(queries: int, count: int) -> None:
    prediction, target = random_prediction(queries), random_target(count)
    (found,) = match(prediction, [target], points=40, draw=fixed_points)
    cost = matching_cost(prediction.masks[0], prediction.classes[0], target, fixed_points(0, 1, 40)[0], SIZE)
    assert len(found.queries) == len(set(found.queries.tolist())) == len(set(found.targets.tolist())) == min(queries, count)
    assert found.queries.tolist() == sorted(found.queries.tolist())
    wide = cost if queries >= count else cost.T
    cheapest = min(sum(wide[row, n] for n, row in enumerate(rows)) for rows in permutations(range(len(wide)), wide.shape[1]))
    assert_close(cost[found.queries, found.targets].sum(), cheapest)


def test_the_right_query_is_found_wherever_it_stands():
    target = boxes_target()
    logits = 20.0 * (2.0 * target.masks - 1)
    names = torch.full((3, 4), -5.0)
    names[torch.arange(3), target.labels] = 5.0
    order = torch.randperm(3)
    masks = torch.cat([torch.randn(2, *SIZE), logits[order]])[None]
    classes = torch.cat([torch.randn(2, 4), names[order]])[None].log_softmax(-1)
    (found,) = match(MaskPrediction(masks, classes, True, (Geometry.unresized(SIZE),)), [target], points=200)
    assert found.queries.tolist() == [2, 3, 4]
    assert_close(found.targets, order)


def test_images_without_targets_and_rows_of_padding_are_not_matched():
    prediction = random_prediction(4, images=3)
    valid = torch.tensor([[True, False, True, False], [True] * 4, [False] * 4])
    found = match(replace(prediction, valid=valid), [random_target(3), NONE, random_target(2)], points=20)
    assert found[0].queries.tolist() == [0, 2]
    assert [len(pairs.queries) for pairs in found] == [2, 0, 0]
    alone = match(
        replace(prediction, masks=prediction.masks[:1, ::2], classes=prediction.classes[:1, ::2]),
        [random_target(3)],
        points=20,
    )
    assert len(alone[0].queries) == 2


def test_a_target_without_padding_is_one_with_it():
    prediction = replace(random_prediction(3), geometries=(Geometry.unresized((20, 25), SIZE),))
    small = MaskTarget(torch.rand(2, 20, 25) > 0.5, torch.tensor([0, 1]))
    padded = MaskTarget(torch.nn.functional.pad(small.masks, (0, 7, 0, 4)), small.labels)
    points = torch.rand(100, 2)
    costs = [matching_cost(prediction.masks[0], prediction.classes[0], target, points, SIZE) for target in (small, padded)]
    assert_close(*costs, rtol=0, atol=1e-4)


def test_logits_and_log_probabilities_cost_the_same():
    masks, logits, target, points = torch.randn(4, 6, 8), 5 * torch.randn(4, 4), random_target(2), torch.rand(30, 2)
    assert_close(
        matching_cost(masks, logits, target, points, SIZE), matching_cost(masks, logits.log_softmax(-1), target, points, SIZE)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_diverged_model_is_matched_all_the_same(value: float) -> None:
    prediction, target = random_prediction(4), random_target(2)
    masks = prediction.masks.clone()
    masks[0, :3] = value
    (found,) = match(replace(prediction, masks=masks), [target], points=20)
    assert 3 in found.queries.tolist(), "the only query that is a number costs least"
    assert len(found.queries) == 2


def test_half_precision_is_matched_in_full():
    prediction, target = random_prediction(4), random_target(2)
    half = replace(prediction, masks=prediction.masks.bfloat16(), classes=prediction.classes.bfloat16())
    full = replace(half, masks=half.masks.float(), classes=half.classes.float())
    points = torch.rand(100, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = matching_cost(half.masks[0], half.classes[0], target, points, SIZE)
    assert_close(found, matching_cost(full.masks[0], full.classes[0], target, points, SIZE))


def test_default_points_are_uniform_and_new_each_time():
    draw = uniform_points(torch.device("cpu"))
    first, second = draw(0, 3, 500), draw(0, 3, 500)
    assert first.shape == (3, 500, 2)
    assert 0 <= float(first.min()) < 0.01 < 0.99 < float(first.max()) <= 1
    assert not torch.equal(first, second)
