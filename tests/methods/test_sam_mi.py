"""What must hold for SAM-MI beyond the laws of all methods: its three parts by themselves, and the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import lexiseg
from lexiseg.backbones.mask_generator import generate_masks, grid_points
from lexiseg.errors import UsageError, WeightsError
from lexiseg.methods import MODELS, recipe_named
from lexiseg.methods.correlation import CorrelationSegmenter, CostVolume
from lexiseg.methods.recipe import Stage
from lexiseg.methods.sam_mi.aggregation import aggregate, matching_scores, members
from lexiseg.methods.sam_mi.injection import (
    HighFrequencyInjection,
    LowFrequencyInjection,
    eroded,
    intra_costs,
    intra_mask,
    mask_embeddings,
)
from lexiseg.methods.sam_mi.model import SamMiLossOptions, in_box
from lexiseg.methods.sam_mi.prompter import Prompts, SparsePrompter, cell_labels, prompter_losses, sampled_points
from lexiseg.methods.sam_mi.regions import classified_masks
from lexiseg.methods.sam_mi.targets import expected_points, masks_on_grid, point_weights, target_probabilities
from lexiseg.postprocess import Policy, instances, panoptic
from lexiseg.structures import WHOLE, Geometry, ImageBatch, MaskTarget, Trace
from lexiseg.training.batches import points_of
from lexiseg.training.optimiser import optimiser_of
from tests.laws.builders import some_images, some_text, tiny_sam_mi

# --- where SAM should be asked (Eq. 3-5) ------------------------------------------------------------------------------


def disc(side: int = 32, radius: float = 9.0) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (y - 15) ** 2 + (x - 15) ** 2 <= radius**2


def test_targets_expect_as_many_points_as_a_mask_gets() -> None:
    bar = torch.zeros(32, 32, dtype=torch.bool)
    bar[28:31, 3:25] = True
    probabilities = target_probabilities(torch.stack([disc(), bar]))
    assert probabilities.dtype == torch.float32
    assert float(probabilities.max()) <= 1
    assert (probabilities[~(disc() | bar)] == 0).all()
    assert_close(float(probabilities[bar].sum()), float(expected_points(bar.numpy(), 5, 10)), atol=1e-5, rtol=0)
    assert expected_points(disc().numpy(), 5, 10) == 10, "the limit"
    assert expected_points(bar.numpy(), 5, 100) == math.ceil(66 / 5)


def test_targets_fall_from_the_skeleton_to_the_border() -> None:
    weights = point_weights(disc().numpy())
    ring = [weights[15, 15 + step] for step in range(10)]
    assert weights.sum() == pytest.approx(1)
    assert ring[0] == max(ring)
    assert ring[9] < 0.05 * ring[0]


@pytest.mark.parametrize("pixels", [1, 2])
def test_the_smallest_masks_are_numbers(pixels: int) -> None:
    """A mask that is its own skeleton has a bandwidth of zero."""
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 4, 7 : 7 + pixels] = True
    found = target_probabilities(mask)
    assert_close(found[4, 7 : 7 + pixels], torch.full((pixels,), 1 / pixels))
    assert float(found.sum()) == pytest.approx(1)
    assert (target_probabilities(torch.zeros(2, 32, 32, dtype=torch.bool)) == 0).all()


def test_masks_on_the_grid_are_of_classes() -> None:
    masks = torch.zeros(3, 64, 96, dtype=torch.bool)
    masks[0, :32], masks[1, 32:, :48], masks[2, 32:, 48:] = True, True, True
    found = masks_on_grid(MaskTarget(masks, torch.tensor([7, 2, 7])), 4)
    assert found.shape == (2, 4, 4)
    assert torch.equal(found[0], torch.tensor([[0, 0, 0, 0]] * 2 + [[1, 1, 0, 0]] * 2).bool())
    assert torch.equal(found[1], ~found[0])
    assert masks_on_grid(MaskTarget(masks[:0], torch.tensor([]).long()), 4).shape == (0, 4, 4)


# --- the prompter (Sec. 3.2) ------------------------------------------------------------------------------------------


def prompter(**options: Any) -> SparsePrompter:
    torch.manual_seed(0)
    return SparsePrompter(8, heads=2, side=6, **options)


def test_parts_change_nothing() -> None:
    costs = torch.randn(2, 5, 4, 4)
    whole, parts = prompter(), prompter(at_once=2)
    for name in ("points", "classes"):
        assert_close(getattr(parts(costs), name), getattr(whole(costs), name), atol=1e-5, rtol=0)


def test_the_order_of_classes_does_not_matter() -> None:
    costs, order = torch.randn(1, 5, 4, 4), torch.tensor([3, 0, 4, 2, 1])
    one, other = prompter()(costs), prompter()(costs[:, order])
    assert_close(other.points, one.points, atol=1e-5, rtol=0)
    assert_close(other.classes, one.classes[:, order], atol=1e-5, rtol=0)


def test_no_gradient_reaches_the_costs() -> None:
    costs = torch.randn(1, 3, 4, 4, requires_grad=True)
    found = prompter()(costs)
    assert found.points.requires_grad
    (found.points.sum() + found.classes.sum()).backward()
    assert costs.grad is None


def test_text_masks_are_a_partition() -> None:
    prompts = Prompts(torch.zeros(2, 6, 6), torch.randn(2, 5, 4, 4))
    assert (prompts.text_masks.sum(1) == 1).all()
    assert torch.equal(prompts.text_masks.int().argmax(1), prompts.classes.argmax(1))


def test_points_are_drawn_with_their_probability() -> None:
    probabilities = torch.zeros(4, 4)
    probabilities[1, 2], probabilities[3, 0], probabilities[0, 0] = 1.0, 0.25, 0.0
    counts: dict[tuple[float, ...], int] = {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(800):
        for point in sampled_points(probabilities, torch.rand(16, generator=generator)).tolist():
            counts[tuple(point)] = counts.get(tuple(point), 0) + 1
    assert counts.pop((2.5 / 4, 1.5 / 4)) == 800
    assert counts.pop((0.5 / 4, 3.5 / 4)) == pytest.approx(200, abs=50)
    assert not counts


def test_the_likeliest_points() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.3]])
    numbers = torch.full((4,), 0.5)
    assert sampled_points(probabilities, numbers, "top").tolist() == [[0.25, 0.25], [0.25, 0.75]]
    for how in ("top", "chance"):
        assert sampled_points(torch.tensor([[0.0, 0.0], [0.0, 1e-9]]), numbers, how).tolist() == [[0.75, 0.75]]  # type: ignore[arg-type]


def test_the_prompters_losses_by_hand() -> None:
    torch.manual_seed(1)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :16], masks[1, 16:, :16] = True, True
    target = MaskTarget(masks, torch.tensor([2, 0]))
    prompts = Prompts(torch.randn(1, 4, 4), torch.randn(1, 3, 2, 2))
    found = prompter_losses(prompts, [target], density=5, limit=10, mse=0.5)
    wanted = target_probabilities(masks_on_grid(target, 4))
    difference = (prompts.points[0].sigmoid() - wanted).square().mean()
    assert_close(found["prompter_points"], 0.5 * difference)
    labels = cell_labels(target, 2).tolist()
    assert labels == [[2, 2], [0, -100]]
    entropy = -sum(
        float(prompts.classes[0, :, row, column].log_softmax(0)[labels[row][column]])
        for row, column in ((0, 0), (0, 1), (1, 0))
    )
    assert float(found["prompter_classes"]) == pytest.approx(entropy / 4, abs=1e-6)


# --- masks put together (Eq. 6-7) -------------------------------------------------------------------------------------


def boxes(*ranges: tuple[int, int]) -> Tensor:
    """Masks of 4 × 8 cells, each some columns."""
    masks = torch.zeros(len(ranges), 4, 8, dtype=torch.bool)
    for number, (first, last) in enumerate(ranges):
        masks[number, :, first:last] = True
    return masks


def test_masks_of_a_class_become_one() -> None:
    masks, text = boxes((0, 2), (2, 4), (4, 8), (3, 5)), boxes((0, 4), (4, 8))
    scores = matching_scores(masks, text)
    assert_close(scores, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), atol=1e-6, rtol=0)
    found = aggregate(masks, members(scores, 0.5))
    assert torch.equal(found, boxes((0, 4), (4, 8), (3, 5))), "at the threshold a mask joins none, and stays"
    assert torch.equal(aggregate(masks, members(scores, 0.4)), boxes((0, 5), (3, 8))), "below it may join two"


def test_nothing_to_put_together() -> None:
    text = boxes((0, 4), (4, 8))
    none = members(matching_scores(boxes(), text), 0.5)
    assert none.shape == (0, 0)
    assert aggregate(boxes(), none).shape == (0, 4, 8)
    masks = boxes((3, 3), (0, 8))  # an empty one, and one that is half of each
    assert torch.equal(aggregate(masks, members(matching_scores(masks, text), 0.5)), masks)
    everything = boxes((0, 1), (1, 3), (2, 4))
    assert torch.equal(aggregate(everything, members(matching_scores(everything, text), 0.5)), boxes((0, 4)))


# --- masks injected (Eq. 8-12) ----------------------------------------------------------------------------------------


def test_intra_mask_context_by_hand() -> None:
    torch.manual_seed(0)
    features, masks = torch.randn(3, 4, 8), boxes((0, 5), (4, 8), (2, 2))
    means = mask_embeddings(features, masks)
    found = intra_mask(features, masks, means)
    for row in range(4):
        for column in range(8):
            expected = features[:, row, column].clone()
            for mask in masks[:2]:
                if mask[row, column]:
                    expected += features[:, mask].mean(1)
            assert_close(found[:, row, column], expected)
    assert (means[2] == 0).all()


def test_costs_of_a_mask_move_to_their_mean() -> None:
    costs, masks = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)), boxes((0, 5), (4, 8), (2, 2))
    found = intra_costs(costs, masks)
    first, second = (costs[:, mask].mean(1) for mask in masks[:2])
    assert_close(found[:, :, :4], (costs[:, :, :4] + first[:, None, None]) / 2)
    assert_close(found[:, :, 4], (costs[:, :, 4] + first[:, None] + second[:, None]) / 3)
    assert torch.equal(intra_costs(costs, masks[:0]), costs)


def test_inter_mask_context() -> None:
    """A single mask: every cell's attention ends at its one value."""
    torch.manual_seed(0)
    inject, features, masks = LowFrequencyInjection(8, 2), torch.randn(8, 4, 8), boxes((1, 6))
    value = inject.attention.in_proj_weight[16:] @ mask_embeddings(features, masks)[0] + inject.attention.in_proj_bias[16:]
    inter = inject.attention.out_proj(value)
    intra = intra_mask(features, masks, mask_embeddings(features, masks))
    assert_close(inject(features, masks), intra + inter[:, None, None])
    without = inject(features, masks[:0])
    assert torch.equal(without, features)
    without.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in inject.parameters())


