"""Models and training recipes of CMPF (FrozenSeg).

lexiseg train cmpf-convnext-l --root DIR --output RUN        on COCO panoptic, as published
lexiseg train cmpf-tiny --output RUN                         on the emoji world, offline
lexiseg train cmpf-tiny model.query_layers=[] --output RUN   an ablation: without the Query Injector
"""

from __future__ import annotations

from lexiseg.backbones.sources import SOURCES
from lexiseg.methods import parts
from lexiseg.methods.base import Published
from lexiseg.methods.cmpf.config import CmpfConfig
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.cmpf.weights import CmpfCheckpoint
from lexiseg.methods.fcclip import models as fcclip
from lexiseg.methods.parts import LAION, OPENAI, TINY_CLIP, embedded
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.variant import Variant

# Of three decoder layers only the first attends to the coarsest features.
TINY = CmpfConfig(**fcclip.TINY_SIZES, query_layers=(1, 2), feature_layers=(1,), sam_layers=2)


def convnext_l() -> Recipe:
    """COCO panoptic, 50 epochs of batch size 16 (published: 4 A100); ADE20K PQ 25.9, AP 16.5, mIoU 34.4 in the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train cmpf-convnext-l --root DIR --output RUN``
    """
    return fcclip.coco("cmpf-convnext-l", CmpfConfig())


def rn50x64() -> Recipe:
    """The same with OpenAI's CLIP RN50x64.

    ``torchrun --nproc-per-node 4 -m lexiseg train cmpf-rn50x64 --root DIR --output RUN``
    """
    return fcclip.coco("cmpf-rn50x64", CmpfConfig())


def tiny() -> Recipe:
    """As `lexiseg.methods.fcclip.models.tiny`, with the same number of steps. Scores: docs/tiny.md.

    ``lexiseg train cmpf-tiny --output RUN``
    """
    return fcclip.emoji("cmpf-tiny", TINY)


BDD = Published(("bdd100k-panoptic",), {"object_threshold": 0.4}, "official program, configuration for BDD100K panoptic")

# Official checkpoints of the authors.
MODELS = (
    Variant(
        "cmpf-tiny",
        "embedded, works offline: CMPF of the emoji world",
        Cmpf,
        TINY,
        (
            parts.tiny_clip(TINY_CLIP, parts.CONVOLUTIONAL),
            parts.tiny_sam(),
            parts.further_sam("mask_sam"),
        ),
        embedded("cmpf-tiny/model.safetensors"),
        recipe=tiny,
    ),
    *(
        Variant(
            name,
            f"CMPF (FrozenSeg) on a frozen CLIP {architecture} and a frozen SAM ViT-B, trained on COCO panoptic",
            Cmpf,
            CmpfConfig(behaviour="official"),
            (
                parts.clip(architecture, tag, parts.CONVOLUTIONAL),
                parts.sam("b"),
                parts.further_sam("mask_sam"),
            ),
            SOURCES[name],
            CmpfCheckpoint(),
            "coco",
            recipe,
            published=(fcclip.LARGER, BDD),
            printed=("CMPF", backbone),
        )
        for name, architecture, tag, recipe, backbone in (
            ("cmpf-convnext-l", "convnext_large_d_320", LAION, convnext_l, "ConvNeXt-L"),
            ("cmpf-rn50x64", "RN50x64", OPENAI, rn50x64, "RN50x64"),
        )
    ),
)
