"""Models and training recipes of CAT-Seg.

lexiseg train catseg-vit-b16 --root DIR --output RUN         on COCO-Stuff, as published
lexiseg train catseg-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from typing import Any

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sources import SOURCES
from lexiseg.losses.pixel_loss import PixelLossOptions
from lexiseg.methods import parts
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.catseg.weights import CatSegCheckpoint
from lexiseg.methods.parts import OPENAI, TINY_VIT, embedded
from lexiseg.methods.recipe import Jitter, Recipe, Stage
from lexiseg.methods.variant import Variant

TINY_SIZES: dict[str, Any] = {  # also those of SAM-MI
    "image_size": 384,
    "train_image_size": 256,
    "sliding": False,
    "guide_channels": (32, 16),
    "hidden_dim": 32,
    "appearance_dim": 32,
    "text_dim": 32,
    "decoder_channels": (16, 16),
    "decoder_guide_channels": (8, 8),
    "window_size": 8,
    "max_classes": 32,
    "ranking": "probability",
    "pad_classes": False,
    "templates": "single",
}
TINY = CatSegConfig(**TINY_SIZES)
BASE, LARGE = CatSegConfig(behaviour="official"), CatSegConfig(image_size=336, behaviour="official")
COCO = Stage(80_000, lr=2e-4, lr_multipliers={"clip": 0.01}, cosine=True, weight_decay=1e-4, max_grad_norm=0.01)
COCO_JITTER = Jitter(side=384, min_scale=1.0, max_scale=1.0, fit="shorter", colours=True)
TINY_JITTER = Jitter(side=256, min_scale=0.6, max_scale=1.5)
TINY_LOSS = PixelLossOptions(max_classes=16)
TINY_STAGE = Stage(2400, lr=1e-3, lr_multipliers={"clip": 0.05}, warmup=100, cosine=True, weight_decay=1e-4, max_grad_norm=0.01)


def vit_b16() -> Recipe:
    """COCO-Stuff, 80,000 steps of batch size 4 (published: 4 GPUs); ADE20K-150 mIoU 31.8 in the paper of CAT-Seg.

    ``torchrun --nproc-per-node 4 -m lexiseg train catseg-vit-b16 --root DIR --output RUN``
    """
    return _coco("catseg-vit-b16", BASE)


def vit_l14() -> Recipe:
    """The same with CLIP ViT-L/14 at 336 pixels; ADE20K-150 mIoU 37.9 in the paper of CAT-Seg.

    ``torchrun --nproc-per-node 4 -m lexiseg train catseg-vit-l14 --root DIR --output RUN``
    """
    return _coco("catseg-vit-l14", LARGE)


def tiny() -> Recipe:
    """Seen classes and styles of the emoji world. Scores: docs/tiny.md.

    ``lexiseg train catseg-tiny --output RUN``
    """
    return Recipe(
        "catseg-tiny",
        "world:train",
        (TINY_STAGE,),
        TINY,
        batch_size=4,
        jitter=TINY_JITTER,
        loss=TINY_LOSS,
        validation=("world:val", "world:style"),
        validate_every=800,
        validate_limit=24,
        save_every=200,
    )


def _coco(name: str, config: CatSegConfig) -> Recipe:
    return Recipe(
        name,
        "coco-stuff-train",
        (COCO,),
        config,
        batch_size=4,
        jitter=COCO_JITTER,
        loss=PixelLossOptions(),
        validation=("ade20k-150",),
        save_every=5000,
    )


MODELS = (
    Variant(
        "catseg-tiny",
        "embedded, works offline: CAT-Seg of the emoji world",
        CatSeg,
        TINY,
        (parts.tiny_clip(TINY_VIT, ClipViT),),
        embedded("catseg-tiny/model.safetensors"),
        recipe=tiny,
    ),
    *(
        Variant(
            name,
            f"CAT-Seg on a tuned CLIP {architecture}, trained on COCO-Stuff",
            CatSeg,
            config,
            (parts.clip(architecture, OPENAI, ClipViT),),
            SOURCES[name],
            CatSegCheckpoint(),
            "coco-stuff-171",
            recipe,
            printed=("CAT-Seg", backbone),
        )
        for name, architecture, config, recipe, backbone in (
            ("catseg-vit-b16", "ViT-B-16", BASE, vit_b16, "ViT-B/16"),
            ("catseg-vit-l14", "ViT-L-14-336", LARGE, vit_l14, "ViT-L/14"),
        )
    ),
)
