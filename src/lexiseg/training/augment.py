"""Random augmentation of training images together with their segments."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from lexiseg.data.images import Pixels
from lexiseg.methods.recipe import Jitter
from lexiseg.structures import MaskTarget, PanopticMap

NEAREST = transforms.InterpolationMode.NEAREST_EXACT
BILINEAR = transforms.InterpolationMode.BILINEAR


def jittered(pixels: Pixels, truth: PanopticMap, jitter: Jitter, rng: np.random.Generator) -> tuple[Tensor, MaskTarget]:
    """Flip, resize and crop an image at random, with its segments.

    Args:
        pixels: image [H, W, 3].
        truth: its segments, [H, W].
        jitter: ranges of the augmentation, and the size of the crop.
        rng: random source. The number of draws does not depend on the image.

    Returns:
        The crop [3, side, side], float RGB in 0..1, and its non-empty masks [N, side, side] without crowds, which stand for
        an unknown number of objects.
    """
    flip, size, down, across = rng.random(4)
    if jitter.colours:
        pixels = recoloured(pixels, rng)
    image, ids = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(truth.ids)[None]
    if flip < jitter.mirror:
        image, ids = transforms.horizontal_flip(image), transforms.horizontal_flip(ids)
    height, width = image.shape[-2:]
    fitted = max(height, width) if jitter.fit == "longer" else min(height, width)
    scale = (jitter.min_scale + (jitter.max_scale - jitter.min_scale) * size) * jitter.side / fitted
    resized = [max(1, round(height * scale)), max(1, round(width * scale))]
    image = transforms.resize(image, resized, BILINEAR, antialias=True)
    ids = transforms.resize(ids, resized, NEAREST)
    top, left = (
        int(fraction * (max(0, length - jitter.side) + 1)) for fraction, length in zip((down, across), resized, strict=True)
    )
    image, ids = (uncropped[:, top : top + jitter.side, left : left + jitter.side] for uncropped in (image, ids))
    padding = [0, 0, jitter.side - image.shape[-1], jitter.side - image.shape[-2]]
    image = transforms.pad(image, padding, fill=[float(jitter.fill)])
    ids = transforms.pad(ids, padding, fill=[0.0])
    return image.float() / 255, target_of(ids[0], truth)


def recoloured(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue of an image [H, W, 3], each with probability 0.5.

    As in SSD, contrast is changed before or after saturation and hue.
    """
    applied, amounts = rng.random(5) < 0.5, rng.uniform(-1, 1, 4)
    brightness, contrast, saturation, hue, contrast_first = applied
    colours = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if brightness:
        colours = (colours + amounts[0] * 32 / 255).clamp(0, 1)
    if contrast and contrast_first:
        colours = (colours * (1 + amounts[1] / 2)).clamp(0, 1)
    if saturation:
        value, grey = colours.amax(0), colours.amin(0)
        limit = value / (value - grey).clamp(min=1e-6)  # the factor of full saturation
        colours = value - (value - colours) * limit.clamp(max=1 + amounts[2] / 2)
    if hue:
        colours = transforms.adjust_hue(colours, 0.1 * amounts[3])
    if contrast and not contrast_first:
        colours = (colours * (1 + amounts[1] / 2)).clamp(0, 1)
    return (colours * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def target_of(ids: Tensor, truth: PanopticMap) -> MaskTarget:
    """Masks of the segments of ``truth`` that occur in ``ids`` [H, W] (0: no segment), without crowds."""
    present = set(torch.unique(ids).tolist())
    kept = [segment for segment in truth.segments if segment.id in present and not segment.crowd]
    numbers = torch.tensor([segment.id for segment in kept], dtype=ids.dtype)
    return MaskTarget(ids[None] == numbers[:, None, None], torch.tensor([segment.label for segment in kept]).long())
