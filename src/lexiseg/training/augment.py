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
    image, ids = torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(truth.ids)[None]
    if mirror < jitter.mirror:
        image, ids = transforms.horizontal_flip(image), transforms.horizontal_flip(ids)
    high, wide = image.shape[-2:]
    scale = (jitter.least + (jitter.most - jitter.least) * size) * jitter.side / max(high, wide)
    resized = [max(1, round(high * scale)), max(1, round(wide * scale))]
    image = transforms.resize(image, resized, BILINEAR, antialias=True)
    ids = transforms.resize(ids, resized, NEAREST)
    top, left = (int(share * (max(0, length - jitter.side) + 1)) for share, length in zip((down, across), resized, strict=True))
    image, ids = (cut[:, top : top + jitter.side, left : left + jitter.side] for cut in (image, ids))
    beyond = [0, 0, jitter.side - image.shape[-1], jitter.side - image.shape[-2]]
    image = transforms.pad(image, beyond, fill=[float(jitter.fill)])
    ids = transforms.pad(ids, beyond, fill=[0.0])
    return image.float() / 255, target_of(ids[0], truth)


def target_of(ids: Tensor, truth: PanopticMap) -> MaskTarget:
    """The segments of ``truth`` that occur in ``ids`` [H, W], crowds left out; a pixel of none is 0."""
    present = set(torch.unique(ids).tolist())
    kept = [segment for segment in truth.segments if segment.id in present and not segment.crowd]
    numbers = torch.tensor([segment.id for segment in kept], dtype=ids.dtype)
    return MaskTarget(ids[None] == numbers[:, None, None], torch.tensor([segment.label for segment in kept]).long())
