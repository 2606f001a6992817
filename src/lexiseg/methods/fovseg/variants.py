"""FOV-Seg's models: which CLIP and which mask generator. The authors have not published code or weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg.variants import TINY_CLIP, transformer
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.maskclip import variants as maskclip
from lexiseg.methods.weights import fill_from, options_of

TINY_NAME = "fovseg-tiny"
TINY: Mapping[str, Any] = {**maskclip.TINY, "trained_on": "emoji-seen"}


def untrained_tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> FovSeg:
    """The tiny model before its training: the embedded CLIP, or one in the folder "clip", on the masks of `fcclip-tiny`."""
    clip = transformer(load_clip(weights.get("clip", ASSETS / TINY_CLIP)))
    return FovSeg(clip, maskclip.tiny_proposer(weights), **options)


def tiny(weights: Mapping[str, str]) -> FovSeg:
    """The tiny model, trained; ``weights["fovseg"]`` is the folder of another training by its recipe."""
    folder = weights.get("fovseg", ASSETS / TINY_NAME)
    segmenter = untrained_tiny(weights, options_of(folder, TINY))
    fill_from(segmenter, folder, model=TINY_NAME)
    return segmenter


def tiny_skeleton(options: Mapping[str, Any]) -> FovSeg:
    """The tiny model without weights of its own."""
    return FovSeg(transformer(build_clip(ASSETS / TINY_CLIP)), maskclip.tiny_proposer({}), **options)


MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: FOV-Seg of the emoji world",
        FovSeg.tasks,
        (
            Source("clip", None, f"{TINY_CLIP}/open_clip_model.safetensors", "Apache-2.0"),
            Source("fcclip", None, f"{fcclip.TINY_NAME}/model.safetensors", "Apache-2.0"),
            Source("fovseg", None, f"{TINY_NAME}/model.safetensors", "Apache-2.0"),
        ),
        tiny,
        partial(tiny_skeleton, TINY),
    ),
}
