"""Models of SAM + CLIP."""

from __future__ import annotations

from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.methods import parts
from lexiseg.methods.parts import LAION, OPENAI, TINY_CLIP, TINY_VIT
from lexiseg.methods.sam_clip.config import SamClipConfig
from lexiseg.methods.sam_clip.model import SamClip
from lexiseg.methods.variant import Variant

# Chosen on 10 scenes of seed 778, in steps of 0.1 to 0.2: the tiny SAM predicts low IoUs.
TINY_GENERATOR = MaskGeneratorOptions(
    pred_iou_threshold=0.5, stability_threshold=0.5, box_nms_threshold=0.5, points_per_batch=128
)


def _tiny(side: int) -> SamClipConfig:
    return SamClipConfig(
        shortest_edge=side,
        longest_edge=2 * side,
        points_per_side=16,
        generator=TINY_GENERATOR,
        templates="single",  # as accurate as the 14 templates of ViLD, and 14 times faster
        overlap_threshold=0.4,
    )


MODELS = (
    Variant(
        "sam_clip-tiny",
        "embedded, works offline: a tiny CLIP and a tiny SAM of the emoji world",
        SamClip,
        _tiny(448),
        (parts.tiny_clip(TINY_CLIP), parts.tiny_sam()),
    ),
    Variant(
        "sam_clip-tiny-vit",
        "the same with a vision transformer as CLIP",
        SamClip,
        _tiny(320),
        (parts.tiny_clip(TINY_VIT), parts.tiny_sam()),
    ),
    Variant(
        "sam_clip-mobile",
        "for CPUs: CLIP ViT-B-16 (openai) names the masks of MobileSAM; nothing is trained",
        SamClip,
        SamClipConfig(shortest_edge=336, points_per_side=16),
        (parts.clip("ViT-B-16", OPENAI), parts.mobile()),
    ),
    *(
        Variant(
            name,
            f"CLIP {architecture} ({tag}) names the masks of SAM ViT-{size.upper()}; nothing is trained",
            SamClip,
            SamClipConfig(shortest_edge=side),
            (parts.clip(architecture, tag), parts.sam(size)),
        )
        for name, architecture, tag, size, side in (
            ("sam_clip-vit-b16", "ViT-B-16", OPENAI, parts.SAM_BASE, 448),
            ("sam_clip-vit-l14", "ViT-L-14-336", OPENAI, parts.SAM_LARGE, 448),
            ("sam_clip-convnext-l", "convnext_large_d_320", LAION, parts.SAM_HUGE, 800),
            ("sam_clip-rn50x64", "RN50x64", OPENAI, parts.SAM_HUGE, 800),
        )
    ),
)
