"""Aggregation of a cost volume: each stage beside a slow rendition, and what it may not depend on."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from lexiseg.errors import UsageError
from lexiseg.layers.cost_aggregation import (
    ClassAggregation,
    CostAggregation,
    Ranking,
    SpatialAggregation,
    SwinBlock,
    correlation,
    linear_attention,
    nearest_classes,
    shifted_window_mask,
    window_partition,
    window_reverse,
)
from lexiseg.structures import OUTSIDE

JOINT, CLASSES, SIZE, GUIDES = 12, 5, (8, 4), (6, 3)


def aggregation(**options: object) -> CostAggregation:
    torch.manual_seed(0)
    sizes = {
        "width": 16,
        "appearance": 8,
        "text": 6,
        "decoder": (16, 16),
        "decoder_guides": (4, 2),
        "window": 4,
        "length": 0,
    }
    model = CostAggregation(JOINT, GUIDES, **{**sizes, **options})  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "filling" in name:
                parameter.normal_()
    return model.eval()


def inputs(images: int = 2) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Volume, text, appearance, guides."""
    generator = torch.Generator().manual_seed(1)
    appearance = torch.randn(images, JOINT, *SIZE, generator=generator)
    text = torch.randn(CLASSES, JOINT, generator=generator)
    guides = [
        torch.randn(images, channels, factor * SIZE[0], factor * SIZE[1], generator=generator)
        for channels, factor in zip(GUIDES, (2, 4), strict=True)
    ]
    return correlation(appearance, text), text, appearance, (guides[0], guides[1])


def test_correlation_is_the_cosine() -> None:
    image, text = torch.randn(2, JOINT, 3, 4), 7 * torch.randn(CLASSES, JOINT)
    found = correlation(image, text)
    for b, k, y, x in product(range(2), range(CLASSES), range(3), range(4)):
        assert_close(found[b, k, y, x], functional.cosine_similarity(image[b, :, y, x], text[k], dim=0))


def test_windows_and_back() -> None:
    cells = torch.randn(3, 8, 12, 5)
    tiles = window_partition(cells, 4)
    assert tiles.shape == (3 * 2 * 3, 16, 5)
    assert torch.equal(tiles[4].view(4, 4, 5), cells[0, 4:8, 4:8])
    assert torch.equal(window_reverse(tiles, 4, (8, 12)), cells)


@pytest.mark.parametrize(("size", "side", "shift"), [((8, 8), 4, 2), ((12, 8), 4, 1), ((6, 9), 3, 1)])
def test_cells_of_a_rolled_window_see_only_their_old_neighbours(size: tuple[int, int], side: int, shift: int) -> None:
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij"), -1)
    tiles = window_partition(places.roll((-shift, -shift), (0, 1))[None], side)  # where each cell of a window came from
    apart = (tiles[:, :, None] - tiles[:, None]).abs().amax(-1)
    assert torch.equal(shifted_window_mask(size, side, shift), apart < side)