def test_the_order_of_masks_does_not_matter() -> None:
    torch.manual_seed(0)
    features, masks = torch.randn(8, 4, 8), boxes((0, 5), (4, 8), (2, 7))
    for inject in (LowFrequencyInjection(8, 2), HighFrequencyInjection(8)):
        assert_close(inject(features, masks[[2, 0, 1]]), inject(features, masks), atol=1e-5, rtol=0)


def test_border_of_a_mask() -> None:
    mask = torch.zeros(1, 6, 7)
    mask[0, 2:, 1:5] = 1
    border = mask - eroded(mask)
    assert border[0].int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
    ]


def test_high_frequencies_of_masks() -> None:
    torch.manual_seed(0)
    inject, features = HighFrequencyInjection(8), torch.randn(8, 4, 8)
    assert (inject.embedded(features, boxes()) == 0).all()
    one = inject.embedded(features, boxes((0, 3)))
    assert (one[:, :, 3:] == 0).all()
    assert (one[:, :, :2] == one[:, :1, :1]).all(), "the same inside"
    assert (one[:, :, 2] != one[:, :, 1]).any(), "another at the border"
    both = inject.embedded(features, boxes((0, 3), (2, 6)))
    assert_close(both, one + inject.embedded(features, boxes((2, 6))), atol=1e-5, rtol=0)
    with torch.no_grad():
        inject.gamma.zero_()
    assert torch.equal(inject(features, boxes((0, 3))), features)
    assert HighFrequencyInjection(8).gamma.tolist() == [1.0] * 8


