"""How ESC-Net is trained (Sec. 4.3).

lexiseg train escnet-vit-b16 --root DIR --output RUN         on COCO-Stuff
lexiseg train escnet-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lexiseg.methods.catseg.recipe import COCO, COCO_JITTER, STAGE
from lexiseg.methods.escnet.model import EscNetLossOptions
from lexiseg.methods.escnet.variants import SIZES, TINY, TINY_NAME, skeleton, tiny_skeleton, untrained, untrained_tiny
from lexiseg.methods.recipe import Jitter, Recipe

TUNED = {"clip": 0.01, "sam": 0.01}  # 2e-6 for CLIP and SAM's blocks, 2e-4 for the rest
PAPER = replace(COCO, multipliers=TUNED)  # steps, batch, decay and crops as CAT-Seg's  # [decided]
TINY_STAGE = replace(STAGE, multipliers={"clip": 0.05, "sam": 0.05})


def vit_b16() -> Recipe:
    """COCO-Stuff, 80,000 batches of 4; ADE20K-150 mIoU 35.6 by the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train escnet-vit-b16 --root DIR --output RUN``
    """
    return _coco("escnet-vit-b16")


def vit_l14() -> Recipe:
    """The same on the larger CLIP; ADE20K-150 mIoU 41.8 by the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train escnet-vit-l14 --root DIR --output RUN``
    """
    return _coco("escnet-vit-l14")


def tiny() -> Recipe:
    """Seen names of the emoji world in the trained styles, as many steps as `catseg-tiny`. Scores: docs/tiny.md.

    ``lexiseg train escnet-tiny --output RUN``
    """
    return Recipe(
        TINY_NAME,
        untrained_tiny,
        tiny_skeleton,
        "world:train",
        (TINY_STAGE,),
        model=TINY,
        batch=4,
        classes=24,
        jitter=Jitter(side=256, least=0.6, most=1.5),
        loss=EscNetLossOptions(),
        validation=("world:val", "world:style"),
        validate_every=800,
        validate_limit=24,
        save_every=100,
    )


def _coco(name: str) -> Recipe:
    architecture, options = SIZES[name]
    return Recipe(
        name,
        partial(untrained, architecture),
        partial(skeleton, architecture),
        "coco-stuff-train",
        (PAPER,),
        model=options,
        batch=4,
        jitter=COCO_JITTER,
        loss=EscNetLossOptions(),
        validation=("ade20k-150",),
        save_every=5000,
    )


RECIPES = {"escnet-vit-b16": vit_b16, "escnet-vit-l14": vit_l14, TINY_NAME: tiny}
