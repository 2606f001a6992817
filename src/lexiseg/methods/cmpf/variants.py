"""The published CMPF (FrozenSeg) models: which CLIP and SAM, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.sam_loading import from_official_state, load_sam, sam_vit
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.cmpf.sam_masks import OFFICIAL, SamMasks
from lexiseg.methods.fcclip import variants as fcclip
from lexiseg.methods.fcclip.variants import DRIVE, LAION_TAG, OPENAI, TINY_CLIP, convolutional, frozen_clip
from lexiseg.methods.fcclip.weights import read_checkpoint
from lexiseg.methods.weights import fill, fill_from, options_of

SAM_HUB = "facebook/sam-vit-base"
TINY_NAME, TINY_SAM = "cmpf-tiny", "sam-tiny"
TINY: Mapping[str, Any] = {  # with three decoder layers only the first looks at the coarsest features
    **fcclip.TINY,
    "query_layers": (1, 2),
    "feature_layers": (1,),
    "sam_layers": 2,
}


def published(name: str, architecture: str, tag: str, drive: str, weights: Mapping[str, str]) -> Cmpf:
    """A published model. ``weights["cmpf"]`` is its checkpoint; CLIP and SAM are in it, or come from the hub.

    With ``weights["mask_sam"]`` that SAM, in the paper ViT-H, makes masks for the ensemble of masks; without there is none.

    Raises:
        WeightsError: no checkpoint is given, or it is another model's.
    """
    if "cmpf" not in weights:
        raise fcclip.by_hand(name, "cmpf", drive)
    checkpoint = read_checkpoint(weights["cmpf"], name)
    within = checkpoint.sam and "sam" not in weights
    sam = from_official_state(checkpoint.sam, name) if within else load_sam(weights.get("sam", SAM_HUB))
    clip = frozen_clip(architecture, tag, checkpoint, weights.get("clip"))
    masks: dict[str, Any] = {}
    if "mask_sam" in weights:
        asked = OFFICIAL if checkpoint.behaviour == "official" else SamMasks()
        masks = {"masks": asked, "mask_sam": load_sam(weights["mask_sam"])}
    segmenter = Cmpf(clip, sam, behaviour=checkpoint.behaviour, **masks)
    fill(segmenter, checkpoint.head, weights["cmpf"], ("clip", "sam", "mask_sam"))
    return segmenter


def skeleton(architecture: str, options: Mapping[str, Any] = MappingProxyType({"behaviour": "official"})) -> Cmpf:
    """The same without weights."""
    return Cmpf(convolutional(build_clip(architecture)), sam_vit("b"), **options)


def untrained(architecture: str, tag: str, weights: Mapping[str, str], options: Mapping[str, Any]) -> Cmpf:
    """A published model before its training: CLIP and SAM as they are on the hub, or in the files "clip" and "sam"."""
    clip, sam = load_clip(architecture, weights.get("clip", tag)), load_sam(weights.get("sam", SAM_HUB))
    return Cmpf(convolutional(clip), sam, **options)


def untrained_tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> Cmpf:
    """The tiny model before its training, on the embedded CLIP and SAM or those in the folders "clip" and "sam"."""
    clip, sam = load_clip(weights.get("clip", ASSETS / TINY_CLIP)), load_sam(weights.get("sam", ASSETS / TINY_SAM))
    return Cmpf(convolutional(clip), sam, **options)


def tiny(weights: Mapping[str, str]) -> Cmpf:
    """The tiny model, trained; ``weights["cmpf"]`` is the folder of another training by its recipe."""
    folder = weights.get("cmpf", ASSETS / TINY_NAME)
    segmenter = untrained_tiny(weights, options_of(folder, TINY))
    fill_from(segmenter, folder, model=TINY_NAME)
    return segmenter


def tiny_skeleton(options: Mapping[str, Any]) -> Cmpf:
    """The tiny model without weights."""
    return Cmpf(convolutional(build_clip(ASSETS / TINY_CLIP)), load_sam(ASSETS / TINY_SAM), **options)


def _model(name: str, architecture: str, tag: str, drive: str) -> Model:
    source = Source("cmpf", None, f"{name}.pth", "none stated by the authors", by_hand=f"{DRIVE}{drive}")
    return Model(
        f"CMPF (FrozenSeg) on a frozen CLIP {architecture} and a frozen SAM ViT-B, trained on COCO panoptic",
        Cmpf.tasks,
        (source,),
        partial(published, name, architecture, tag, drive),
        partial(skeleton, architecture),
        optional=frozenset({"clip", "sam", "mask_sam"}),
    )


# The files are those that the authors name.
MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: CMPF of the emoji world",
        Cmpf.tasks,
        (
            fcclip.tiny_source("clip", f"{TINY_CLIP}/open_clip_model.safetensors"),
            fcclip.tiny_source("sam", f"{TINY_SAM}/model.safetensors"),
            fcclip.tiny_source("cmpf", f"{TINY_NAME}/model.safetensors"),
        ),
        tiny,
        partial(tiny_skeleton, TINY),
    ),
    "cmpf-convnext-l": _model("cmpf-convnext-l", "convnext_large_d_320", LAION_TAG, "1ThjVgY7nawm1AAP1LhrmGVlI3zr1EYMG"),
    "cmpf-rn50x64": _model("cmpf-rn50x64", "RN50x64-quickgelu", OPENAI, "1wiPKPczTXrH1cPrDbf-l9NGdOkMUUikw"),
}
