"""Measures of masks against loops over pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from lexiseg.ops.masks import (
    box_nms,
    boxes_of_masks,
    grid_areas,
    grid_boxes,
    near_crop_edge,
    remove_small_regions,
    stability_score,
)
from lexiseg.structures import Geometry


def random_logits(seed: int, *shape: int, cells: int = 5) -> Tensor:
    """Smooth fields with regions of either sign."""
    coarse = torch.randn(shape[0], 1, cells, cells, generator=torch.Generator().manual_seed(seed))
    return 4 * functional.interpolate(coarse, shape[1:], mode="bicubic", align_corners=False)[:, 0]


def slow_box(mask: Tensor) -> list[int]:
    inside = [(row, column) for row in range(mask.shape[0]) for column in range(mask.shape[1]) if mask[row, column]]
    if not inside:
        return [0, 0, 0, 0]
    rows, columns = [row for row, _ in inside], [column for _, column in inside]
    return [min(columns), min(rows), max(columns), max(rows)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.05, 0.3, 0.9]))
def test_boxes_and_stability_equal_loops(seed: int, high: int, wide: int, share: float) -> None:
    values = torch.rand(4, high, wide, generator=torch.Generator().manual_seed(seed)) - 1 + share
    values[0] = -1
    assert boxes_of_masks(values > 0).tolist() == [slow_box(mask > 0) for mask in values]
    scores = stability_score(values, threshold=0.1, offset=0.2)
    for score, mask in zip(scores, values, strict=True):
        inner, outer = int((mask > 0.1 + 0.2).sum()), int((mask > 0.1 - 0.2).sum())
        assert score.isnan() if outer == 0 else float(score) == pytest.approx(inner / outer)


def test_no_masks_have_no_boxes() -> None:
    assert boxes_of_masks(torch.zeros(0, 3, 4, dtype=torch.bool)).shape == (0, 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.101, 0.503, 0.701]))
def test_nms_equals_the_greedy_loop(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 12, (10, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(1, 9, (10, 2), generator=generator)], dim=1)
    scores = torch.randint(0, 6, (10,), generator=generator) / 5  # with ties

    def overlap(a: list[int], b: list[int]) -> float:
        wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(0, wide) * max(0, high)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    rows: list[list[int]] = boxes.tolist()
    kept: list[int] = []
    for index in sorted(range(10), key=lambda index: (-float(scores[index]), index)):
        if all(overlap(rows[index], rows[other]) <= threshold for other in kept):
            kept.append(index)
    assert box_nms(boxes, scores, threshold).tolist() == kept


def test_boxes_at_a_crop_edge_inside_the_image() -> None:
    boxes = torch.tensor([[0, 30, 50, 60], [30, 30, 60, 60], [60, 30, 99, 60], [30, 0, 60, 60], [21, 21, 70, 70]])
    crop = (100, 0, 200, 100)  # its top edge is the image's
    assert near_crop_edge(boxes, crop, (300, 400)).tolist() == [True, False, True, False, False]
    whole = (0, 0, 100, 100)
    assert not near_crop_edge(boxes, whole, (100, 100)).any()


def test_small_regions() -> None:
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[1:8, 1:8] = True
    mask[3, 3] = mask[4, 4] = False  # one hole: 8-connected
    mask[10, 10] = True
    filled, changed = remove_small_regions(mask, 3, "holes")
    assert changed
    assert bool(torch.stack([filled[3, 3], filled[4, 4], filled[10, 10]]).all())
    dropped, changed = remove_small_regions(filled, 3, "islands")
    assert changed
    assert int(dropped.sum()) == 49
    assert remove_small_regions(dropped, 3, "islands")[1] is False
    assert remove_small_regions(mask, 2, "holes")[1] is False
    largest, _ = remove_small_regions(mask, 1000, "islands")
    assert int(largest.sum()) == 47  # all are small: the largest stays


@pytest.mark.parametrize("size", [(100, 200), (200, 120), (90, 90), (1, 150), (150, 1)])
def test_grid_measures_estimate_the_pixels(size: tuple[int, int]) -> None:
    scale = 128 / max(size)
    resized = (max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5)))
    geometry = Geometry((128, 128), resized, size)
    logits = random_logits(7, 40, 32, 32)
    pixels = geometry.upsample(logits) > 0
    areas, cell = pixels.sum(dim=(1, 2)), (max(size) / 32) ** 2
    error = (grid_areas(logits, geometry, [0])[0] - areas).abs()
    assert bool((error <= 0.02 * size[0] * size[1] + 0.5 * cell).all())
    boxes, exact = grid_boxes(logits, geometry), boxes_of_masks(pixels)
    assert float(((boxes - exact).abs().amax(dim=1) <= 2).float().mean()) >= 0.9


def test_grid_measures_of_extremes() -> None:
    geometry = Geometry((64, 64), (48, 64), (75, 100))
    logits = torch.full((3, 16, 16), -5.0)
    logits[1] = 5
    logits[2, 13:] = 5  # only in the padding
    assert grid_boxes(logits, geometry).tolist() == [[0, 0, 0, 0], [0, 0, 99, 74], [0, 0, 0, 0]]
    assert grid_areas(logits, geometry, [0, 6]).tolist() == [[0, 7500, 0], [0, 0, 0]]
    assert grid_areas(logits[:0], geometry, [0]).shape == (1, 0)
    assert grid_boxes(logits[:0], geometry).shape == (0, 4)
