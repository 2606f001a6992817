"""SAM-MI's models: which CLIP and SAM. The authors have not published code or weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lexiseg.backbones.clip import build_clip, load_clip
from lexiseg.backbones.sam_loading import load_sam, sam_vit
from lexiseg.errors import WeightsError
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg import variants as catseg
from lexiseg.methods.catseg.variants import OPENAI, transformer
from lexiseg.methods.sam_mi.model import SamMi
from lexiseg.methods.weights import fill_from, options_of

TINY_NAME, TINY_SAM = "sam_mi-tiny", "sam-tiny"
TINY: Mapping[str, Any] = {
    **catseg.TINY,
    "prompter_width": 32,
    "generator": {"quality_threshold": 0.5, "stability_threshold": 0.5, "box_nms_threshold": 0.5},  # as in sam_clip-tiny
}
SAM_HUB = "facebook/sam-vit-huge"
SIZES: Mapping[str, tuple[str, int]] = {
    "sam_mi-vit-b16": ("ViT-B-16-quickgelu", 384),
    "sam_mi-vit-l14": ("ViT-L-14-336-quickgelu", 336),
}


def trained(name: str, weights: Mapping[str, str]) -> SamMi:
    """A model trained here: ``weights["sam_mi"]`` is the folder of its weights, ``weights["sam"]`` SAM's.

    Raises:
        WeightsError: no folder is given, or it is another model's.
    """
    if "sam_mi" not in weights:
        raise WeightsError(
            f"nobody has published weights of {name}: train it (`lexiseg train {name}`) and give --weights sam_mi=FOLDER"
        )
    architecture, side = SIZES[name]
    options = options_of(weights["sam_mi"], {"side": side})
    clip = transformer(build_clip(architecture))
    segmenter = SamMi(clip, load_sam(weights.get("sam", SAM_HUB)), **options)
    fill_from(segmenter, weights["sam_mi"], model=name)
    return segmenter


def skeleton(architecture: str, options: Mapping[str, Any]) -> SamMi:
    """The same without weights, on SAM ViT-H."""
    return SamMi(transformer(build_clip(architecture)), sam_vit("h"), **options)


def untrained(architecture: str, weights: Mapping[str, str], options: Mapping[str, Any]) -> SamMi:
    """A model before its training: CLIP and SAM as they are on the hub, or in the files "clip" and "sam"."""
    clip, sam = load_clip(architecture, weights.get("clip", OPENAI)), load_sam(weights.get("sam", SAM_HUB))
    return SamMi(transformer(clip), sam, **options)


def untrained_tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> SamMi:
    """The tiny model before its training: the trained `catseg-tiny`, or the one in the folder "catseg", and the tiny SAM."""
    folder = weights.get("catseg", ASSETS / catseg.TINY_NAME)
    segmenter = _tiny(weights, options)
    started = catseg.tiny({**weights, "catseg": str(folder)})
    for name, part in started.parts().items():
        segmenter.parts()[name].load_state_dict(part.state_dict())
    return segmenter


def tiny(weights: Mapping[str, str]) -> SamMi:
    """The tiny model, trained; ``weights["sam_mi"]`` is the folder of another training by its recipe."""
    folder = weights.get("sam_mi", ASSETS / TINY_NAME)
    segmenter = _tiny(weights, options_of(folder, TINY))
    fill_from(segmenter, folder, model=TINY_NAME)
    return segmenter


def tiny_skeleton(options: Mapping[str, Any]) -> SamMi:
    """The tiny model without weights."""
    return SamMi(transformer(build_clip(ASSETS / catseg.TINY_CLIP)), load_sam(ASSETS / TINY_SAM), **options)


def _tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> SamMi:
    clip, sam = (weights.get(part, ASSETS / name) for part, name in (("clip", catseg.TINY_CLIP), ("sam", TINY_SAM)))
    return SamMi(transformer(load_clip(clip)), load_sam(sam), **options)


def _model(name: str) -> Model:
    architecture, side = SIZES[name]
    return Model(
        f"SAM-MI on a tuned CLIP {architecture.removesuffix('-quickgelu')} and a frozen SAM ViT-H",
        SamMi.tasks,
        (
            Source("sam", SAM_HUB, "model.safetensors", "Apache-2.0"),
            Source("sam_mi", None, f"{name}/model.safetensors", "your own", by_hand=f"lexiseg train {name}"),
        ),
        partial(trained, name),
        partial(skeleton, architecture, {"side": side}),
    )


MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: SAM-MI of the emoji world",
        SamMi.tasks,
        (
            Source("clip", None, f"{catseg.TINY_CLIP}/open_clip_model.safetensors", "Apache-2.0"),
            Source("sam", None, f"{TINY_SAM}/model.safetensors", "Apache-2.0"),
            Source("sam_mi", None, f"{TINY_NAME}/model.safetensors", "Apache-2.0"),
        ),
        tiny,
        partial(tiny_skeleton, TINY),
    ),
    **{name: _model(name) for name in SIZES},
}
