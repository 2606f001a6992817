"""Models and training recipes of FC-CLIP.

lexiseg train fcclip-convnext-l --root DIR --output RUN      on COCO panoptic, as published
lexiseg train fcclip-tiny --output RUN                       on the emoji world, offline
"""

from __future__ import annotations

from typing import Any

from lexiseg.backbones.sources import SOURCES
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods import parts
from lexiseg.methods.base import Published
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.weights import FcClipCheckpoint
from lexiseg.methods.parts import LAION, OPENAI, TINY_CLIP, embedded
from lexiseg.methods.recipe import Jitter, Recipe, Stage
from lexiseg.methods.variant import Variant

TINY_SIZES: dict[str, Any] = {  # of the tiny models, also those of CMPF
    "num_queries": 24,
    "hidden_dim": 96,
    "num_layers": 3,
    "num_heads": 4,
    "pixel_decoder_layers": 2,
    "pixel_decoder_ffn_dim": 256,
    "ffn_dim": 512,
    "shortest_edge": 384,
    "longest_edge": 768,
    "alpha": 0.3,  # these three chosen on 40 scenes of seed 777; used at inference only
    "beta": 0.9,
    "overlap_threshold": 0.4,
    "templates": "single",
}
TINY = FcClipConfig(**TINY_SIZES)
LARGER = Published(
    ("cityscapes", "mapillary-*"),
    {"shortest_edge": 1024, "longest_edge": 2560},
    "CMPF, Sec. 4.3, and FrozenSeg, Sec. 4.4; longest side of the official configurations",
)
COCO = Stage(368_750, lr=1e-4, milestones=(327_778, 355_092), weight_decay=0.05, max_grad_norm=0.01)
TINY_STAGE = Stage(3400, lr=1e-3, warmup=200, cooldown=0.35, weight_decay=0.05, max_grad_norm=0.01)


def convnext_l() -> Recipe:
    """COCO panoptic, 50 epochs of batch size 16 (published: 8 GPUs); ADE20K PQ 26.8, mIoU 34.1 in the paper of FC-CLIP.

    ``torchrun --nproc-per-node 8 -m lexiseg train fcclip-convnext-l --root DIR --output RUN``
    """
    return coco("fcclip-convnext-l", FcClipConfig())


def rn50x64() -> Recipe:
    """The same with OpenAI's CLIP RN50x64.

    ``torchrun --nproc-per-node 8 -m lexiseg train fcclip-rn50x64 --root DIR --output RUN``
    """
    return coco("fcclip-rn50x64", FcClipConfig())


def tiny() -> Recipe:
    """Seen classes and styles of the emoji world; about an hour on one core. Scores: docs/tiny.md.

    ``lexiseg train fcclip-tiny --output RUN``
    """
    return emoji("fcclip-tiny", TINY)


def coco(name: str, config: FcClipConfig) -> Recipe:
    """Published recipe, also of CMPF."""
    return Recipe(
        name, "coco-panoptic-train", (COCO,), config, precision="float16", validation=("ade20k-150",), save_every=5000
    )


def emoji(name: str, config: FcClipConfig) -> Recipe:
    """Recipe of a tiny model, also of CMPF."""
    return Recipe(
        name,
        "world:train",
        (TINY_STAGE,),
        config,
        batch_size=8,
        jitter=Jitter(side=384, min_scale=0.6, max_scale=1.5),
        loss=SetLossOptions(points=768),
        validation=("world:val", "world:style"),
        validate_every=1000,
        validate_limit=48,
        save_every=200,
    )


# Official checkpoints of the authors.
MODELS = (
    Variant(
        "fcclip-tiny",
        "embedded, works offline: FC-CLIP of the emoji world",
        FcClip,
        TINY,
        (parts.tiny_clip(TINY_CLIP, parts.CONVOLUTIONAL),),
        embedded("fcclip-tiny/model.safetensors"),
        recipe=tiny,
    ),
    *(
        Variant(
            name,
            f"FC-CLIP on a frozen CLIP {architecture}, trained on COCO panoptic",
            FcClip,
            FcClipConfig(),
            (parts.clip(architecture, tag, parts.CONVOLUTIONAL),),
            SOURCES[name],
            FcClipCheckpoint(),
            "coco",
            recipe,
            published=(LARGER,),
            printed=("FC-CLIP", backbone),
        )
        for name, architecture, tag, recipe, backbone in (
            ("fcclip-convnext-l", "convnext_large_d_320", LAION, convnext_l, "ConvNeXt-L"),
            ("fcclip-rn50x64", "RN50x64", OPENAI, rn50x64, "RN50x64"),
        )
    ),
)
