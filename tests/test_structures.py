"""Geometry: upsampling in the official two steps, rows of it, and sampling against maps of positions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lexiseg.structures import OUTSIDE, Geometry

GEOMETRIES = pytest.mark.parametrize(
    "geometry",
    [
        Geometry((64, 64), (40, 64), (50, 80)),
        Geometry((16, 16), (16, 16), (50, 80)),
        Geometry((64, 96), (56, 90), (28, 45)),
        Geometry.unresized((20, 33), (32, 64)),
    ],
)


def positions(grid: int, geometry: Geometry) -> torch.Tensor:
    """Maps [2, m, m] of the row and the column of each cell's centre, in pixels of the original image."""
    steps = (torch.arange(grid) + 0.5) / grid
    sides = zip(geometry.padded_size, geometry.resized_size, geometry.size, strict=True)
    high, wide = (padded / resized * length for padded, resized, length in sides)
    return torch.stack([(steps * high)[:, None].expand(grid, grid), (steps * wide).expand(grid, grid)])


@GEOMETRIES
def test_upsampling_is_the_official_two_steps(geometry):
    maps = torch.randn(3, 9, 9)
    padded = functional.interpolate(maps[:, None], geometry.padded_size, mode="bilinear", align_corners=False)
    cropped = padded[..., : geometry.resized_size[0], : geometry.resized_size[1]]
    expected = functional.interpolate(cropped, geometry.size, mode="bilinear", align_corners=False)[:, 0]
    assert_close(geometry.upsample(maps), expected)
    assert geometry.upsample(maps[:0]).shape == (0, *geometry.size)


@GEOMETRIES
@pytest.mark.parametrize("grid", [(9, 9), (64, 96)])
def test_upsampled_rows_are_those_of_the_whole(geometry, grid):
    maps = torch.randn(3, *grid)
    whole = geometry.upsample(maps)
    for top, bottom in ((0, 1), (3, 11), (0, geometry.size[0]), (geometry.size[0] - 1, geometry.size[0])):
        assert_close(geometry.upsample_rows(maps, top, bottom), whole[:, top:bottom], rtol=0, atol=1e-5)
    assert geometry.upsample_rows(maps[:0], 0, 4).shape == (0, 4, geometry.size[1])


@GEOMETRIES
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 1.25, 1.5), (-0.5, -0.25, 0.5, 1.0)])
def test_samples_are_at_the_centres_of_the_cells(geometry, box):
    """Samples of a map of positions are the positions; cells beyond the image are outside."""
    grid, size = 32, (16, 24)
    samples = geometry.sample(positions(grid, geometry), size, box)
    for axis, values in enumerate((samples[0], samples[1].T)):
        start, stop = box[1 - axis], box[3 - axis]
        expected = (start + (torch.arange(size[axis]) + 0.5) / size[axis] * (stop - start)) * geometry.size[axis]
        inside = (expected > 0) & (expected < geometry.size[axis])
        half = float(positions(grid, geometry)[axis, 0, 0])  # maps are constant beyond the centres of their outer cells
        middle = inside & (expected > half) & (expected < geometry.size[axis] - half)
        assert middle.sum() >= 4
        column = values[:, size[1 - axis] // 2 if box[0] >= 0 else -1]
        assert_close(column[middle], expected[middle], atol=1e-3, rtol=0)
        assert (column[~inside] == OUTSIDE).all()
    assert geometry.sample(positions(grid, geometry)[:0], size, box).shape == (0, *size)


@GEOMETRIES
def test_the_padded_box_has_the_cells_of_the_grid_itself(geometry):
    maps = torch.randn(2, 32, 32)
    samples = geometry.sample(maps, (32, 32), geometry.padded_box)
    high, wide = geometry.cells((32, 32))
    assert_close(samples[:, : int(high), : int(wide)], maps[:, : int(high), : int(wide)], atol=1e-4, rtol=0)
    assert (samples[:, int(high + 0.51) :] == OUTSIDE).all()
    assert (samples[:, :, int(wide + 0.51) :] == OUTSIDE).all()


def test_one_step_covers_the_same_area_in_pixels_of_the_image():
    geometry = Geometry((32, 32), (24, 32), (60, 80))
    assert geometry.one_step() == Geometry((80, 80), (60, 80), (60, 80))
    assert geometry.cells((8, 8)) == geometry.one_step().cells((8, 8)) == (6, 8)
    assert Geometry.unresized((60, 80)) == Geometry((60, 80), (60, 80), (60, 80))
    assert Geometry.unresized((60, 80)).padded_box == (0.0, 0.0, 1.0, 1.0)
