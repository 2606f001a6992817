"""The set loss: against a plain one written with loops, its invariances, batches without targets, several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, distributed
from torch.testing import assert_close

from lexiseg.errors import UsageError
from lexiseg.losses.matching import Costs, match
from lexiseg.losses.set_loss import SetLossOptions, set_loss
from lexiseg.structures import Geometry, MaskPrediction, MaskTarget
from tests.losses.test_masks import surface
from tests.losses.test_matching import NONE, SIZE, boxes_target, fixed_points, random_prediction, random_target

OPTIONS = SetLossOptions(points=16)


def other_points(image: int, rows: int, count: int) -> Tensor:
    """Other points for every row."""
    return torch.rand(rows, count, 2, generator=torch.Generator().manual_seed(100 * image + 10 * rows + count)).double()


def plain_surface(values: Tensor, places: Tensor) -> Tensor:
    """Differentiable samples [P] of one map [h, w] at [P, 2]: every cell's weight at every point."""
    height, width = values.shape
    across = (1 - (places[:, :1] * width - 0.5 - torch.arange(width)).abs()).clamp(min=0)
    down = (1 - (places[:, 1:] * height - 0.5 - torch.arange(height)).abs()).clamp(min=0)
    return torch.stack([(down[n][:, None] * across[n] * values).sum() for n in range(len(places))])


def plain_set_loss(
    layers: Sequence[MaskPrediction], targets: Sequence[MaskTarget], options: SetLossOptions
) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    count = max(1, sum(len(target) for target in targets))
    certain = int(options.importance * options.points)
    for layer, suffix in zip(layers, ["", "_0", "_1"], strict=False):
        entropy, dice, named, weights = 0, 0, 0, 0
        for image, found in enumerate(match(layer, targets, points=options.points, draw=other_points)):
            labels = [layer.classes.shape[-1] - 1] * layer.masks.shape[1]
            rows = len(found.queries)
            candidates = other_points(image, rows, int(options.oversample * options.points)) if rows else None
            uniform = other_points(image, rows, options.points - certain) if rows else None
            for pair, (query, number) in enumerate(zip(found.queries.tolist(), found.targets.tolist(), strict=True)):
                labels[query] = int(targets[image].labels[number])
                mask, target = layer.masks[image, query], targets[image].masks[number].double()
                doubt = [abs(surface(mask.detach(), *place)) for place in candidates[pair].tolist()]
                best = sorted(range(len(doubt)), key=doubt.__getitem__)[:certain]
                places = torch.cat([candidates[pair][best], uniform[pair]])
                truth = torch.tensor([surface(target, *place) for place in places.tolist()], dtype=torch.float64)
                chance = plain_surface(mask, places).sigmoid()
                entropy = entropy - (truth * chance.log() + (1 - truth) * (1 - chance).log()).mean()
                dice = dice + 1 - (2 * (chance * truth).sum() + 1) / (chance.sum() + truth.sum() + 1)
            for query, label in enumerate(labels):
                weight = options.void if label == layer.classes.shape[-1] - 1 else 1.0
                named = named - weight * layer.classes[image, query].softmax(-1)[label].log()
                weights += weight
        losses[f"class{suffix}"] = options.classes * named / weights
        losses[f"mask{suffix}"] = options.mask * entropy / count
        losses[f"dice{suffix}"] = options.dice * dice / count
    return losses


def test_losses_and_gradients_are_those_of_the_plain_loops():
    layers = [random_prediction(5, images=3) for _ in range(2)]
    leaves = [tensor.double().requires_grad_() for layer in layers for tensor in (layer.masks, layer.classes)]
    layers = [replace(layers[n], masks=leaves[2 * n], classes=leaves[2 * n + 1]) for n in range(2)]
    targets = [random_target(2), NONE, random_target(3)]
    found = set_loss(replace(layers[0], auxiliary=(layers[1],)), targets, OPTIONS, other_points)
    expected = plain_set_loss(layers, targets, OPTIONS)
    assert found.keys() == expected.keys() == {name + end for end in ("", "_0") for name in ("class", "mask", "dice")}
    for name in found:
        assert_close(found[name], expected[name], rtol=1e-6, atol=0)
    for ours, plain in zip(
        torch.autograd.grad(sum(found.values()), leaves), torch.autograd.grad(sum(expected.values()), leaves), strict=True
    ):
        assert_close(ours, plain, rtol=1e-5, atol=1e-9)


