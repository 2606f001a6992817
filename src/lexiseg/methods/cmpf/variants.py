"""The published CMPF (FrozenSeg) models: which CLIP and SAM, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lexiseg.backbones.clip import ClipConvNeXt, ClipResNet, build_clip
from lexiseg.backbones.sam_loading import from_official_state, load_sam, sam_vit
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import WeightsError
from lexiseg.methods.base import Model, Source
from lexiseg.methods.cmpf.model import Cmpf
from lexiseg.methods.fcclip.variants import DRIVE, LAION_TAG, OPENAI, frozen_clip
from lexiseg.methods.fcclip.weights import fill, from_official

SAM_HUB = "facebook/sam-vit-base"


def published(name: str, architecture: str, tag: str, drive: str, weights: Mapping[str, str]) -> Cmpf:
    """A published model. ``weights["cmpf"]`` is its checkpoint; CLIP and SAM are in it, or come from the hub.

    Raises:
        WeightsError: no checkpoint is given, or it is another model's.
    """
    if "cmpf" not in weights:
        raise WeightsError(
            f"the weights of {name} cannot be fetched by a program: load {DRIVE}{drive} in a browser and give the file, "
            "--weights cmpf=FILE. A tiny model, whose weights are here, is sam_clip-tiny"
        )
    checkpoint = from_official(read_state(weights["cmpf"], entry="model"))
    within = checkpoint.sam and "sam" not in weights
    sam = from_official_state(checkpoint.sam, name) if within else load_sam(weights.get("sam", SAM_HUB))
    clip = frozen_clip(architecture, tag, checkpoint, weights.get("clip"))
    segmenter = Cmpf(clip, sam, behaviour="official")
    fill(segmenter, checkpoint.head, weights["cmpf"], ("clip", "sam"))
    return segmenter


def skeleton(architecture: str) -> Cmpf:
    """The same without weights."""
    clip = build_clip(architecture)
    assert isinstance(clip, ClipConvNeXt | ClipResNet)
    return Cmpf(clip, sam_vit("b"), behaviour="official")


def _model(name: str, architecture: str, tag: str, drive: str) -> Model:
    source = Source("cmpf", None, f"{name}.pth", "none stated by the authors", by_hand=f"{DRIVE}{drive}")
    return Model(
        f"CMPF (FrozenSeg) on a frozen CLIP {architecture} and a frozen SAM ViT-B, trained on COCO panoptic",
        Cmpf.tasks,
        (source,),
        partial(published, name, architecture, tag, drive),
        partial(skeleton, architecture),
        optional=frozenset({"clip", "sam"}),
    )


# The files are those that the authors name.
MODELS: dict[str, Model] = {
    "cmpf-convnext-l": _model("cmpf-convnext-l", "convnext_large_d_320", LAION_TAG, "1ThjVgY7nawm1AAP1LhrmGVlI3zr1EYMG"),
    "cmpf-rn50x64": _model("cmpf-rn50x64", "RN50x64-quickgelu", OPENAI, "1wiPKPczTXrH1cPrDbf-l9NGdOkMUUikw"),
}
