"""FOV-Seg's models: which CLIP and which mask generator. The authors have not published code or weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.mask2former import load_mask2former, mask2former
from lexiseg.errors import WeightsError
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg.variants import OPENAI, TINY_CLIP, transformer
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.fovseg.model import FovSeg
from lexiseg.methods.maskclip import variants as maskclip
from lexiseg.methods.weights import fill_from, options_of

TINY_NAME = "fovseg-tiny"
TINY: Mapping[str, Any] = {**maskclip.TINY, "teva": True, "adapter": 2, "trained_on": "emoji-seen"}


PROPOSER_HUB = "facebook/mask2former-swin-base-coco-panoptic"
SIZES: Mapping[str, str] = {"fovseg-vit-b16": "ViT-B-16-quickgelu", "fovseg-vit-l14": "ViT-L-14-336-quickgelu"}


def trained(name: str, weights: Mapping[str, str]) -> FovSeg:
    """A model trained here: ``weights["fovseg"]`` is the folder of its weights, ``weights["mask2former"]`` the generator's.

    Raises:
        WeightsError: no folder is given, or it is another model's.
    """
    if "fovseg" not in weights:
        raise WeightsError(
            f"nobody has published weights of {name}: train it (`lexiseg train {name}`) and give --weights fovseg=FOLDER"
        )
    clip, proposer = build_clip(SIZES[name]), load_mask2former(weights.get("mask2former", PROPOSER_HUB))
    segmenter = FovSeg(transformer(clip), proposer, **options_of(weights["fovseg"], {"classifier_side": 896}))
    fill_from(segmenter, weights["fovseg"], model=name)
    return segmenter


def skeleton(architecture: str, options: Mapping[str, Any]) -> FovSeg:
    """The same without weights, on the masks of Mask2Former with a Swin-B."""
    return FovSeg(transformer(build_clip(architecture)), mask2former("swin-b"), **options)


def untrained(architecture: str, weights: Mapping[str, str], options: Mapping[str, Any]) -> FovSeg:
    """A model before its training: CLIP and Mask2Former as they are on the hub, or in "clip" and "mask2former"."""
    clip = transformer(load_clip(architecture, weights.get("clip", OPENAI)))
    return FovSeg(clip, load_mask2former(weights.get("mask2former", PROPOSER_HUB)), **options)


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


def _model(name: str) -> Model:
    architecture = SIZES[name]
    return Model(
        f"FOV-Seg on CLIP {architecture.removesuffix('-quickgelu')} and a frozen Mask2Former with a Swin-B",
        FovSeg.tasks,
        (
            Source("mask2former", PROPOSER_HUB, "model.safetensors", "other (see its page)"),
            Source("fovseg", None, f"{name}/model.safetensors", "your own", by_hand=f"lexiseg train {name}"),
        ),
        partial(trained, name),
        partial(skeleton, architecture, {}),
    )


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
    **{name: _model(name) for name in SIZES},
}
