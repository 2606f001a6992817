"""Backbones as parts of a `Variant`: embedded in the package, on the hub, or in local files."""

from __future__ import annotations

from functools import partial

from lexiseg.backbones import grounding_dino as detectors
from lexiseg.backbones.clip import ClipBackbone, ClipMeanPooled, ClipResNet, build_clip, load_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.sam import SamFamily
from lexiseg.backbones.sam_loading import Architecture, build_sam, load_sam, sam_vit
from lexiseg.errors import UsageError
from lexiseg.methods.variant import ASSETS, Part, Source

TINY_CLIP, TINY_VIT, TINY_SAM = "clip-tiny-efficientnet", "clip-tiny-vit", "sam-tiny"
OPENAI, LAION, EVA = "openai", "laion2b_s29b_b131k_ft_soup", "merged2b_s11b_b114k"
APACHE, MIT = "Apache-2.0", "MIT"

SAM_BASE: Architecture = "b"
SAM_LARGE: Architecture = "l"
SAM_HUGE: Architecture = "h"

CONVOLUTIONAL = (ClipMeanPooled, ClipResNet)
"""CLIP image towers with feature maps at several strides."""

_CLIP_REPOSITORIES = {
    ("ViT-B-16", OPENAI): "timm/vit_base_patch16_clip_224.openai",
    ("ViT-L-14-336", OPENAI): "timm/vit_large_patch14_clip_336.openai",
    ("RN50x64", OPENAI): "timm/resnet50x64_clip.openai",
    ("EVA01-g-14-plus", EVA): "timm/eva_giant_patch14_plus_clip_224.merged2b_s11b_b114k",
    ("convnext_large_d_320", LAION): "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}
_SAM_REPOSITORIES: dict[Architecture, str] = {
    "b": "facebook/sam-vit-base",
    "l": "facebook/sam-vit-large",
    "h": "facebook/sam-vit-huge",
}
_SAM2_REPOSITORY = "facebook/sam2.1-hiera-tiny"
_DETECTOR_REPOSITORIES: dict[tuple[str, str], str] = {
    ("grounding-dino", "swin-t"): "IDEA-Research/grounding-dino-tiny",
    ("grounding-dino", "swin-b"): "IDEA-Research/grounding-dino-base",
    ("mm-grounding-dino", "swin-t"): "openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det",
}


def embedded(file: str) -> Source:
    """Source of weights embedded in the package."""
    return Source(file, APACHE)


def clip(architecture: str, tag: str, kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...] = ClipBackbone) -> Part:
    """Part for a published CLIP of open_clip whose image tower is one of ``kinds``."""
    name = f"{architecture}-quickgelu" if tag == OPENAI else architecture  # implied by the tag, not by the weights
    source = Source("open_clip_model.safetensors", MIT, _CLIP_REPOSITORIES[architecture, tag])
    return Part("clip", partial(_clip, kinds, name), partial(_clip_with_weights, kinds, name, tag), source)


def tiny_clip(folder: str, kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...] = ClipBackbone) -> Part:
    """Part for a CLIP embedded in the package, or in a folder of the user."""
    source = embedded(f"{folder}/open_clip_model.safetensors")
    return Part("clip", partial(_clip, kinds, str(ASSETS / folder)), partial(_clip_of_folder, kinds, folder), source)


def sam(architecture: Architecture) -> Part:
    """Part for a published SAM."""
    repository = _SAM_REPOSITORIES[architecture]
    source = Source("model.safetensors", APACHE, repository)
    return Part("sam", partial(sam_vit, architecture), lambda given: load_sam(given or repository), source)


def sam2() -> Part:
    """Part for the smallest published SAM 2.1."""
    source = Source("model.safetensors", APACHE, _SAM2_REPOSITORY)
    return Part("sam", _empty_sam2, lambda given: load_sam(given or _SAM2_REPOSITORY), source)


def _empty_sam2() -> SamFamily:
    from transformers import Sam2Config  # heavy

    return build_sam(Sam2Config())  # the defaults are those of Hiera-T


def grounding_dino(architecture: detectors.Architecture, family: detectors.Family = "grounding-dino") -> Part:
    """Part for a published Grounding DINO or MM-Grounding-DINO."""
    repository = _DETECTOR_REPOSITORIES[family, architecture]
    source = Source("model.safetensors", APACHE, repository)
    return Part(
        "detector",
        partial(detectors.grounding_dino, architecture, family),
        lambda given: detectors.load_grounding_dino(given or repository),
        source,
    )


def tiny_sam() -> Part:
    """Part for the SAM embedded in the package."""
    folder, source = ASSETS / TINY_SAM, embedded(f"{TINY_SAM}/model.safetensors")
    return Part("sam", partial(load_sam, folder), lambda given: load_sam(given or folder), source)


def further_sam(name: str) -> Part:
    """Optional part for a second SAM, given as file, folder or repository."""
    return Part(name, partial(sam_vit, "b"), lambda given: load_sam(given or _SAM_REPOSITORIES["h"]), optional=True)


def _clip(kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...], name: str) -> ClipBackbone:
    return _of_kind(build_clip(name), kinds, name)


def _clip_with_weights(
    kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...], name: str, tag: str, given: str | None
) -> ClipBackbone:
    return _of_kind(load_clip(name, given or tag), kinds, given or name)


def _clip_of_folder(kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...], folder: str, given: str | None) -> ClipBackbone:
    return _of_kind(load_clip(given or ASSETS / folder), kinds, given or folder)


def _of_kind(backbone: ClipBackbone, kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...], name: str) -> ClipBackbone:
    if isinstance(backbone, kinds):
        return backbone
    wanted = "a vision transformer" if kinds is ClipViT else "a ConvNeXt, an EfficientNet or a ResNet"
    raise UsageError(f"the image tower of CLIP {name} is unsupported by this method; choose a CLIP with {wanted}")
