"""The models of SAM + CLIP: which CLIP with which SAM, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.backbones.sam_loading import Architecture, load_sam, sam_vit
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.sam_clip.model import SamClip

OPENAI, LAION = "openai", "laion2b_s29b_b131k_ft_soup"
LAION_CONVNEXT = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
# Chosen on 10 scenes of seed 778, in steps of 0.1 to 0.2: the tiny SAM is modest about its masks.
TINY_OPTIONS = MaskGeneratorOptions(quality_threshold=0.5, stability_threshold=0.5, box_nms_threshold=0.5, points_per_batch=128)
TINY_OVERLAP = 0.4
SAM_HUB: Mapping[Architecture, str] = {
    "b": "facebook/sam-vit-base",
    "l": "facebook/sam-vit-large",
    "h": "facebook/sam-vit-huge",
}


def tiny(clip: str, side: int, weights: Mapping[str, str]) -> SamClip:
    """An embedded model, trained on the emoji world by `lexiseg.training`."""
    clip_folder, sam_folder = weights.get("clip", ASSETS / clip), weights.get("sam", ASSETS / "sam-tiny")
    return SamClip(
        load_clip(clip_folder),
        load_sam(sam_folder),
        side=side,
        longest=2 * side,
        points=16,
        options=TINY_OPTIONS,
        templates="single",  # names as many regions rightly as the 14 sentences of ViLD, and is embedded 14 times sooner
        overlap=TINY_OVERLAP,
    )


def published(architecture: str, tag: str, sam: Architecture, side: int, weights: Mapping[str, str]) -> SamClip:
    """A published CLIP with a published SAM; ``weights`` may name local files for "clip" and "sam"."""
    name = f"{architecture}-quickgelu" if tag == OPENAI else architecture  # a file does not say its activation; a tag does
    return SamClip(load_clip(name, weights.get("clip", tag)), load_sam(weights.get("sam", SAM_HUB[sam])), side=side)


def skeleton(architecture: str, sam: Architecture, side: int) -> SamClip:
    """The same without weights."""
    return SamClip(build_clip(architecture), sam_vit(sam), side=side)


def _tiny_model(clip: str, summary: str, side: int) -> Model:
    sources = (
        Source("clip", None, f"{clip}/open_clip_model.safetensors", "Apache-2.0"),
        Source("sam", None, "sam-tiny/model.safetensors", "Apache-2.0"),
    )
    load = partial(tiny, clip, side)
    return Model(summary, SamClip.tasks, sources, load, partial(load, {}))


def _published_model(architecture: str, tag: str, repository: str, sam: Architecture, side: int) -> Model:
    clip = Source("clip", repository, "open_clip_model.safetensors", "MIT")
    return Model(
        f"CLIP {architecture} ({tag}) names the masks of SAM ViT-{sam.upper()}; nothing is trained",
        SamClip.tasks,
        (clip, Source("sam", SAM_HUB[sam], "model.safetensors", "Apache-2.0")),
        partial(published, architecture, tag, sam, side),
        partial(skeleton, architecture, sam, side),
    )


MODELS: dict[str, Model] = {
    "sam_clip-tiny": _tiny_model(
        "clip-tiny-efficientnet", "embedded, works offline: a tiny CLIP and a tiny SAM of the emoji world", 448
    ),
    "sam_clip-tiny-vit": _tiny_model("clip-tiny-vit", "the same with a vision transformer as CLIP", 320),
    "sam_clip-vit-b16": _published_model("ViT-B-16", OPENAI, "timm/vit_base_patch16_clip_224.openai", "b", 448),
    "sam_clip-vit-l14": _published_model("ViT-L-14-336", OPENAI, "timm/vit_large_patch14_clip_336.openai", "l", 448),
    "sam_clip-convnext-l": _published_model("convnext_large_d_320", LAION, LAION_CONVNEXT, "h", 800),
    "sam_clip-rn50x64": _published_model("RN50x64", OPENAI, "timm/resnet50x64_clip.openai", "h", 800),
}
