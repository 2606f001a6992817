"""How FOV-Seg is trained (Sec. V-C).

lexiseg train fovseg-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from lexiseg.losses.matching import Costs
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.fovseg.model import FovSegLossOptions
from lexiseg.methods.fovseg.variants import TINY, TINY_NAME, tiny_skeleton, untrained_tiny
from lexiseg.methods.recipe import Jitter, Recipe, Stage

TINY_STAGE = Stage(2500, rate=5e-4, multipliers={"clip": 0.1}, warmup=50, cosine=True, weight_decay=0.05, clip=0.1)


def tiny() -> Recipe:
    """Seen names of the emoji world in the trained styles, on the masks of `fcclip-tiny`. Scores: docs/tiny.md.

    ``lexiseg train fovseg-tiny --output RUN``
    """
    classes = SetLossOptions(mask=0.0, dice=0.0, points=1024, costs=Costs())
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


RECIPES = {TINY_NAME: tiny}
