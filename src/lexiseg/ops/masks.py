"""Masks as tensors: the measures that mask generators filter by.

Boxes are (left, top, right, bottom) in pixels, all four inside the mask, as in SAM (Kirillov et al., 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from lexiseg.ops.memory import masks_at_once
from lexiseg.structures import Geometry, Size

# --- measures of pixels -----------------------------------------------------------------------------------------------


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Compute tight boxes of binary masks, [N, H, W] -> [N, 4] integers; an empty mask has the box 0, 0, 0, 0."""
    top, bottom = _first_and_last(masks.any(dim=2))
    left, right = _first_and_last(masks.any(dim=1))
    return torch.stack([left, top, right, bottom], dim=1)


def _first_and_last(hit: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the first and the last True of each row of [N, L], 0 and 0 for rows without."""
    bits = hit.to(torch.uint8)
    first, from_end = bits.argmax(dim=1), bits.flip(1).argmax(dim=1)
    return first, torch.where(hit.any(dim=1), hit.shape[1] - 1 - from_end, 0)


def areas_of_masks(masks: Tensor) -> Tensor:
    """Compute areas of binary masks in pixels, [..., H, W] -> [...] integers."""
    flat = masks.reshape(-1, *masks.shape[-2:])
    chunks = flat.split(masks_at_once((flat.shape[1], flat.shape[2])))  # torch sums a copy in 32 bits
    areas = [chunk.sum(dim=-1, dtype=torch.int32).sum(dim=-1) for chunk in chunks]  # two sums are ten times faster than one
    return torch.cat(areas).reshape(masks.shape[:-2])


def stability_score(logits: Tensor, *, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """Compute the IoU of the masks at ``threshold + offset`` and ``threshold - offset``, [..., H, W] -> [...].

    NaN if both are empty, as in the official code.
    """
    return areas_of_masks(logits > threshold + offset) / areas_of_masks(logits > threshold - offset)


def near_crop_edge(boxes: Tensor, crop: tuple[int, int, int, int], size: Size, *, tolerance: float = 20.0) -> Tensor:
    """Find boxes that touch an edge of their crop inside the image, whose masks are cut off.

    Args:
        boxes: [N, 4] in pixels of the crop.
        crop: box of the crop in the image.
        size: (height, width) of the image.
        tolerance: maximum distance from the edge in pixels.

    Returns:
        [N] bool.
    """
    high, wide = size
    in_image = boxes.double() + boxes.new_tensor([crop[0], crop[1], crop[0], crop[1]])
    near_crop = (in_image - in_image.new_tensor(crop)).abs() <= tolerance
    near_image = (in_image - in_image.new_tensor([0, 0, wide, high])).abs() <= tolerance
    return (near_crop & ~near_image).any(dim=1)


def box_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression; returns the indices of the boxes kept, best score first, equal scores in order.

    Args:
        boxes: [N, 4].
        scores: [N].
        threshold: IoU with a better box above which a box is removed.
    """
    from torchvision.ops import nms  # heavy: it imports torch's compiler

    kept: Tensor = nms(boxes.float(), scores.float(), threshold)
    return kept


def remove_small_regions(mask: Tensor, area: float, kind: Literal["holes", "islands"]) -> tuple[Tensor, bool]:
    """Fill holes or remove islands of less than ``area`` pixels (8-connected).

    Args:
        mask: [H, W] bool.
        area: minimum area in pixels.
        kind: regions to remove. If all islands are small, the largest is kept.

    Returns:
        The mask, and whether it changed.
    """
    holes = kind == "holes"
    pixels = mask.cpu().numpy()
    regions, count = ndimage.label(pixels ^ holes, structure=np.ones((3, 3)))
    areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    small = areas < area
    if not small.any():
        return mask, False
    inside = np.concatenate([[holes], small if holes else ~small])
    if not inside.any():
        inside[1 + int(areas.argmax())] = True
    return torch.from_numpy(inside[regions]).to(mask.device), True


# --- the same measures, estimated on the low-resolution grid ------------------------------------------------------------


def grid_areas(logits: Tensor, geometry: Geometry, thresholds: Sequence[float]) -> Tensor:
    """Estimate areas above each of T thresholds in pixels, without upsampling, [N, h, w] -> [T, N].

    Along each row of the grid bilinear interpolation is a polyline, whose fraction above a threshold is exact; each row
    counts with its height in pixels.
    """
    high, wide = geometry.cells((logits.shape[1], logits.shape[2]))
    rows, columns = ceil(high), ceil(wide)
    inside = logits[:, :rows, :columns]
    bands, ends, widths = inside.new_ones(rows), inside.new_zeros(columns), inside.new_ones(columns - 1)
    bands[-1] = high - (rows - 1)
    ends[0] += min(0.5, wide)  # the image extends beyond the centres of its outer cells
    ends[-1] += max(0.0, wide - (columns - 0.5))
    widths[-1:] = min(1.0, wide - (columns - 1.5))
    larger = torch.maximum(inside[..., 1:], inside[..., :-1])
    per_unit = (larger - torch.minimum(inside[..., 1:], inside[..., :-1])).clamp_(min=1e-12).reciprocal_()
    areas = []
    for threshold in thresholds:
        between = (larger - threshold).mul_(per_unit).clamp_(0, 1)
        outer = (inside[..., [0, -1]] > threshold).to(inside.dtype)
        areas.append((between @ widths + outer @ ends[[0, -1]] if columns > 1 else outer[..., 0] * ends[0]) @ bands)
    return torch.stack(areas) * (geometry.size[0] * geometry.size[1] / (high * wide))


def grid_boxes(logits: Tensor, geometry: Geometry) -> Tensor:
    """Estimate tight boxes of ``logits > 0`` in pixels, without upsampling, [N, h, w] -> [N, 4] integers.

    The outermost positive point of a bilinear surface lies on a line of samples, so the zero crossings beside the
    outermost positive samples give the box to about a pixel. An empty mask has the box 0, 0, 0, 0.
    """
    high, wide = geometry.cells((logits.shape[1], logits.shape[2]))
    rows, columns = ceil(high), ceil(wide)
    left, right = _crossings(logits[:, :rows, : columns + 1].transpose(1, 2), geometry.size[1] / wide, geometry.size[1])
    top, bottom = _crossings(logits[:, : rows + 1, :columns], geometry.size[0] / high, geometry.size[0])
    empty = (left > right) | (top > bottom)
    return torch.stack([left, top, right, bottom], dim=1).masked_fill(empty[:, None], 0)


def _crossings(lines: Tensor, pixels_per_line: float, pixels: int) -> tuple[Tensor, Tensor]:
    """Return the first and last positive pixel of [N, L, K] along L; first > last if there is none."""
    number, count, _ = lines.shape
    hit = lines.amax(dim=2) > 0
    first, last = _first_and_last(hit)
    index = torch.arange(number, device=lines.device)

    def overshoot(line: Tensor, neighbour: Tensor) -> Tensor:
        """Distance, in 0..1, from ``line`` to the zero crossing before its outer neighbour."""
        inner, outer = lines[index, line], lines[index, neighbour.clamp(0, count - 1)]
        reach = inner / (inner - outer).clamp_min(1e-12)
        return torch.where(inner > 0, reach, 0).amax(dim=1).clamp(max=1)

    begin = (first - overshoot(first, first - 1) + 0.5) * pixels_per_line - 0.5
    end = (last + overshoot(last, last + 1) + 0.5) * pixels_per_line - 0.5
    begin_pixel = torch.where(first == 0, 0, torch.floor(begin).long() + 1)  # a pixel on the crossing itself is outside
    end_pixel = torch.where(last == count - 1, pixels - 1, torch.ceil(end).long() - 1)
    any_hit = hit.any(dim=1)
    return torch.where(any_hit, begin_pixel.clamp(min=0), pixels), torch.where(any_hit, end_pixel.clamp(max=pixels - 1), -1)
