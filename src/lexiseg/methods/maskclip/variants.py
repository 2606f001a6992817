"""MaskCLIP's models: which CLIP and which generator, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lexiseg.backbones.clip import load_clip
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg.variants import TINY_CLIP, transformer
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.maskclip.proposer import FcClipProposals

TINY_NAME = "maskclip-tiny"
TINY: Mapping[str, Any] = {"classifier_side": 256, "side": 256, "longest": 512, "overlap": 0.4}


def tiny_proposer(weights: Mapping[str, str]) -> FcClipProposals:
    """The masks of `fcclip-tiny`, or of the one in the folder ``weights["fcclip"]``."""
    return FcClipProposals(fcclip.tiny({part: weights[part] for part in ("fcclip",) if part in weights}))


def tiny(weights: Mapping[str, str]) -> MaskClip:
    """The tiny model: nothing of it is trained, its attention to masks is plain."""
    clip = transformer(load_clip(weights.get("clip", ASSETS / TINY_CLIP)))
    return MaskClip(clip, tiny_proposer(weights), relative=(), **TINY)


MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: the masks of fcclip-tiny, named by CLIP's mask tokens, untrained",
        MaskClip.tasks,
        (
            Source("clip", None, f"{TINY_CLIP}/open_clip_model.safetensors", "Apache-2.0"),
            Source("fcclip", None, f"{fcclip.TINY_NAME}/model.safetensors", "Apache-2.0"),
        ),
        tiny,
        lambda: tiny({}),
    ),
}
