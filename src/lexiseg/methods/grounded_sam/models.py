"""Models of Grounded-SAM."""

from __future__ import annotations

from lexiseg.methods import parts
from lexiseg.methods.grounded_sam.config import GroundedSamConfig
from lexiseg.methods.grounded_sam.model import GroundedSam
from lexiseg.methods.variant import Part, Variant


def _variant(name: str, detector: str, segmenter: str, *backbones: Part) -> Variant:
    summary = f"{detector} detects boxes of names, {segmenter} segments them; nothing is trained"
    return Variant(f"grounded_sam-{name}", summary, GroundedSam, GroundedSamConfig(), backbones)


SWIN_T, SWIN_B = parts.grounding_dino("swin-t"), parts.grounding_dino("swin-b")
MM_SWIN_T = parts.grounding_dino("swin-t", "mm-grounding-dino")

MODELS = (
    _variant("swin-t", "Grounding DINO Swin-T", "SAM ViT-B", SWIN_T, parts.sam("b")),
    _variant("swin-b", "Grounding DINO Swin-B", "SAM ViT-H", SWIN_B, parts.sam("h")),
    _variant("swin-t-sam2", "Grounding DINO Swin-T", "SAM 2.1 Hiera-T", SWIN_T, parts.sam2()),
    _variant("mm-swin-t", "MM-Grounding-DINO Swin-T", "SAM ViT-B", MM_SWIN_T, parts.sam("b")),
)
