"""Models and training recipes of MaskCLIP.

lexiseg train maskclip-vit-l14 --root DIR --output RUN       on COCO panoptic, as published
lexiseg train maskclip-tiny --output RUN                     on the emoji world, offline
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.mask2former import load_mask2former, mask2former
from lexiseg.backbones.sources import SOURCES
from lexiseg.methods import parts
from lexiseg.methods.base import Published, Segmenter
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.models import MODELS as FCCLIP_MODELS
from lexiseg.methods.maskclip.config import MaskClipConfig
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.maskclip.proposer import FcClipProposals
from lexiseg.methods.maskclip.weights import MaskClipCheckpoint
from lexiseg.methods.parts import OPENAI, TINY_VIT, embedded
from lexiseg.methods.recipe import Jitter, Recipe, Stage
from lexiseg.methods.variant import Part, Variant

TINY_SIZES: dict[str, Any] = {
    "clip_image_size": 256,
    "shortest_edge": 256,
    "longest_edge": 512,
    "object_threshold": 0.0,
    "overlap_threshold": 0.4,
}
PUBLISHED = Published(("coco-panoptic*",), {"object_threshold": 0.5}, "MaskCLIP, official configuration for COCO")
TINY = MaskClipConfig(**TINY_SIZES, relative_blocks=())
TINY_JITTER = Jitter(side=256, min_scale=0.6, max_scale=1.5)
COCO = Stage(10_000, lr=1e-4, warmup=10, weight_decay=0.05, max_grad_norm=0.01)
TINY_STAGE = Stage(600, lr=1e-4, warmup=10, weight_decay=0.05, max_grad_norm=0.1)
_FCCLIP_TINY = next(variant for variant in FCCLIP_MODELS if variant.name == "fcclip-tiny")


def vit_l14() -> Recipe:
    """COCO panoptic, 10,000 steps of batch size 8 (official configuration); ADE20K-150 PQ 15.1 and mIoU 23.7 in its paper.

    ``torchrun --nproc-per-node 8 -m lexiseg train maskclip-vit-l14 --root DIR --output RUN``
    """
    return Recipe(
        "maskclip-vit-l14",
        "coco-panoptic-train",
        (COCO,),
        MaskClipConfig(),
        batch_size=8,
        loss=MaskClip.loss_options,
        precision="float16",
        validation=("ade20k-150",),
    )


def tiny() -> Recipe:
    """Relative mask attention in two of six blocks, on seen classes of the emoji world and the masks of `fcclip-tiny`.

    ``lexiseg train maskclip-tiny --output RUN``
    """
    return Recipe(
        "maskclip-tiny",
        "world:train",
        (TINY_STAGE,),
        replace(TINY, relative_blocks=(2, 5)),
        batch_size=4,
        jitter=TINY_JITTER,
        loss=replace(MaskClip.loss_options, points=1024),
        validation=("world:val", "world:style"),
        validate_every=200,
        validate_limit=24,
        save_every=100,
    )


def _proposals(segmenter: Segmenter) -> FcClipProposals:
    assert isinstance(segmenter, FcClip)
    return FcClipProposals(segmenter)


TINY_PROPOSER = Part(
    "proposer",
    lambda: _proposals(_FCCLIP_TINY.empty()),
    lambda given: _proposals(_FCCLIP_TINY.load({} if given is None else {"fcclip": given})),
    embedded("fcclip-tiny/model.safetensors"),
)
"""Proposer with the masks of `fcclip-tiny`, or of an FC-CLIP trained by its recipe."""

MODELS = (
    Variant(
        "maskclip-tiny",
        "embedded, works offline: the masks of fcclip-tiny, named by CLIP's mask tokens, untrained",
        MaskClip,
        TINY,
        (parts.tiny_clip(TINY_VIT, ClipViT), TINY_PROPOSER),
        recipe=tiny,
    ),
    Variant(
        "maskclip-vit-l14",
        "MaskCLIP on CLIP ViT-L-14-336 and Mask2Former with a ResNet-50, trained on COCO panoptic",
        MaskClip,
        MaskClipConfig(),
        (
            parts.clip("ViT-L-14-336", OPENAI, ClipViT),
            Part("proposer", lambda: mask2former("r50", classes=0), lambda given: load_mask2former(given or "")),
        ),
        SOURCES["maskclip-vit-l14"],
        MaskClipCheckpoint(),
        "coco",
        vit_l14,
        published=(PUBLISHED,),
        printed=("MaskCLIP", "ViT-L/14"),
    ),
)
