"""Sine positions against their formula."""

from __future__ import annotations

from math import cos, pi, sin

import torch

from lexiseg.layers.position import sine_positions


def test_formula() -> None:
    height, width, channels = 3, 5, 8
    ours = sine_positions((height, width), channels, like=torch.zeros(1))
    half = channels // 2
    for row in range(height):
        for column in range(width):
            for place, length, offset in ((row, height, 0), (column, width, half)):
                for channel in range(half):
                    angle = 2 * pi * (place + 1) / length / 10_000 ** (2 * (channel // 2) / half)
                    expected = cos(angle) if channel % 2 else sin(angle)
                    assert abs(float(ours[0, offset + channel, row, column]) - expected) < 1e-5


def test_a_place_in_the_image_means_the_same_at_any_resolution() -> None:
    coarse, fine = (sine_positions((2 * scale, 3 * scale), 16, like=torch.zeros(1)) for scale in (1, 2))
    torch.testing.assert_close(fine[..., 1::2, 1::2], coarse, atol=1e-5, rtol=0)


def test_type_and_device_follow_the_tensor() -> None:
    assert sine_positions((1, 1), 4, like=torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
