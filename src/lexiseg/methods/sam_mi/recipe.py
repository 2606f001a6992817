"""How SAM-MI is trained (Sec. 3.5 and 4.1): first the prompter alone, then all but SAM.

lexiseg train sam_mi-vit-b16 --root DIR --output RUN         on COCO-Stuff
"""

from __future__ import annotations

from functools import partial

from lexiseg.methods.catseg.recipe import COCO, COCO_JITTER
from lexiseg.methods.recipe import Jitter, Recipe, Stage
from lexiseg.methods.sam_mi.model import SamMiLossOptions
from lexiseg.methods.sam_mi.variants import SIZES, TINY, TINY_NAME, skeleton, tiny_skeleton, untrained, untrained_tiny

PROMPTER = Stage(10_000, rate=2e-4, parts=("prompter",), cosine=True, weight_decay=1e-4, clip=0.01)  # steps  # [decided]
ALL = Stage(
    COCO.steps,
    rate=COCO.rate,
    multipliers={"clip": 0.01, "prompter": 0.1},  # the prompter's  # [decided]
    cosine=True,
    weight_decay=COCO.weight_decay,
    clip=COCO.clip,
)

TINY_PROMPTER = Stage(600, rate=1e-3, parts=("prompter",), warmup=20, cosine=True, weight_decay=1e-4, clip=0.01)
TINY_ALL = Stage(
    400, rate=5e-4, multipliers={"clip": 0.05, "prompter": 0.1}, warmup=20, cosine=True, weight_decay=1e-4, clip=0.01
)


def vit_b16() -> Recipe:
    """COCO-Stuff, 80,000 batches of 4 after the prompter's own; ADE20K-150 mIoU 32.9 by the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train sam_mi-vit-b16 --root DIR --output RUN``
    """
    return _coco("sam_mi-vit-b16")


def vit_l14() -> Recipe:
    """The same on the larger CLIP; ADE20K-150 mIoU 38.6 by the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train sam_mi-vit-l14 --root DIR --output RUN``
    """
    return _coco("sam_mi-vit-l14")


def tiny() -> Recipe:
    """The emoji world, from `catseg-tiny` on: its prompter, then all but SAM. Scores: docs/tiny.md.

    ``lexiseg train sam_mi-tiny --output RUN``
    """
    return Recipe(
        TINY_NAME,
        untrained_tiny,
        tiny_skeleton,
        "world:train",
        (TINY_PROMPTER, TINY_ALL),
        model=TINY,
        batch=4,
        classes=24,
        jitter=Jitter(side=256, least=0.6, most=1.5),
        loss=SamMiLossOptions(),
        validation=("world:val", "world:style"),
        validate_every=1000,
        validate_limit=24,
        save_every=100,
    )


def _coco(name: str) -> Recipe:
    architecture, side = SIZES[name]
    return Recipe(
        name,
        partial(untrained, architecture),
        partial(skeleton, architecture),
        "coco-stuff-train",
        (PROMPTER, ALL),
        model={"side": side},
        batch=4,
        jitter=COCO_JITTER,
        loss=SamMiLossOptions(),
        validation=("ade20k-150",),
        save_every=5000,
    )


RECIPES = {"sam_mi-vit-b16": vit_b16, "sam_mi-vit-l14": vit_l14, TINY_NAME: tiny}
