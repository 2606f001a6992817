"""Deformable attention: a plain loop as reference, and the laws of module and encoder."""

from __future__ import annotations

from math import floor

import pytest
import torch
from torch import Tensor

from lexiseg.layers.deformable import DeformableAttention, DeformableEncoder, deformable_attention, reread_with_levels

SIZES = [(2, 3), (4, 5)]
CELLS = sum(high * wide for high, wide in SIZES)


def bilinear(grid: Tensor, x: float, y: float) -> Tensor:
    """Sample [high, wide, D] at a place in cells, where cell centres lie at whole numbers; zero outside."""
    high, wide, depth = grid.shape
    total = torch.zeros(depth, dtype=grid.dtype)
    for row in (floor(y), floor(y) + 1):
        for column in (floor(x), floor(x) + 1):
            if 0 <= row < high and 0 <= column < wide:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * grid[row, column]
    return total


def buffers(batch: int = 2, queries: int = 3, heads: int = 2, points: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    value = torch.randn(batch, CELLS, heads, 4, dtype=torch.float64)
    locations = torch.rand(batch, queries, heads, len(SIZES), points, 2, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, len(SIZES), points, dtype=torch.float64)
    return value, locations, weights


def test_against_a_loop() -> None:
    value, locations, weights = buffers()
    ours = deformable_attention(value, SIZES, locations, weights).view(2, 3, 2, 4)
    maps = value.split([high * wide for high, wide in SIZES], dim=1)
    for index in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        image, query, head = index
        expected = torch.zeros(4, dtype=torch.float64)
        for level, (high, wide) in enumerate(SIZES):
            grid = maps[level][image, :, head].view(high, wide, 4)
            for point in range(2):
                x, y = locations[image, query, head, level, point].tolist()
                share = weights[image, query, head, level, point]
                expected += share * bilinear(grid, x * wide - 0.5, y * high - 0.5)
        torch.testing.assert_close(ours[image, query, head], expected)


def test_gradients() -> None:
    inputs = [tensor.requires_grad_() for tensor in buffers(batch=1, queries=2)]
    assert torch.autograd.gradcheck(lambda *given: deformable_attention(given[0], SIZES, *given[1:]), inputs)


def test_rereading_takes_the_first_third_of_the_buffer() -> None:
    """The index law of the official operator: output (b, q, m) reads entry k = (b Q + q) M + m."""
    batch, queries, heads, levels, points = 2, 6, 4, 3, 2
    buffer = torch.randn(batch, queries, heads, levels, points)
    reread = reread_with_levels(buffer, 1)
    assert reread.shape == (batch, queries, heads, 1, points)
    for b, q, m in torch.cartesian_prod(torch.arange(batch), torch.arange(queries), torch.arange(heads)).tolist():
        k = (b * queries + q) * heads + m
        level, head, query = k % levels, k // levels % heads, k // (levels * heads)
        assert torch.equal(reread[b, q, m, 0], buffer[query // queries, query % queries, head, level])
    assert torch.equal(reread_with_levels(buffer, levels), buffer)


def test_without_a_mismatch_the_option_changes_nothing() -> None:
    ours = DeformableAttention(8, levels=2, heads=2)
    theirs = DeformableAttention(8, levels=2, heads=2, official_mismatch=True)
    theirs.load_state_dict(ours.state_dict())
    given = (torch.randn(1, 3, 8), torch.rand(1, 3, 2, 2), torch.randn(1, CELLS, 8), SIZES)
    assert torch.equal(ours(*given), theirs(*given))


def encoder(levels: int, *, official_mismatch: bool = False) -> DeformableEncoder:
    module = DeformableEncoder(32, levels=levels, layers=2, heads=2, feedforward=16, official_mismatch=official_mismatch)
    for layer in module.layers:  # the offsets and weights start at zero: let them depend on the query
        torch.nn.init.normal_(layer.attention.offsets.weight, std=0.3)
        torch.nn.init.normal_(layer.attention.weights.weight, std=0.3)
    return module


def maps(batch: int, *sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(batch, 32, *size) for size in sizes]


@pytest.mark.parametrize("sizes", [((2, 3), (4, 6)), ((1, 1), (1, 2)), ((1, 1), (1, 1))])
def test_batch_of_two_is_two_of_one(sizes: tuple[tuple[int, int], ...]) -> None:
    module, given = encoder(len(sizes)), maps(2, *sizes)
    together = module(given)
    for image in range(2):
        alone = module([level[image : image + 1] for level in given])
        for level, (both, one) in enumerate(zip(together, alone, strict=True)):
            assert one.shape == given[level][:1].shape
            torch.testing.assert_close(both[image], one[0], atol=1e-5, rtol=1e-5)


def test_only_the_official_mismatch_mixes_the_images_of_a_batch() -> None:
    first, second = maps(2, (4, 4))[0].unsqueeze(1)
    for levels, official, mixes in ((1, False, False), (3, True, True)):
        module = encoder(levels, official_mismatch=official)
        (together,), (alone,) = module([torch.cat([first, second])]), module([second])
        assert (not torch.allclose(together[1], alone[0], atol=1e-4)) == mixes


def test_another_number_of_levels_is_noticed() -> None:
    with pytest.raises(AssertionError, match="locations on 3 levels, maps of 1"):
        encoder(3)(maps(1, (2, 2)))


def test_padding_is_not_seen() -> None:
    module = DeformableAttention(8, levels=2, heads=2)
    query, reference, tokens = torch.randn(1, 3, 8), torch.rand(1, 3, 2, 2), torch.randn(1, CELLS, 8)
    padding = torch.zeros(1, CELLS, dtype=torch.bool)
    padding[:, ::2] = True
    changed = torch.where(padding[..., None], torch.randn_like(tokens), tokens)
    torch.testing.assert_close(
        module(query, reference, changed, SIZES, padding), module(query, reference, tokens, SIZES, padding)
    )
    assert not torch.allclose(module(query, reference, changed, SIZES), module(query, reference, tokens, SIZES))
    torch.testing.assert_close(
        module(query, reference, tokens, SIZES, torch.ones_like(padding)), module.output.bias.expand(1, 3, -1)
    )


@pytest.mark.parametrize(("levels", "official"), [(2, False), (3, True)])
def test_every_parameter_gets_a_gradient(levels: int, official: bool) -> None:
    module = encoder(levels, official_mismatch=official)
    outputs = module(maps(1, *SIZES) if not official else maps(1, (4, 4)))
    sum((output**3).sum() for output in outputs).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
