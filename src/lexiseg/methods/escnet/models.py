"""Models and training recipes of ESC-Net (Sec. 4.3). The authors have published neither code nor weights.

lexiseg train escnet-vit-b16 --root DIR --output RUN         on COCO-Stuff
lexiseg train escnet-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from dataclasses import replace

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.methods import parts
from lexiseg.methods.catseg.models import COCO, COCO_JITTER, TINY_JITTER, TINY_STAGE
from lexiseg.methods.escnet.config import EscNetConfig
from lexiseg.methods.escnet.model import LABELLED, EscNet, EscNetLossOptions
from lexiseg.methods.parts import OPENAI, TINY_VIT, embedded, trained_by
from lexiseg.methods.recipe import Recipe
from lexiseg.methods.variant import Variant

TINY = EscNetConfig(
    image_size=384,
    train_image_size=256,
    num_blocks=2,  # as many as SAM has
    hidden_dim=32,
    window_size=8,
    decoder_channels=(16, 16),
    skip_channels=(8, 8),
    max_classes=32,
    ranking="probability",
    templates="single",
)
BASE, LARGE = EscNetConfig(window_size=7), EscNetConfig()  # 21 × 21 and 24 × 24 cells
PAPER = replace(COCO, lr_multipliers={"clip": 0.01, "sam": 0.01})  # steps, batch, decay and crops as CAT-Seg's  # [decided]
TINY_LOSS = EscNetLossOptions(pixels=replace(LABELLED, max_classes=16))  # as catseg-tiny
STAGE = replace(TINY_STAGE, lr_multipliers={"clip": 0.05, "sam": 0.2})


def vit_b16() -> Recipe:
    """COCO-Stuff, 80,000 steps of batch size 4; ADE20K-150 mIoU 35.6 in the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train escnet-vit-b16 --root DIR --output RUN``
    """
    return _coco("escnet-vit-b16", BASE)


def vit_l14() -> Recipe:
    """The same with CLIP ViT-L/14; ADE20K-150 mIoU 41.8 in the paper.

    ``torchrun --nproc-per-node 4 -m lexiseg train escnet-vit-l14 --root DIR --output RUN``
    """
    return _coco("escnet-vit-l14", LARGE)


def tiny() -> Recipe:
    """Seen classes and styles of the emoji world, as many steps as `catseg-tiny`. Scores: docs/tiny.md.

    ``lexiseg train escnet-tiny --output RUN``
    """
    return Recipe(
        "escnet-tiny",
        "world:train",
        (STAGE,),
        TINY,
        batch_size=4,
        jitter=TINY_JITTER,
        loss=TINY_LOSS,
        validation=("world:val", "world:style"),
        validate_every=800,
        validate_limit=24,
        save_every=100,
    )


def _coco(name: str, config: EscNetConfig) -> Recipe:
    return Recipe(
        name,
        "coco-stuff-train",
        (PAPER,),
        config,
        batch_size=4,
        jitter=COCO_JITTER,
        loss=EscNetLossOptions(),
        validation=("ade20k-150",),
        save_every=5000,
    )


# The paper does not name the SAM variant; all have the same decoder.  # [decided]
MODELS = (
    Variant(
        "escnet-tiny",
        "embedded, works offline: ESC-Net of the emoji world",
        EscNet,
        TINY,
        (parts.tiny_clip(TINY_VIT, ClipViT), parts.tiny_sam()),
        embedded("escnet-tiny/model.safetensors"),
        recipe=tiny,
    ),
    *(
        Variant(
            name,
            f"ESC-Net on a tuned CLIP {architecture} with blocks of SAM's decoder",
            EscNet,
            config,
            (parts.clip(architecture, OPENAI, ClipViT), parts.sam("b")),
            trained_by(name),
            recipe=recipe,
        )
        for name, architecture, config, recipe in (
            ("escnet-vit-b16", "ViT-B-16", BASE, vit_b16),
            ("escnet-vit-l14", "ViT-L-14-336", LARGE, vit_l14),
        )
    ),
)
