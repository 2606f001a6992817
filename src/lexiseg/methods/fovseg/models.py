"""Models and training recipes of FOV-Seg (Sec. V-C). The authors have published neither code nor weights.

lexiseg train fovseg-vit-l14 --root DIR --output RUN         on COCO panoptic
lexiseg train fovseg-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.mask2former import Architecture, load_mask2former, mask2former
from lexiseg.backbones.sources import SOURCES
from lexiseg.losses.fiser import FiserOptions
from lexiseg.methods import parts
from lexiseg.methods.fovseg.config import FovSegConfig
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.maskclip.models import PUBLISHED, TINY_JITTER, TINY_PROPOSER, TINY_SIZES
from lexiseg.methods.parts import EVA, OPENAI, TINY_VIT, embedded, trained_by
from lexiseg.methods.recipe import Jitter, Recipe, Stage
from lexiseg.methods.variant import Part, Variant

TINY = FovSegConfig(**TINY_SIZES, masks_at_once=None)
PAPER = Stage(25_000, lr=1e-4, lr_multipliers={"clip": 0.1}, weight_decay=0.05, max_grad_norm=0.01)
TINY_STAGE = replace(PAPER, steps=200)  # better than 600 on validation scenes
FISER = FiserOptions(weight=1.0)
_PROPOSERS: dict[Architecture, str] = {"r50": "ResNet-50", "swin-t": "Swin-T", "swin-b": "Swin-B"}


def coco(name: str) -> Recipe:
    """COCO panoptic, 25,000 steps of batch size 16.

    The paper: ADE20K-150 PQ 28.4 and mIoU 37.1 (Table I). After 10,000 steps PQ 27.8 with ViT-L/14, 25.8 with ViT-B/16, 27.1
    with EVA01-g/14 (Table IV d); 26.3 with a ResNet-50 and 26.5 with a Swin-T as mask proposer (Table IV e).

    ``torchrun --nproc-per-node 8 -m lexiseg train fovseg-vit-l14 --root DIR --output RUN``
    """
    return Recipe(
        name,
        "coco-panoptic-train",
        (PAPER,),
        FovSegConfig(),
        batch_size=16,
        jitter=Jitter(side=1024, min_scale=0.1, max_scale=2.0),
        loss=FovSeg.loss_options,
        fiser=FISER,
        validation=("ade20k-150",),
    )


def tiny() -> Recipe:
    """Seen classes and styles of the emoji world, on the masks of `fcclip-tiny`. Scores: docs/tiny.md.

    ``lexiseg train fovseg-tiny --output RUN``
    """
    return Recipe(
        "fovseg-tiny",
        "world:train",
        (TINY_STAGE,),
        TINY,
        batch_size=4,
        jitter=TINY_JITTER,
        loss=replace(FovSeg.loss_options, points=1024),
        fiser=replace(FISER, visual="masks"),  # as good here, and fewer tokens
        validation=("world:val", "world:style"),
        validate_every=200,
        validate_limit=24,
        save_every=100,
    )


def _proposer(architecture: Architecture) -> Part:
    source = SOURCES[f"mask2former-{architecture}"]
    return Part(
        "proposer",
        partial(mask2former, architecture),
        lambda given: load_mask2former(given or source.repository or ""),
        source,
    )


def _variant(name: str, architecture: str, tag: str, proposer: Architecture) -> Variant:
    return Variant(
        name,
        f"FOV-Seg on CLIP {architecture} and a frozen Mask2Former with a {_PROPOSERS[proposer]}",
        FovSeg,
        FovSegConfig(),
        (parts.clip(architecture, tag, ClipViT), _proposer(proposer)),
        trained_by(name),
        recipe=partial(coco, name),
        published=(PUBLISHED,),
    )


MODELS = (
    Variant(
        "fovseg-tiny",
        "embedded, works offline: FOV-Seg of the emoji world",
        FovSeg,
        TINY,
        (parts.tiny_clip(TINY_VIT, ClipViT), TINY_PROPOSER),
        embedded("fovseg-tiny/model.safetensors"),
        recipe=tiny,
    ),
    _variant("fovseg-vit-b16", "ViT-B-16", OPENAI, "swin-b"),
    _variant("fovseg-vit-l14", "ViT-L-14-336", OPENAI, "swin-b"),
    _variant("fovseg-eva01-g14", "EVA01-g-14-plus", EVA, "swin-b"),
    _variant("fovseg-vit-l14-swin-t", "ViT-L-14-336", OPENAI, "swin-t"),
    _variant("fovseg-vit-l14-r50", "ViT-L-14-336", OPENAI, "r50"),
)