# --- the whole --------------------------------------------------------------------------------------------------------


def test_sizes_are_the_papers() -> None:
    """28 million numbers trained of 798 million with ViT-B/16 and SAM-H; 25 of 154 without SAM (Table 10)."""
    counts, without = (MODELS[name].num_parameters() for name in ("sam_mi-vit-b16", "catseg-vit-b16"))
    assert [round(counts[name] / 1e6) for name in ("trainable", "total")] == [28, 798]
    assert [round(without[name] / 1e6) for name in ("trainable", "total")] == [25, 154]


def test_it_asks_sam_at_few_points() -> None:
    images, text = some_images((60, 80)), some_text()
    sparse, dense = Trace(), Trace()
    tiny_sam_mi()(images, text, trace=sparse)
    tiny_sam_mi(point_sampling="grid")(images, text, trace=dense)
    expected = float(sparse["probabilities"].sum())
    assert 0 < len(sparse["sam_masks"]) <= 3 * expected < 0.5 * 32 * 32
    assert len(dense["sam_masks"]) > len(sparse["sam_masks"])
    assert len(sparse["masks"]) <= len(sparse["sam_masks"]) + len(text)


@pytest.mark.parametrize("sampling", ["chance", "top", "grid", "random"])
def test_the_same_points_each_time(sampling: str) -> None:
    images, text = some_images((60, 80)), some_text()
    segmenter = tiny_sam_mi(point_sampling=sampling)
    first = segmenter(images, text).probabilities
    torch.manual_seed(99)
    assert torch.equal(segmenter(images, text).probabilities, first)


