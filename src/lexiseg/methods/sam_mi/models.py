"""Models and training recipes of SAM-MI (Sec. 3.5 and 4.1): first the prompter, then all parts but SAM.

The authors have published neither code nor weights.

lexiseg train sam_mi-vit-b16 --root DIR --output RUN         on COCO-Stuff
lexiseg train sam_mi-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from dataclasses import replace

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.methods import parts
from lexiseg.methods.catseg import models as catseg
from lexiseg.methods.catseg.models import COCO, COCO_JITTER, TINY_JITTER, TINY_LOSS
from lexiseg.methods.parts import OPENAI, TINY_VIT, embedded, trained_by
from lexiseg.methods.recipe import Recipe, Stage
from lexiseg.methods.sam_mi.config import MASK_PER_POINT, SamMiConfig
from lexiseg.methods.sam_mi.model import SamMi, SamMiLossOptions
from lexiseg.methods.variant import Variant

TINY = SamMiConfig(
    **catseg.TINY_SIZES,
    prompter_dim=32,
    inject=("costs", "low", "high"),  # without the costs masks count less, see docs/methods/sam_mi.md
    generator=replace(
        MASK_PER_POINT, pred_iou_threshold=0.5, stability_threshold=0.5, box_nms_threshold=0.5
    ),  # sam_clip-tiny's
)
BASE, LARGE = SamMiConfig(), SamMiConfig(image_size=336)
PROMPTER = Stage(10_000, lr=2e-4, parts=("prompter",), cosine=True, weight_decay=1e-4, max_grad_norm=0.01)  # steps  # [decided]
ALL = replace(COCO, steps=70_000, lr_multipliers={"clip": 0.01, "prompter": 0.1})  # the prompter's  # [decided]
TINY_PROMPTER = Stage(120, lr=2e-3, parts=("prompter",), warmup=20, cosine=True, weight_decay=1e-4, max_grad_norm=0.01)
TINY_ALL = Stage(
    2400,
    lr=1e-3,
    lr_multipliers={"clip": 0.05, "prompter": 0.1},
    warmup=20,
    cosine=True,
    weight_decay=1e-4,
    max_grad_norm=0.01,
)


def vit_b16() -> Recipe:
    """COCO-Stuff, 80,000 steps of batch size 4 in both stages; ADE20K-150 mIoU 32.9 in the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train sam_mi-vit-b16 --root DIR --output RUN``
    """
    return _coco("sam_mi-vit-b16", BASE)


def vit_l14() -> Recipe:
    """The same with CLIP ViT-L/14; ADE20K-150 mIoU 38.6 in the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train sam_mi-vit-l14 --root DIR --output RUN``
    """
    return _coco("sam_mi-vit-l14", LARGE)


def tiny() -> Recipe:
    """The emoji world, initialised by `catseg-tiny`: the prompter, then all parts but SAM. Scores: docs/tiny.md.

    ``lexiseg train sam_mi-tiny --output RUN``
    """
    return Recipe(
        "sam_mi-tiny",
        "world:train",
        (TINY_PROMPTER, TINY_ALL),
        TINY,
        batch_size=4,
        max_classes_per_batch=96,
        jitter=TINY_JITTER,
        loss=SamMiLossOptions(pixels=TINY_LOSS, without_masks=0.25),
        validation=("world:val", "world:style"),
        validate_every=1000,
        validate_limit=24,
        save_every=100,
    )


def _coco(name: str, config: SamMiConfig) -> Recipe:
    return Recipe(
        name,
        "coco-stuff-train",
        (PROMPTER, ALL),
        config,
        batch_size=4,
        jitter=COCO_JITTER,
        loss=SamMiLossOptions(),
        validation=("ade20k-150",),
        save_every=5000,
    )


MODELS = (
    Variant(
        "sam_mi-tiny",
        "embedded, works offline: SAM-MI of the emoji world",
        SamMi,
        TINY,
        (parts.tiny_clip(TINY_VIT, ClipViT), parts.tiny_sam()),
        embedded("sam_mi-tiny/model.safetensors"),
        recipe=tiny,
        start=next(variant for variant in catseg.MODELS if variant.name == "catseg-tiny"),
    ),
    *(
        Variant(
            name,
            f"SAM-MI on a tuned CLIP {architecture} and a frozen SAM ViT-H",
            SamMi,
            config,
            (parts.clip(architecture, OPENAI, ClipViT), parts.sam("h")),
            trained_by(name),
            recipe=recipe,
        )
        for name, architecture, config, recipe in (
            ("sam_mi-vit-b16", "ViT-B-16", BASE, vit_b16),
            ("sam_mi-vit-l14", "ViT-L-14-336", LARGE, vit_l14),
        )
    ),
)
