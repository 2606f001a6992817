"""Models of MaskCLIP."""

from __future__ import annotations

from typing import Any

from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.mask2former import load_mask2former, mask2former
from lexiseg.methods import parts
from lexiseg.methods.base import Published, Segmenter
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.models import DRIVE
from lexiseg.methods.fcclip.models import MODELS as FCCLIP_MODELS
from lexiseg.methods.maskclip.config import MaskClipConfig
from lexiseg.methods.maskclip.model import MaskClip
from lexiseg.methods.maskclip.proposer import FcClipProposals
from lexiseg.methods.maskclip.weights import MaskClipCheckpoint
from lexiseg.methods.parts import OPENAI, TINY_VIT, embedded
from lexiseg.methods.variant import Part, Source, Variant

TINY_SIZES: dict[str, Any] = {
    "clip_image_size": 256,
    "shortest_edge": 256,
    "longest_edge": 512,
    "object_threshold": 0.0,
    "overlap_threshold": 0.4,
    "templates": "single",
}
COCO = Published(("coco-panoptic*",), {"object_threshold": 0.5}, "MaskCLIP, official configuration for COCO")
TINY = MaskClipConfig(**TINY_SIZES, relative_blocks=())
_FCCLIP_TINY = next(variant for variant in FCCLIP_MODELS if variant.name == "fcclip-tiny")


def _proposals(segmenter: Segmenter) -> FcClipProposals:
    assert isinstance(segmenter, FcClip)
    return FcClipProposals(segmenter)


TINY_PROPOSER = Part(
    "proposer",
    lambda: _proposals(_FCCLIP_TINY.empty()),
    lambda given: _proposals(_FCCLIP_TINY.load({} if given is None else {"fcclip": given})),
    embedded("fcclip-tiny/model.safetensors"),
)
"""Proposer with the masks of `fcclip-tiny`, or of an FC-CLIP trained by its recipe."""

MODELS = (
    Variant(
        "maskclip-tiny",
        "embedded, works offline: the masks of fcclip-tiny, named by CLIP's mask tokens, untrained",
        MaskClip,
        TINY,
        (parts.tiny_clip(TINY_VIT, ClipViT), TINY_PROPOSER),
    ),
    Variant(
        "maskclip-vit-l14",
        "MaskCLIP on CLIP ViT-L-14-336 and Mask2Former with a ResNet-50, trained on COCO panoptic",
        MaskClip,
        MaskClipConfig(),
        (
            parts.clip("ViT-L-14-336", OPENAI, ClipViT),
            Part("proposer", lambda: mask2former("r50", classes=0), lambda given: load_mask2former(given or "")),
        ),
        Source("its checkpoint", MaskClipCheckpoint.licence, manual_url=f"{DRIVE}1fzf4y-l-BwhBkxambk_yS4yrCwHOKij7"),
        MaskClipCheckpoint(),
        "coco",
        published=(COCO,),
    ),
)
