"""Laws of the pixel decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lexiseg.errors import UsageError
from lexiseg.layers.pixel_decoder import PixelDecoder

CHANNELS, STRIDES = (4, 8, 12, 16), (4, 8, 16, 32)


def decoder() -> PixelDecoder:
    return PixelDecoder(CHANNELS, STRIDES, width=64, layers=1, heads=2, feedforward=16).eval()


def maps(batch: int, size: tuple[int, int]) -> list[Tensor]:
    return [
        torch.randn(batch, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (33, 70), (1, 1)])
def test_batch_of_two_is_two_of_one(size: tuple[int, int], device: torch.device) -> None:
    module, given = decoder().to(device), [level.to(device) for level in maps(2, size)]
    together = module(given)
    assert together.mask_features.shape == (2, 64, *given[0].shape[-2:])
    assert [level.shape[-2:] for level in together.levels] == [level.shape[-2:] for level in given[:0:-1]]
    for image in range(2):
        alone = module([level[image : image + 1] for level in given])
        pairs = zip((together.mask_features, *together.levels), (alone.mask_features, *alone.levels), strict=True)
        for both, one in pairs:
            torch.testing.assert_close(both[image], one[0], atol=1e-4, rtol=1e-4)


def test_half_precision_around_it_changes_nothing() -> None:
    module, given = decoder(), maps(1, (64, 64))
    plain = module(given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module(given)
    assert torch.equal(inside.mask_features, plain.mask_features)


def test_every_parameter_gets_a_gradient() -> None:
    module = decoder()
    features = module(maps(1, (64, 64)))
    (features.mask_features**3).sum().backward()
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    ("channels", "strides", "width", "message"),
    [
        ((8, 16), (8, 16), 64, "at least 3 levels"),
        (CHANNELS, STRIDES[::-1], 64, "fine to coarse"),
        (CHANNELS, STRIDES[:3], 64, "fine to coarse"),
        (CHANNELS, STRIDES, 80, "got 80"),
        (CHANNELS, STRIDES, 32, "got 32"),
    ],
)
def test_what_does_not_fit_is_refused(channels: tuple[int, ...], strides: tuple[int, ...], width: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PixelDecoder(channels, strides, width=width)
