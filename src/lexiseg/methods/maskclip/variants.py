"""MaskCLIP's models: which CLIP and which generator, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.mask2former import from_official_state, mask2former
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg.variants import OPENAI, TINY_CLIP, transformer
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.maskclip.proposer import FcClipProposals
from lexiseg.methods.maskclip.weights import read_checkpoint
from lexiseg.methods.weights import check

NAME, ARCHITECTURE = "maskclip-vit-l14", "ViT-L-14-336-quickgelu"
DRIVE = "1fzf4y-l-BwhBkxambk_yS4yrCwHOKij7"
TINY_NAME = "maskclip-tiny"
TINY: Mapping[str, Any] = {"classifier_side": 256, "side": 256, "longest": 512, "overlap": 0.4}


def published(weights: Mapping[str, str]) -> MaskClip:
    """The published model. ``weights["maskclip"]`` is its checkpoint; the text tower is CLIP's, of the hub or of "clip".

    Raises:
        WeightsError: no checkpoint is given, or it is another model's.
    """
    if "maskclip" not in weights:
        raise fcclip.by_hand(NAME, "maskclip", DRIVE)
    checkpoint = read_checkpoint(weights["maskclip"])
    clip = transformer(load_clip(ARCHITECTURE, weights.get("clip", OPENAI)))
    own = clip.clip_model.state_dict()
    check(checkpoint.vision, {name: own[name] for name in own if name.startswith("visual.")}, weights["maskclip"])
    clip.clip_model.load_state_dict({**own, **checkpoint.vision})
    segmenter = MaskClip(clip, from_official_state(checkpoint.proposer, weights["maskclip"]))
    check(checkpoint.relative, segmenter.relative.state_dict(), weights["maskclip"])
    segmenter.relative.load_state_dict(checkpoint.relative)
    return segmenter


def skeleton() -> MaskClip:
    """The same without weights."""
    return MaskClip(transformer(build_clip(ARCHITECTURE)), mask2former("r50", classes=0))


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
    NAME: Model(
        "MaskCLIP on CLIP ViT-L-14-336 and Mask2Former with a ResNet-50, trained on COCO panoptic",
        MaskClip.tasks,
        (Source("maskclip", None, "its checkpoint", "unknown", by_hand=f"{fcclip.DRIVE}{DRIVE}"),),
        published,
        skeleton,
    ),
}
