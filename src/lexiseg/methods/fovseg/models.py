"""Models and training recipes of FOV-Seg (Sec. V-C). The authors have published neither code nor weights.

lexiseg train fovseg-vit-l14 --root DIR --output RUN         on COCO panoptic
lexiseg train fovseg-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from dataclasses import replace

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.mask2former import load_mask2former, mask2former
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods import parts
from lexiseg.methods.fovseg.config import FovSegConfig
from lexiseg.methods.fovseg.model import FovSeg, FovSegLossOptions
from lexiseg.methods.maskclip.models import COCO, TINY_PROPOSER, TINY_SIZES
from lexiseg.methods.parts import OPENAI, TINY_VIT, embedded
from lexiseg.methods.recipe import Jitter, Recipe, Stage
from lexiseg.methods.variant import Part, Source, Variant

TINY = FovSegConfig(**TINY_SIZES, masks_at_once=None)
PROPOSER_HUB = "facebook/mask2former-swin-base-coco-panoptic"
PAPER = Stage(25_000, lr=1e-4, lr_multipliers={"clip": 0.1}, weight_decay=0.05, max_grad_norm=0.01)
TINY_STAGE = Stage(2500, lr=5e-4, lr_multipliers={"clip": 0.1}, warmup=50, cosine=True, weight_decay=0.05, max_grad_norm=0.1)


def vit_b16() -> Recipe:
    """COCO panoptic, 25,000 steps of batch size 16; ADE20K-150 mIoU 34.1 in the paper after 10,000 steps (Table IV d).

    ``torchrun --nproc-per-node 8 -m lexiseg train fovseg-vit-b16 --root DIR --output RUN``
    """
    return _coco("fovseg-vit-b16")


def vit_l14() -> Recipe:
    """The same with CLIP ViT-L/14; ADE20K-150 PQ 28.4 and mIoU 37.1 in the paper.

    ``torchrun --nproc-per-node 8 -m lexiseg train fovseg-vit-l14 --root DIR --output RUN``
    """
    return _coco("fovseg-vit-l14")


def tiny() -> Recipe:
    """Seen classes and styles of the emoji world, on the masks of `fcclip-tiny`. Scores: docs/tiny.md.

    ``lexiseg train fovseg-tiny --output RUN``
    """
    return Recipe(
        "fovseg-tiny",
        "world:train",
        (TINY_STAGE,),
        replace(TINY, fiser_layers=2),
        batch_size=4,
        jitter=Jitter(side=256, min_scale=0.6, max_scale=1.5),
        loss=FovSegLossOptions(classes=SetLossOptions(mask=0.0, dice=0.0, points=1024)),
        validation=("world:val", "world:style"),
        validate_every=500,
        validate_limit=24,
        save_every=100,
    )


def _coco(name: str) -> Recipe:
    return Recipe(
        name,
        "coco-panoptic-train",
        (PAPER,),
        FovSegConfig(fiser_layers=2),
        batch_size=16,
        jitter=Jitter(side=1024, min_scale=0.1, max_scale=2.0),
        loss=FovSegLossOptions(),
        validation=("ade20k-150-panoptic",),
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
    *(
        Variant(
            name,
            f"FOV-Seg on CLIP {architecture} and a frozen Mask2Former with a Swin-B",
            FovSeg,
            FovSegConfig(),
            (
                parts.clip(architecture, OPENAI, ClipViT),
                Part(
                    "proposer",
                    lambda: mask2former("swin-b"),
                    lambda given: load_mask2former(given or PROPOSER_HUB),
                    Source("model.safetensors", "other (see its page)", PROPOSER_HUB),
                ),
            ),
            Source(f"{name}/model.safetensors", "your own", manual_url=f"lexiseg train {name}"),
            recipe=recipe,
            published=(COCO,),
        )
        for name, architecture, recipe in (("fovseg-vit-b16", "ViT-B-16", vit_b16), ("fovseg-vit-l14", "ViT-L-14-336", vit_l14))
    ),
)
