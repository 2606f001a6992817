"""Backbones as parts of a `Variant`: embedded in the package, on the hub, or in local files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lexiseg.backbones import grounding_dino as detectors
from lexiseg.backbones.clip import ClipBackbone, ClipMeanPooled, ClipResNet, build_clip, load_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.backbones.configs import ASSETS
from lexiseg.backbones.sam import SamFamily
from lexiseg.backbones.sam_loading import Architecture, build_sam, load_sam, mobile_sam, sam_vit
from lexiseg.backbones.sources import APACHE, SOURCES, Source
from lexiseg.errors import UsageError
from lexiseg.methods.variant import Part

YOUR_OWN = "your own"  # licence of weights that the user trains
TINY_CLIP, TINY_VIT, TINY_SAM = "clip-tiny-efficientnet", "clip-tiny-vit", "sam-tiny"
OPENAI, LAION, EVA = "openai", "laion2b_s29b_b131k_ft_soup", "merged2b_s11b_b114k"

SAM_BASE: Architecture = "b"
SAM_LARGE: Architecture = "l"
SAM_HUGE: Architecture = "h"

CONVOLUTIONAL = (ClipMeanPooled, ClipResNet)
"""CLIP image towers with feature maps at several strides."""


def embedded(file: str) -> Source:
    """Source of weights embedded in the package."""
    return Source(file, APACHE)


def trained_by(name: str) -> Source:
    """Source of weights that are not published: the user trains them by the recipe ``name``."""
    return Source(f"{name}/model.safetensors", YOUR_OWN, recipe=f"lexiseg train {name}")


def clip(architecture: str, tag: str, kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...] = ClipBackbone) -> Part:
    """Part for a published CLIP of open_clip whose image tower is one of ``kinds``."""
    name = f"{architecture}-quickgelu" if tag == OPENAI else architecture  # implied by the tag, not by the weights
    source = SOURCES[f"clip-{architecture}-{tag}"]
    return Part("clip", partial(_clip, kinds, name), partial(_clip_with_weights, kinds, name, tag), source)


def tiny_clip(folder: str, kinds: type[ClipBackbone] | tuple[type[ClipBackbone], ...] = ClipBackbone) -> Part:
    """Part for a CLIP embedded in the package, or in a folder of the user."""
    source = embedded(f"{folder}/open_clip_model.safetensors")
    return Part("clip", partial(_clip, kinds, str(ASSETS / folder)), partial(_clip_of_folder, kinds, folder), source)


def sam(architecture: Architecture) -> Part:
    """Part for a published SAM."""
    return _sam(SOURCES[f"sam-{architecture}"], partial(sam_vit, architecture))


def mobile() -> Part:
    """Part for the published MobileSAM."""
    return _sam(SOURCES["mobile_sam"], mobile_sam)


def sam2() -> Part:
    """Part for the smallest published SAM 2.1."""
    return _sam(SOURCES["sam2-t"], _empty_sam2)


def _sam(source: Source, empty: Callable[[], SamFamily]) -> Part:
    return Part("sam", empty, lambda given: load_sam(given or source.repository or source.fetch()), source)


def _empty_sam2() -> SamFamily:
    from transformers import Sam2Config  # heavy

    return build_sam(Sam2Config())  # the defaults are those of Hiera-T


def grounding_dino(architecture: detectors.Architecture, family: detectors.Family = "grounding-dino") -> Part:
    """Part for a published Grounding DINO or MM-Grounding-DINO."""
    source = SOURCES[f"{family}-{architecture}"]
    return Part(
        "detector",
        partial(detectors.grounding_dino, architecture, family),
        lambda given: detectors.load_grounding_dino(given or source.repository or ""),
        source,
    )


def tiny_sam() -> Part:
    """Part for the SAM embedded in the package."""
    folder, source = ASSETS / TINY_SAM, embedded(f"{TINY_SAM}/model.safetensors")
    return Part("sam", partial(load_sam, folder), lambda given: load_sam(given or folder), source)


def further_sam(name: str) -> Part:
    """Optional part for a second SAM, given as file, folder or repository."""
    return Part(name, partial(sam_vit, "b"), lambda given: load_sam(given or SOURCES["sam-h"].repository or ""), optional=True)


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
