"""A recipe that is carried out in a second, for the tests of the engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lexiseg.losses.pixel_loss import PixelLossOptions
from lexiseg.losses.set_loss import SetLossOptions
from lexiseg.methods.base import Segmenter
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.recipe import Jitter, Recipe, Stage, changed
from lexiseg.training.loop import train
from tests.laws.builders import SIZES, tiny_catseg, tiny_clip


def build(_: Mapping[str, str], options: Mapping[str, Any]) -> Segmenter:
    return FcClip(tiny_clip("convnext"), templates="none", **options)  # type: ignore[arg-type]


def recipe(*settings: str) -> Recipe:
    """8 steps of 2 scenes of 64 pixels."""
    made = Recipe(
        "fcclip-test",
        build,
        lambda options: build({}, options),
        "world:train:64",
        (Stage(8, rate=2e-3, warmup=2, cooldown=0.5, clip=1.0),),
        model={**SIZES, "layers": 2, "pixel_layers": 1},
        batch=2,
        jitter=Jitter(side=64, least=0.8, most=1.3),
        loss=SetLossOptions(points=64),
        save_every=2,
        log_every=3,
    )
    return changed(made, settings)


def build_catseg(_: Mapping[str, str], options: Mapping[str, Any]) -> Segmenter:
    return tiny_catseg(sliding=False, most=0, templates="none", **options)


def catseg_recipe(*settings: str) -> Recipe:
    """The same of a method that tunes both towers of its CLIP, and is asked for some of the names."""
    made = replace(
        recipe(),
        name="catseg-test",
        build=build_catseg,
        skeleton=lambda options: build_catseg({}, options),
        stages=(Stage(6, rate=2e-3, multipliers={"clip": 0.1}, cosine=True),),
        model={},
        loss=PixelLossOptions(),
        classes=12,
    )
    return changed(made, settings)


if __name__ == "__main__":  # python -m tests.training.recipes FOLDER [key=value ...]
    torch.set_num_threads(1)
    train(recipe(*sys.argv[2:]), Path(sys.argv[1]), device="cpu", workers=0)