def test_linear_attention_is_attention_with_its_kernel() -> None:
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    weights = (functional.elu(query) + 1) @ (functional.elu(key) + 1).mT
    assert_close(linear_attention(query, key, value), weights / weights.sum(-1, keepdim=True) @ value, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_windows_do_not_see_each_other_unless_they_are_shifted() -> None:
    torch.manual_seed(0)
    cells, guide = torch.randn(1, 8, 8, 16), torch.randn(1, 8, 8, 8)
    changed = cells.clone()
    changed[:, 2, 2] = torch.randn(16)
    for shift, reached in ((0, (slice(0, 4), slice(0, 4))), (2, (slice(2, 6), slice(2, 6)))):
        block = SwinBlock(16, 8, 4, 4, shift)
        difference = (block(changed, guide) - block(cells, guide)).abs().amax(-1)[0] > 0
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[reached] = True
        assert torch.equal(difference, expected)


@torch.no_grad()
def test_over_space_each_class_is_alone_and_over_classes_each_cell() -> None:
    torch.manual_seed(0)
    volume, guide, text = torch.randn(1, 3, 8, 8, 16), torch.randn(1, 8, 8, 8), torch.randn(1, 3, 6)
    spatial = SpatialAggregation(16, 8, 4, 4)
    assert_close(spatial(volume, guide)[:, 1:2], spatial(volume[:, 1:2], guide), atol=1e-6, rtol=1e-5)
    classes = ClassAggregation(16, 6, 4, length=0, attention="linear")
    part = classes(volume[:, :, 2:3, 5:6], text)
    assert_close(classes(volume, text)[:, :, 2:3, 5:6], part, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["linear", "full"])
@pytest.mark.parametrize("pooling", [1, 2])
@pytest.mark.parametrize("max_classes", [0, 3, 9])
@torch.no_grad()
def test_some_classes_at_once_are_all_at_once(attention: str, pooling: int, max_classes: int) -> None:
    model, given = aggregation(attention=attention, length=max_classes), inputs()
    kept = nearest_classes(given[0], max_classes)
    whole = model(*given, kept=kept, pooling=pooling)
    assert whole.shape == (2, CLASSES, 4 * SIZE[0], 4 * SIZE[1])
    for count in (1, 2, 4):
        model.classes_at_once = count
        assert_close(model(*given, kept=kept, pooling=pooling), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ranking", ["cost", "probability"])
@pytest.mark.parametrize("max_classes", [0, 3, 9])
@torch.no_grad()
def test_the_order_of_classes_does_not_matter(max_classes: int, ranking: Ranking) -> None:
    model, (volume, text, appearance, guides) = aggregation(length=max_classes), inputs()
    order = torch.tensor([3, 0, 4, 1, 2])

    def logits(volume: Tensor, text: Tensor) -> Tensor:
        kept = nearest_classes(volume, max_classes, ranking, logit_scale=20)
        return model(volume, text, appearance, guides, kept=kept)

    assert_close(logits(volume[:, order], text[order]), logits(volume, text)[:, order], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_of_too_many_classes_the_nearest_are_kept_image_by_image() -> None:
    model, (volume, text, appearance, guides) = aggregation(), inputs(3)
    logits = model(volume, text, appearance, guides, kept=nearest_classes(volume, 2))
    kept = logits.amax((-2, -1)) > OUTSIDE
    for b in range(3):
        nearest = volume[b].flatten(1).amax(1).argsort(descending=True)[:2]
        assert kept[b].nonzero().flatten().tolist() == sorted(nearest.tolist())
        own = model(volume[b : b + 1, nearest], text[nearest], appearance[b : b + 1], tuple(g[b : b + 1] for g in guides))
        assert_close(logits[b, nearest], own[0], atol=1e-5, rtol=1e-5)
    assert (logits[~kept] == OUTSIDE).all()


@pytest.mark.parametrize("size", [(6, 5), (1, 7), (1, 1)])
def test_the_classes_most_probable_in_a_patch(size: tuple[int, int]) -> None:
    costs, scale = torch.rand(2, 9, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 7.0
    kept = nearest_classes(costs, 4, "probability", logit_scale=scale)
    assert kept is not None
    side = min(2, *size)
    for b in range(2):
        best = np.zeros(9)
        for top in range(size[0] - side + 1):
            for left in range(size[1] - side + 1):
                mean = costs[b, :, top : top + side, left : left + side].mean((-2, -1)).numpy()
                best = np.maximum(best, np.exp(scale * mean) / np.exp(scale * mean).sum())
        assert kept[b].tolist() == sorted(np.argsort(-best)[:4].tolist())


def test_a_name_that_is_near_everywhere_does_not_displace_the_one_that_is_there() -> None:
    costs = torch.full((1, 3, 8, 8), 0.1)
    costs[0, 0], costs[0, 1, 2:4, 2:4] = 0.2, 0.19  # the second is in the picture, where the third is as near as the first
    costs[0, 2, 5, 5] = 0.3  # one noisy cell
    costs[0, 0, 2:4, 2:4] = 0.1
    assert nearest_classes(costs, 2) is not None
    assert nearest_classes(costs, 2).tolist() == [[0, 2]]  # type: ignore[union-attr]
    assert nearest_classes(costs, 2, "probability", logit_scale=50).tolist() == [[0, 1]]  # type: ignore[union-attr]


@torch.no_grad()
def test_filling_up_counts() -> None:
    given = inputs()
    plain, filled = aggregation(length=0), aggregation(length=9)
    filled.load_state_dict(plain.state_dict(), strict=False)
    assert (plain(*given) - filled(*given)).abs().max() > 1e-4
    assert_close(aggregation(length=CLASSES)(*given), plain(*given))


def test_everything_learns() -> None:
    model = aggregation(length=7).train()
    model(*inputs(), pooling=2).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_grid_that_windows_do_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="6 × 5 cells"):
        SwinBlock(16, 8, 4, 4, 0)(torch.zeros(1, 6, 5, 16), torch.zeros(1, 6, 5, 8))
