"""How CAT-Seg is trained.

lexiseg train catseg-vit-b16 --root DIR --output RUN         on COCO-Stuff, as published
lexiseg train catseg-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from functools import partial
from typing import Any

from lexiseg.losses.pixel_loss import PixelLossOptions
from lexiseg.methods.catseg.variants import TINY, skeleton, tiny_skeleton, untrained, untrained_tiny
from lexiseg.methods.recipe import Jitter, Recipe, Stage

COCO = Stage(80_000, rate=2e-4, multipliers={"clip": 0.01}, cosine=True, weight_decay=1e-4, clip=0.01)
COCO_JITTER = Jitter(side=384, least=1.0, most=1.0, fit="shorter", colours=True)
STAGE = Stage(2400, rate=1e-3, multipliers={"clip": 0.05}, warmup=100, cosine=True, weight_decay=1e-4, clip=0.01)


def vit_b16() -> Recipe:
    """COCO-Stuff, 80,000 batches of 4 (published: 4 GPUs); ADE20K-150 mIoU 31.8 by the paper of CAT-Seg.

    ``torchrun --nproc-per-node 4 -m lexiseg train catseg-vit-b16 --root DIR --output RUN``
    """
    return _coco("catseg-vit-b16", "ViT-B-16-quickgelu", 384)


def vit_l14() -> Recipe:
    """The same on the larger CLIP, at 336 pixels; ADE20K-150 mIoU 37.9 by the paper of CAT-Seg.

    ``torchrun --nproc-per-node 4 -m lexiseg train catseg-vit-l14 --root DIR --output RUN``
    """
    return _coco("catseg-vit-l14", "ViT-L-14-336-quickgelu", 336)


def tiny() -> Recipe:
    """Seen names of the emoji world in the trained styles. Scores: docs/tiny.md.

    ``lexiseg train catseg-tiny --output RUN``
    """
    return Recipe(
        "catseg-tiny",
        untrained_tiny,
        tiny_skeleton,
        "world:train",
        (STAGE,),
        model=TINY,
        batch=4,
        classes=24,
        jitter=Jitter(side=256, least=0.6, most=1.5),
        loss=PixelLossOptions(),
        validation=("world:val", "world:style"),
        validate_every=800,
        validate_limit=24,
        save_every=200,
    )


def _coco(name: str, architecture: str, side: int) -> Recipe:
    model: dict[str, Any] = {"side": side, "behaviour": "official"}
    return Recipe(
        name,
        partial(untrained, architecture),
        partial(skeleton, architecture),
        "coco-stuff-train",
        (COCO,),
        model=model,
        batch=4,
        jitter=COCO_JITTER,
        loss=PixelLossOptions(),
        validation=("ade20k-150",),
        save_every=5000,
    )


RECIPES = {f"catseg-{name}": make for name, make in (("vit-b16", vit_b16), ("vit-l14", vit_l14), ("tiny", tiny))}
