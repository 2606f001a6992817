"""How FC-CLIP is trained.

lexiseg train fcclip-convnext-l --root DIR --output RUN      on COCO panoptic, as published
lexiseg train fcclip-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from functools import partial

from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.fcclip.variants import LAION_TAG, OPENAI, TINY, skeleton, tiny_skeleton, untrained, untrained_tiny
from lexiseg.methods.recipe import Jitter, Recipe, Stage

COCO = Stage(368_750, rate=1e-4, milestones=(327_778, 355_092), weight_decay=0.05, clip=0.01)
STAGE = Stage(3400, rate=1e-3, warmup=200, cooldown=0.35, weight_decay=0.05, clip=0.01)
TINY_JITTER = Jitter(side=384, least=0.6, most=1.5)
TINY_LOSS = SetLossOptions(points=768)
TINY_VALIDATION = ("world:val", "world:style")


def convnext_l() -> Recipe:
    """COCO panoptic, 50 epochs, batches of 16 (published: 8 GPUs); ADE20K PQ 26.8, mIoU 34.1 by the paper of FC-CLIP.

    ``torchrun --nproc-per-node 8 -m lexiseg train fcclip-convnext-l --root DIR --output RUN``
    """
    return _coco("fcclip-convnext-l", "convnext_large_d_320", LAION_TAG)


def rn50x64() -> Recipe:
    """The same on OpenAI's ResNet.

    ``torchrun --nproc-per-node 8 -m lexiseg train fcclip-rn50x64 --root DIR --output RUN``
    """
    return _coco("fcclip-rn50x64", "RN50x64-quickgelu", OPENAI)


def tiny() -> Recipe:
    """Seen names of the emoji world in the trained styles; about an hour on one core. Scores: docs/tiny.md.

    ``lexiseg train fcclip-tiny --output RUN``
    """
    return Recipe(
        "fcclip-tiny",
        untrained_tiny,
        tiny_skeleton,
        "world:train",
        (STAGE,),
        model=TINY,
        batch=8,
        jitter=TINY_JITTER,
        loss=TINY_LOSS,
        validation=TINY_VALIDATION,
        validate_every=1000,
        validate_limit=48,
        save_every=200,
    )


def _coco(name: str, architecture: str, tag: str) -> Recipe:
    return Recipe(
        name,
        partial(untrained, architecture, tag),
        partial(skeleton, architecture),
        "coco-panoptic-train",
        (COCO,),
        precision="float16",
        validation=("ade20k-150",),
        save_every=5000,
    )


RECIPES = {f"fcclip-{name}": make for name, make in (("convnext-l", convnext_l), ("rn50x64", rn50x64), ("tiny", tiny))}
