"""How FOV-Seg is trained (Sec. V-C).

lexiseg train fovseg-vit-l14 --root DIR --output RUN         on COCO panoptic
lexiseg train fovseg-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from functools import partial

from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.fovseg.model import FovSegLossOptions
from lexiseg.methods.fovseg.variants import SIZES, TINY, TINY_NAME, skeleton, tiny_skeleton, untrained, untrained_tiny
from lexiseg.methods.recipe import Jitter, Recipe, Stage

PAPER = Stage(25_000, rate=1e-4, multipliers={"clip": 0.1}, weight_decay=0.05, clip=0.01)
TINY_STAGE = Stage(2500, rate=5e-4, multipliers={"clip": 0.1}, warmup=50, cosine=True, weight_decay=0.05, clip=0.1)


def vit_b16() -> Recipe:
    """COCO panoptic, 25,000 batches of 16; ADE20K-150 mIoU 34.1 by the paper, after 10,000 of them (Table IV d).

    ``torchrun --nproc-per-node 8 -m lexiseg train fovseg-vit-b16 --root DIR --output RUN``
    """
    return _coco("fovseg-vit-b16")


def vit_l14() -> Recipe:
    """The same on the larger CLIP; ADE20K-150 PQ 28.4 and mIoU 37.1 by the paper.

    ``torchrun --nproc-per-node 8 -m lexiseg train fovseg-vit-l14 --root DIR --output RUN``
    """
    return _coco("fovseg-vit-l14")


def tiny() -> Recipe:
    """Seen names of the emoji world in the trained styles, on the masks of `fcclip-tiny`. Scores: docs/tiny.md.

    ``lexiseg train fovseg-tiny --output RUN``
    """
    classes = SetLossOptions(mask=0.0, dice=0.0, points=1024)
    return Recipe(
        TINY_NAME,
        untrained_tiny,
        tiny_skeleton,
        "world:train",
        (TINY_STAGE,),
        model={**TINY, "fiser": 2},
        batch=4,
        jitter=Jitter(side=256, least=0.6, most=1.5),
        loss=FovSegLossOptions(classes=classes),
        validation=("world:val", "world:style"),
        validate_every=500,
        validate_limit=24,
        save_every=100,
    )


def _coco(name: str) -> Recipe:
    return Recipe(
        name,
        partial(untrained, SIZES[name]),
        partial(skeleton, SIZES[name]),
        "coco-panoptic-train",
        (PAPER,),
        model={"fiser": 2},
        batch=16,
        jitter=Jitter(side=1024, least=0.1, most=2.0),
        loss=FovSegLossOptions(),
        validation=("ade20k-150-panoptic",),
    )


RECIPES = {"fovseg-vit-b16": vit_b16, "fovseg-vit-l14": vit_l14, TINY_NAME: tiny}
