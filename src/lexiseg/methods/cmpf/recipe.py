"""How CMPF (FrozenSeg) is trained.

lexiseg train cmpf-convnext-l --root DIR --output RUN        on COCO panoptic, as published
lexiseg train cmpf-tiny --output RUN                         on the emoji world, offline
lexiseg train cmpf-tiny model.query_layers=[] --output RUN   a row of an ablation: without the Query Injector
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lexiseg.methods.cmpf.variants import TINY, skeleton, tiny_skeleton, untrained, untrained_tiny
from lexiseg.methods.fcclip import recipe as fcclip
from lexiseg.methods.fcclip.variants import LAION_TAG, OPENAI
from lexiseg.methods.recipe import Recipe


def convnext_l() -> Recipe:
    """COCO panoptic, 50 epochs, batches of 16 (published: 4 A100); ADE20K PQ 25.9, AP 16.5, mIoU 34.4 by the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train cmpf-convnext-l --root DIR --output RUN``
    """
    return _coco("cmpf-convnext-l", "convnext_large_d_320", LAION_TAG, fcclip.convnext_l())


def rn50x64() -> Recipe:
    """The same on OpenAI's ResNet.

    ``torchrun --nproc-per-node 4 -m lexiseg train cmpf-rn50x64 --root DIR --output RUN``
    """
    return _coco("cmpf-rn50x64", "RN50x64-quickgelu", OPENAI, fcclip.rn50x64())


def tiny() -> Recipe:
    """As `lexiseg.methods.fcclip.recipe.tiny`, for the same number of steps. Scores: docs/tiny.md.

    ``lexiseg train cmpf-tiny --output RUN``
    """
    return replace(fcclip.tiny(), name="cmpf-tiny", build=untrained_tiny, skeleton=tiny_skeleton, model=TINY)


def _coco(name: str, architecture: str, tag: str, like: Recipe) -> Recipe:
    """FC-CLIP's recipe for the other model: nothing else differs."""
    build, empty = partial(untrained, architecture, tag), partial(skeleton, architecture)
    return replace(like, name=name, build=build, skeleton=empty, model={"behaviour": "paper"})


RECIPES = {f"cmpf-{name}": make for name, make in (("convnext-l", convnext_l), ("rn50x64", rn50x64), ("tiny", tiny))}