def test_gradients_are_those_of_finite_differences():
    prediction, targets = random_prediction(3), [random_target(2)]
    options = SetLossOptions(points=8, importance=0.5)

    def loss(masks: Tensor, classes: Tensor) -> Tensor:
        moved = replace(prediction, masks=masks, classes=classes)
        return torch.stack(list(set_loss(moved, targets, options, other_points).values())).sum()

    inputs = (prediction.masks.double().requires_grad_(), prediction.classes.double().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def test_the_order_of_queries_and_targets_does_not_matter():
    prediction, target = random_prediction(6), random_target(4)
    before = set_loss(prediction, [target], OPTIONS, fixed_points)
    queries, numbers = torch.randperm(6), torch.randperm(4)
    shuffled = replace(prediction, masks=prediction.masks[:, queries], classes=prediction.classes[:, queries])
    after = set_loss(shuffled, [MaskTarget(target.masks[numbers], target.labels[numbers])], OPTIONS, fixed_points)
    assert_close(after, before)


@pytest.mark.parametrize("images", [1, 2])
def test_without_any_target_all_queries_are_nothing(images: int) -> None:
    prediction = random_prediction(4, images=images)
    masks, classes = prediction.masks.requires_grad_(), prediction.classes.requires_grad_()
    losses = set_loss(replace(prediction, masks=masks, classes=classes), [NONE] * images, OPTIONS)
    assert losses["mask"] == losses["dice"] == 0
    assert_close(losses["class"], -2 * classes[..., -1].mean())
    on_masks, on_classes = torch.autograd.grad(sum(losses.values()), [masks, classes])
    assert (on_masks == 0).all(), "a gradient of zeros, so that no process waits for another's"
    assert on_classes.isfinite().all()


def test_empty_targets_and_certain_masks_stay_finite():
    prediction = random_prediction(4)
    masks = torch.stack([torch.full((6, 8), value) for value in (-1e4, 1e4, 0.0, -1e4)])[None].requires_grad_()
    target = MaskTarget(torch.zeros(3, *SIZE, dtype=torch.bool), torch.tensor([0, 0, 1]))
    losses = set_loss(replace(prediction, masks=masks), [target], OPTIONS)
    (gradient,) = torch.autograd.grad(sum(losses.values()), masks)
    assert all(value.isfinite() for value in losses.values())
    assert gradient.isfinite().all()


def test_of_two_equal_queries_one_answers_for_the_target():
    three = boxes_target()
    target = MaskTarget(three.masks[:1], three.labels[:1])
    mask = 20.0 * (2.0 * target.masks - 1)
    names = torch.full((1, 2, 4), -10.0)
    names[..., int(target.labels[0])] = 10.0
    prediction = MaskPrediction(mask[None].repeat(1, 2, 1, 1), names.log_softmax(-1), True, (Geometry.unresized(SIZE),))
    losses = set_loss(prediction, [target], OPTIONS)
    assert_close(losses["class"], torch.tensor(2 * 0.1 * 20 / 1.1), rtol=1e-4, atol=0)
    assert losses["dice"] < 5 * 0.2, "points on the border itself are half inside"


def test_no_object_of_weight_zero_is_a_class_that_nothing_is():
    """Only matched queries have a class loss; without the column they have it among the classes alone."""
    prediction, target = random_prediction(5), random_target(2)
    (pairs,) = match(prediction, [target], points=16, draw=fixed_points)
    named = prediction.classes[0, pairs.queries].log_softmax(-1)
    expected = -2 * named.gather(1, target.labels[pairs.targets][:, None]).mean()
    without = replace(OPTIONS, void=0.0)
    assert_close(set_loss(prediction, [target], without, fixed_points)["class"], expected)
    bare = replace(prediction, classes=prediction.classes[..., :-1].log_softmax(-1), void=False)
    (pairs,) = match(bare, [target], points=16, draw=fixed_points)
    expected = -2 * bare.classes[0, pairs.queries].gather(1, target.labels[pairs.targets][:, None]).mean()
    for options in (OPTIONS, without):
        assert_close(set_loss(bare, [target], options, fixed_points)["class"], expected)
    classes = bare.classes.requires_grad_()
    nothing = set_loss(replace(bare, classes=classes), [NONE], without)["class"]
    assert nothing == 0
    assert (torch.autograd.grad(nothing, classes)[0] == 0).all()


def test_masks_without_weight_have_no_loss():
    prediction, target = random_prediction(5), random_target(2)
    alone = set_loss(prediction, [target], replace(OPTIONS, mask=0.0, dice=0.0), fixed_points)
    assert alone.keys() == {"class"}
    assert_close(alone["class"], set_loss(prediction, [target], OPTIONS, fixed_points)["class"])


def test_rows_that_pad_a_batch_have_no_loss():
    prediction, target = random_prediction(5), random_target(2)
    valid = torch.tensor([[True, True, True, False, False]])
    short = replace(prediction, masks=prediction.masks[:, :3], classes=prediction.classes[:, :3])
    found = set_loss(replace(prediction, valid=valid), [target], OPTIONS, fixed_points)
    assert_close(found, set_loss(short, [target], OPTIONS, fixed_points))


def test_a_diverged_model_shows_in_the_loss():
    prediction = random_prediction(4)
    broken = replace(prediction, masks=prediction.masks * float("nan"))
    assert set_loss(broken, [random_target(2)], OPTIONS)["mask"].isnan()


def test_two_processes_have_the_loss_of_both_batches_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = random_prediction(5, images=3)
    targets = [random_target(2), NONE, random_target(4)]
    together = set_loss(whole, targets, OPTIONS, lambda _image, rows, count: fixed_points(0, rows, count))
    halves = [slice(0, 1), slice(1, 3)]
    totals: list[Tensor] = []

    def of_process(part: slice) -> dict[str, Tensor]:
        prediction = replace(
            whole,
            masks=whole.masks[part],
            classes=whole.classes[part],
            geometries=whole.geometries[part],
        )
        return set_loss(prediction, targets[part], OPTIONS, lambda _image, rows, count: fixed_points(0, rows, count))

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: totals.append(tensor.clone()))
    for part in halves:
        of_process(part)
    total = totals[0] + totals[1]
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.copy_(total))
    first, second = (of_process(part) for part in halves)
    assert_close({name: (first[name] + second[name]) / 2 for name in together}, together)


def test_what_does_not_fit_is_refused():
    prediction = random_prediction(3)
    with pytest.raises(UsageError, match="2 targets for 1 images"):
        set_loss(prediction, [NONE, NONE])
    with pytest.raises(UsageError, match=r"labels \[3\], the prediction classes 0 to 2"):
        set_loss(prediction, [MaskTarget(torch.ones(1, *SIZE, dtype=torch.bool), torch.tensor([3]))])
    with pytest.raises(UsageError, match="1 masks and 2 labels"):
        set_loss(prediction, [MaskTarget(torch.ones(1, *SIZE, dtype=torch.bool), torch.tensor([0, 1]))])
    with pytest.raises(UsageError, match="void must be float ≥ 0"):
        SetLossOptions(void=-1.0)
    with pytest.raises(UsageError, match="importance"):
        SetLossOptions(importance=1.5)


def test_the_numbers_are_those_of_the_paper():
    assert SetLossOptions() == SetLossOptions(2, 5, 5, 0.1, 12_544, 3.0, 0.75, Costs(2, 5, 5))
