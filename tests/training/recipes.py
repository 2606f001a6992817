"""A recipe that is carried out in a second, for the tests of the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sources import Source
from lexiseg.losses.pixel_loss import PixelLossOptions
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods import MODELS
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.fcclip.config import FcClipConfig
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.recipe import Jitter, Recipe, Stage, with_overrides
from lexiseg.methods.variant import Part, Variant
from lexiseg.training.loop import train
from tests.laws.builders import COST_SIZES, SIZES, tiny_catseg, tiny_clip

CONFIG = FcClipConfig(**{**SIZES, "num_layers": 2, "pixel_decoder_layers": 1, "templates": "none"})


CATSEG_CONFIG = CatSegConfig(**{**COST_SIZES, "sliding": False, "max_classes": 0, "templates": "none"})


def _clip(kind: str) -> Part:
    """A CLIP that is the same whether or not it is asked for with weights."""
    return Part("clip", partial(tiny_clip, kind), lambda _: tiny_clip(kind))


def recipe(*settings: str) -> Recipe:
    """8 steps of 2 scenes of 64 pixels."""
    made = Recipe(
        "fcclip-test",
        "world:train:64",
        (Stage(8, lr=2e-3, warmup=2, cooldown=0.5, max_grad_norm=1.0),),
        CONFIG,
        batch_size=2,
        jitter=Jitter(side=64, min_scale=0.8, max_scale=1.3),
        loss=SetLossOptions(points=64),
        save_every=2,
        log_every=3,
    )
    return with_overrides(made, settings)


class LoudCatSeg(CatSeg):
    """A CAT-Seg that is sure of its pixels from the start."""

    def __init__(self, clip: ClipViT, config: CatSegConfig) -> None:
        super().__init__(clip, config)
        self.load_state_dict(tiny_catseg(**asdict(config)).state_dict())


def catseg_recipe(*settings: str) -> Recipe:
    """The same of a method that tunes both towers of its CLIP, and is asked for some of the names."""
    made = replace(
        recipe(),
        name="catseg-test",
        stages=(Stage(6, lr=2e-3, lr_multipliers={"clip": 0.1}, cosine=True),),
        model=CATSEG_CONFIG,
        loss=PixelLossOptions(),
        max_classes_per_batch=12,
    )
    return with_overrides(made, settings)


OWN = Source("nowhere", "your own", recipe="lexiseg train")
MODELS["fcclip-test"] = Variant("fcclip-test", "of the tests", FcClip, CONFIG, (_clip("convnext"),), OWN, recipe=recipe)
MODELS["catseg-test"] = Variant(
    "catseg-test", "of the tests", LoudCatSeg, CATSEG_CONFIG, (_clip("vit"),), OWN, recipe=catseg_recipe
)


def trained(folder: str, settings: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
    """Train in this process, with torchrun's environment variables if it is one of several."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    train(recipe(*settings), Path(folder), device="cpu", workers=0)