def test_each_half_of_the_injection_counts() -> None:
    images, text = some_images((60, 80)), some_text()
    found = [
        tiny_sam_mi(inject=inject)(images, text).probabilities
        for inject in ((), ("low",), ("high",), ("costs",), ("low", "high"))
    ]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert (one - other).abs().max() > 1e-4
    without = tiny_sam_mi(inject=())
    without.view_decoder = partial(CorrelationSegmenter.view_decoder, without)  # type: ignore[method-assign]  # asks no SAM
    assert torch.equal(without(images, text).probabilities, found[0])


@pytest.mark.parametrize("options", [{"cost_embedding": "mlp"}, {"guide_values": True}])
def test_other_readings_are_other_networks(options: dict[str, Any]) -> None:
    images, text = some_images((60, 80)), some_text()
    usual, other = tiny_sam_mi(), tiny_sam_mi(**options)
    assert {name: values.shape for name, values in other.state_dict().items()} != {
        name: values.shape for name, values in usual.state_dict().items()
    }
    assert (other(images, text).probabilities - usual(images, text).probabilities).abs().max() > 1e-4


def test_a_control_without_injection_asks_no_sam_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, (images, targets) = tiny_sam_mi(inject=()).train(), halves()
    monkeypatch.setattr(segmenter, "_masks", None)
    losses = segmenter.loss(images, some_text(), targets)
    assert set(losses) == {"pixels", "prompter_classes", "prompter_points"}


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_some_images_are_learned_without_masks(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fraction is that of the images, each by its own random number."""
    segmenter, (images, targets), text, counts = tiny_sam_mi().train(), halves(), some_text(), []
    aggregated = segmenter.aggregated

    def recorded(volume: CostVolume, masks: list[Tensor], **options: Any) -> Tensor:
        counts.extend(len(each) for each in masks)
        return aggregated(volume, masks, **options)

    monkeypatch.setattr(segmenter, "aggregated", recorded)
    for seed in range(8):
        torch.manual_seed(seed)
        segmenter.loss(images, text, targets, SamMiLossOptions(without_masks=fraction))
    assert all(counts) if fraction == 0 else 0 < counts.count(0) < len(counts) if fraction < 1 else not any(counts)


# --- panoptic and instance results ------------------------------------------------------------------------------------


def test_masks_are_named_by_the_mean_of_their_pixels() -> None:
    geometry = Geometry.unresized((4, 8))
    cells = torch.rand(3, 4, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    cells[:, 3:] = 0.0  # outside the image
    masks = boxes((0, 3), (2, 5), (8, 8))
    found = classified_masks(torch.where(masks, 4.0, -4.0), torch.tensor([0.9, 0.5, 0.7]), cells, geometry)
    for number, quality in ((0, 0.9), (1, 0.5)):
        assert_close(found.classes[0, number].exp(), quality * cells[:, masks[number]].mean(1))
    assert (found.classes[0, 2].exp() < 1e-5).all(), "an empty mask"
    rest, labels = found.masks[0, 3:] > 0, cells.argmax(0)
    assert rest.any(0)[:3].tolist() == (~masks.any(0))[:3].tolist()
    assert not rest[:, 3:].any()
    assert rest.sum(0).max() == 1
    assert all(len(labels[mask].unique()) == 1 for mask in rest)


def test_of_overlapping_masks_the_better_one_wins() -> None:
    cells = torch.full((1, 4, 8), 0.5)
    found = classified_masks(
        torch.where(boxes((0, 6), (3, 8)), 9.0, -9.0), torch.tensor([0.6, 0.9]), cells, Geometry.unresized((4, 8))
    )
    names = replace(some_text(1), things=torch.tensor([True]))
    regions = panoptic(found, names, Policy(overlap=0.0))[0][1]
    assert sorted(int(region.mask.sum()) for region in regions) == [12, 20]
    assert [int(region.mask.sum()) for region in instances(found, names)[0]] == [20, 24]


def test_a_crop_has_the_masks_of_its_part() -> None:
    """The masks in a box are those of the whole at the same places: the lower right quarter at twice the resolution."""
    segmenter, image = tiny_sam_mi(), some_images((60, 80)).image(0)
    found = generate_masks(segmenter.sam, image, segmenter.config.generator, grid_points(4))
    whole, quarter = in_box(found, WHOLE, 32), in_box(found, (0.5, 0.5, 1.0, 1.0), 16)
    assert len(whole) == len(quarter) > 0
    assert 0 < whole.float().mean() < 1
    assert torch.equal(quarter, whole[:, 16:, 16:])
    pixels = found.binary().float()
    centres = torch.nn.functional.grid_sample(pixels[None], _centres(32), mode="nearest", align_corners=False)[0] > 0
    assert (centres == whole).float().mean() > 0.97, "where SAM has them in the picture"


def _centres(side: int) -> Tensor:
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij")[::-1], -1)[None]


def test_a_picture_without_masks() -> None:
    images, text = some_images((60, 80)), some_text()
    strict = replace(tiny_sam_mi().config.generator, pred_iou_threshold=1e9)
    trace = Trace()
    assert tiny_sam_mi(generator=strict)(images, text, trace=trace).probabilities.isfinite().all()
    assert len(trace["sam_masks"]) == len(trace["masks"]) == 0


def halves() -> tuple[ImageBatch, list[MaskTarget]]:
    half = torch.zeros(2, 64, 64, dtype=torch.bool)
    half[0, :, :32], half[1, :, 32:] = True, True
    pixels = torch.where(half[0], 0.9, 0.1).expand(2, 3, 64, 64).contiguous()
    return ImageBatch(pixels, ((64, 64),) * 2), [MaskTarget(half, torch.tensor([0, 2])) for _ in range(2)]


def test_two_stages() -> None:
    """First the prompter alone, with its own loss; then all but SAM, which never learns."""
    segmenter, text, (images, targets) = tiny_sam_mi().train(), some_text(), halves()
    optimiser_of(segmenter, Stage(1, parts=("prompter",)))
    first = segmenter.loss(images, text, targets)
    assert set(first) == {"prompter_classes", "prompter_points"}
    sum(first.values()).backward()  # type: ignore[union-attr]
    moved = {name.split(".")[0] for name, values in segmenter.named_parameters() if values.grad is not None}
    assert moved == {"prompter"}

    segmenter.zero_grad()
    optimiser_of(segmenter, Stage(1))
    second = segmenter.loss(images, text, targets, SamMiLossOptions(prompter=0.25))
    assert set(second) == {"pixels", "prompter_classes", "prompter_points"}
    for name, value in first.items():
        assert_close(second[name], 0.25 * value)
    (second["prompter_classes"] + second["prompter_points"]).backward(retain_graph=True)
    moved = {name.split(".")[0] for name, values in segmenter.named_parameters() if values.grad is not None}
    assert moved == {"prompter"}, "its loss reaches nothing else"
    second["pixels"].backward()
    moved = {
        name.split(".")[0]
        for name, values in segmenter.named_parameters()
        if values.grad is not None and values.grad.abs().max() > 0
    }
    assert moved == {"clip", "upsample", "aggregation", "prompter", "low_injection", "high_injection"}
    assert not segmenter.sam.training


def test_an_image_draws_its_points_by_itself() -> None:
    """However a batch is shared out, the losses of its images are the same."""
    segmenter, text = tiny_sam_mi().train(), some_text()
    images, targets = some_images((64, 64), (64, 64)), halves()[1]
    whole = segmenter.loss(images, text, targets, draw=points_of((8, 9), 3, torch.device("cpu")))
    parts = [
        segmenter.loss(
            ImageBatch.of([images.image(number)]), text, [target], draw=points_of((8 + number,), 3, torch.device("cpu"))
        )
        for number, target in enumerate(targets)
    ]
    for name, value in whole.items():
        assert_close(value, torch.stack([part[name] for part in parts]).mean(), atol=1e-5, rtol=1e-5)


def test_the_prompter_learns_where_to_ask() -> None:
    """After a few steps it asks near the middle of both halves, and knows which is which."""
    segmenter, text, (images, targets) = tiny_sam_mi().train(), some_text(), halves()
    optimiser = optimiser_of(segmenter, Stage(150, lr=2e-2, parts=("prompter",), weight_decay=0.0))
    for _ in range(150):
        optimiser.zero_grad()
        sum(segmenter.loss(images, text, targets).values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    with torch.no_grad():
        prompts = segmenter.eval().prompter(segmenter.encode(images.pixels[:1], text).cost)
    wanted = target_probabilities(masks_on_grid(targets[0]))
    assert float(prompts.probabilities.sum()) == pytest.approx(float(wanted.sum()), rel=0.3)
    columns = prompts.text_masks[0].float().mean(1)
    assert (columns[0, : columns.shape[1] // 2] > 0.9).all()
    assert (columns[2, columns.shape[1] // 2 :] > 0.9).all()


def test_the_papers_settings() -> None:
    settings = recipe_named("sam_mi-vit-b16").to_dict()
    assert (settings["data"], settings["batch_size"]) == ("coco-stuff-train", 4)
    assert settings["stages.0.steps"] + settings["stages.1.steps"] == 80_000
    assert (settings["stages.1.lr"], settings["stages.1.lr_multipliers.clip"]) == (2e-4, 0.01)
    loss = {name: settings[f"loss.{name}"] for name in ("prompter", "mse", "density", "limit")}
    assert loss == {"prompter": 0.1, "mse": 0.5, "density": 5.0, "limit": 10}
    segmenter = tiny_sam_mi()
    assert (segmenter.config.matching_threshold, segmenter.prompter.side) == (0.5, 32)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(UsageError, match="behaviour must be 'paper', not 'official'"):
        tiny_sam_mi(behaviour="official")
    with pytest.raises(UsageError, match="must be 'costs', 'low' or 'high', not 'lo'"):
        tiny_sam_mi(inject=("lo",))


def test_there_are_no_published_weights() -> None:
    with pytest.raises(WeightsError, match="lexiseg train sam_mi-vit-b16"):
        lexiseg.load("sam_mi-vit-b16")
