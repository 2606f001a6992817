"""How training pictures are varied, picture and truth alike."""

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
    """A square cut out of the picture, mirrored and resized at random, and the segments in it.

    Args:
        pixels: [H, W, 3].
        truth: of the same size.
        jitter: how much.
        rng: where chance comes from; as many numbers are drawn whatever the picture.

    Returns:
        [3, side, side] float RGB in 0..1, and the masks [N, side, side] that are not empty. Crowds are left out: nobody
        says how many things they are.
    """
    mirror, size, down, across = rng.random(4)
    if jitter.colours:
        pixels = recoloured(pixels, rng)
    image, ids = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(truth.ids)[None]
    if mirror < jitter.mirror:
        image, ids = transforms.horizontal_flip(image), transforms.horizontal_flip(ids)
    high, wide = image.shape[-2:]
    fitting = max(high, wide) if jitter.fit == "longer" else min(high, wide)
    scale = (jitter.least + (jitter.most - jitter.least) * size) * jitter.side / fitting
    resized = [max(1, round(high * scale)), max(1, round(wide * scale))]
    image = transforms.resize(image, resized, BILINEAR, antialias=True)
    ids = transforms.resize(ids, resized, NEAREST)
    top, left = (int(share * (max(0, length - jitter.side) + 1)) for share, length in zip((down, across), resized, strict=True))
    image, ids = (cut[:, top : top + jitter.side, left : left + jitter.side] for cut in (image, ids))
    beyond = [0, 0, jitter.side - image.shape[-1], jitter.side - image.shape[-2]]
    image = transforms.pad(image, beyond, fill=[float(jitter.fill)])
    ids = transforms.pad(ids, beyond, fill=[0.0])
    return image.float() / 255, target_of(ids[0], truth)


def recoloured(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue of [H, W, 3] changed, each with a chance of a half.

    As in SSD: contrast before saturation and hue, or behind them.
    """
    chances, amounts = rng.random(5) < 0.5, rng.uniform(-1, 1, 4)
    brightness, contrast, saturation, hue, contrast_first = chances
    colours = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if brightness:
        colours = (colours + amounts[0] * 32 / 255).clamp(0, 1)
    if contrast and contrast_first:
        colours = (colours * (1 + amounts[1] / 2)).clamp(0, 1)
    if saturation:
        value, grey = colours.amax(0), colours.amin(0)
        most = value / (value - grey).clamp(min=1e-6)  # nothing is more saturated than fully
        colours = value - (value - colours) * most.clamp(max=1 + amounts[2] / 2)
    if hue:
        colours = transforms.adjust_hue(colours, 0.1 * amounts[3])
    if contrast and not contrast_first:
        colours = (colours * (1 + amounts[1] / 2)).clamp(0, 1)
    return (colours * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def target_of(ids: Tensor, truth: PanopticMap) -> MaskTarget:
    """The segments of ``truth`` that occur in ``ids`` [H, W], crowds left out; a pixel of none is 0."""
    present = set(torch.unique(ids).tolist())
    kept = [segment for segment in truth.segments if segment.id in present and not segment.crowd]
    numbers = torch.tensor([segment.id for segment in kept], dtype=ids.dtype)
    return MaskTarget(ids[None] == numbers[:, None, None], torch.tensor([segment.label for segment in kept]).long())
