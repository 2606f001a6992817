"""How SAM-MI is trained (Sec. 3.5 and 4.1): first the prompter alone, then all but SAM.

lexiseg train sam_mi-vit-b16 --root DIR --output RUN         on COCO-Stuff
"""

from __future__ import annotations

from functools import partial

from lexiseg.methods.catseg.recipe import COCO, COCO_JITTER
from lexiseg.methods.recipe import Recipe, Stage
from lexiseg.methods.sam_mi.model import SamMiLossOptions
from lexiseg.methods.sam_mi.variants import SIZES, skeleton, untrained

PROMPTER = Stage(10_000, rate=2e-4, parts=("prompter",), cosine=True, weight_decay=1e-4, clip=0.01)  # steps  # [decided]
ALL = Stage(
    COCO.steps,
    rate=COCO.rate,
    multipliers={"clip": 0.01, "prompter": 0.1},  # the prompter's  # [decided]
    cosine=True,
    weight_decay=COCO.weight_decay,
    clip=COCO.clip,
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


RECIPES = {"sam_mi-vit-b16": vit_b16, "sam_mi-vit-l14": vit_l14}
