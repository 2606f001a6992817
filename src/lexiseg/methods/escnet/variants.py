"""ESC-Net's models: which CLIP. The authors have not published code or weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.sam_loading import load_sam, sam_vit
from lexiseg.errors import WeightsError
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg.variants import OPENAI, TINY_CLIP, transformer
from lexiseg.methods.escnet.model import EscNet
from lexiseg.methods.weights import fill_from, options_of

TINY_NAME, TINY_SAM = "escnet-tiny", "sam-tiny"
TINY: Mapping[str, Any] = {
    "side": 256,
    "blocks": 2,  # as many as SAM has
    "sam_blocks": "pretrained",
    "prompts": ("points", "masks"),
    "width": 32,
    "window": 8,
    "decoder": (16, 16),
    "skips": (8, 8),
    "most": 48,  # as catseg-tiny
    "templates": "single",
    "trained_on": "emoji-seen",
}
SAM_HUB = "facebook/sam-vit-base"  # which SAM the paper does not say; its decoder is of one size in all  # [decided]
SIZES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "escnet-vit-b16": ("ViT-B-16-quickgelu", {"window": 7}),  # 21 × 21 cells
    "escnet-vit-l14": ("ViT-L-14-336-quickgelu", {"window": 12}),  # 24 × 24
}


def trained(name: str, weights: Mapping[str, str]) -> EscNet:
    """A model trained here: ``weights["escnet"]`` is the folder of its weights.

    Raises:
        WeightsError: no folder is given, or it is another model's.
    """
    if "escnet" not in weights:
        raise WeightsError(
            f"nobody has published weights of {name}: train it (`lexiseg train {name}`) and give --weights escnet=FOLDER"
        )
    architecture, options = SIZES[name]
    segmenter = skeleton(architecture, options_of(weights["escnet"], options))
    fill_from(segmenter, weights["escnet"], model=name)
    return segmenter


def skeleton(architecture: str, options: Mapping[str, Any]) -> EscNet:
    """The same without weights."""
    return EscNet(transformer(build_clip(architecture)), sam_vit("b"), **options)


def untrained(architecture: str, weights: Mapping[str, str], options: Mapping[str, Any]) -> EscNet:
    """A model before its training: CLIP and SAM as they are on the hub, or in the files "clip" and "sam"."""
    clip, sam = load_clip(architecture, weights.get("clip", OPENAI)), load_sam(weights.get("sam", SAM_HUB))
    return EscNet(transformer(clip), sam, **options)


def untrained_tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> EscNet:
    """The tiny model before its training, on the embedded CLIP and SAM or those in the folders "clip" and "sam"."""
    clip, sam = (weights.get(part, ASSETS / name) for part, name in (("clip", TINY_CLIP), ("sam", TINY_SAM)))
    return EscNet(transformer(load_clip(clip)), load_sam(sam), **options)


def tiny(weights: Mapping[str, str]) -> EscNet:
    """The tiny model, trained; ``weights["escnet"]`` is the folder of another training by its recipe."""
    folder = weights.get("escnet", ASSETS / TINY_NAME)
    segmenter = untrained_tiny(weights, options_of(folder, TINY))
    fill_from(segmenter, folder, model=TINY_NAME)
    return segmenter


def tiny_skeleton(options: Mapping[str, Any]) -> EscNet:
    """The tiny model without weights."""
    return EscNet(transformer(build_clip(ASSETS / TINY_CLIP)), load_sam(ASSETS / TINY_SAM), **options)


def _model(name: str) -> Model:
    architecture, options = SIZES[name]
    return Model(
        f"ESC-Net on a tuned CLIP {architecture.removesuffix('-quickgelu')} with blocks of SAM's decoder",
        EscNet.tasks,
        (Source("escnet", None, f"{name}/model.safetensors", "your own", by_hand=f"lexiseg train {name}"),),
        partial(trained, name),
        partial(skeleton, architecture, options),
    )


MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: ESC-Net of the emoji world",
        EscNet.tasks,
        (
            Source("clip", None, f"{TINY_CLIP}/open_clip_model.safetensors", "Apache-2.0"),
            Source("escnet", None, f"{TINY_NAME}/model.safetensors", "Apache-2.0"),
        ),
        tiny,
        partial(tiny_skeleton, TINY),
    ),
    **{name: _model(name) for name in SIZES},
}
