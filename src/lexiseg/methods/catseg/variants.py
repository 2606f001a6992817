"""The published CAT-Seg models: which CLIP, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lexiseg.backbones.clip import ClipBackbone, build_clip, load_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.errors import WeightsError
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.catseg.weights import read_checkpoint
from lexiseg.methods.weights import fill, fill_from, options_of

TINY_NAME, TINY_CLIP, OPENAI = "catseg-tiny", "clip-tiny-vit", "openai"
TINY: Mapping[str, Any] = {
    "side": 256,
    "sliding": False,
    "guides": (32, 16),
    "width": 32,
    "appearance": 32,
    "text": 32,
    "decoder": (16, 16),
    "decoder_guides": (8, 8),
    "window": 8,
    "most": 48,  # chosen on scenes of seed 777; trainings ask for hardly more names at once
    "filled": False,
    "templates": "single",
    "trained_on": "emoji-seen",
}
PAGE = "https://huggingface.co/spaces/hamacojr/CAT-Seg-weights/tree/main"


def published(name: str, architecture: str, side: int, weights: Mapping[str, str]) -> CatSeg:
    """A published model. ``weights["catseg"]`` is its checkpoint, the tuned CLIP included.

    Raises:
        WeightsError: no checkpoint is given, or it is another model's.
    """
    if "catseg" not in weights:
        raise WeightsError(
            f"the weights of {name} are no model of the hub: fetch them from {PAGE} and give the file, --weights catseg=FILE"
        )
    tensors, behaviour = read_checkpoint(weights["catseg"], name)
    segmenter = skeleton(architecture, {"side": side, "behaviour": behaviour})
    fill(segmenter, tensors, weights["catseg"], ())
    return segmenter


def skeleton(architecture: str, options: Mapping[str, Any]) -> CatSeg:
    """The same without weights."""
    return CatSeg(transformer(build_clip(architecture)), **options)


def untrained(architecture: str, weights: Mapping[str, str], options: Mapping[str, Any]) -> CatSeg:
    """A published model before its training: CLIP as it is on the hub or in the file ``weights["clip"]``."""
    return CatSeg(transformer(load_clip(architecture, weights.get("clip", OPENAI))), **options)


def untrained_tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> CatSeg:
    """The tiny model before its training, on the embedded CLIP or the one in the folder ``weights["clip"]``."""
    return CatSeg(transformer(load_clip(weights.get("clip", ASSETS / TINY_CLIP))), **options)


def tiny(weights: Mapping[str, str]) -> CatSeg:
    """The tiny model, trained; ``weights["catseg"]`` is the folder of another training by its recipe."""
    folder = weights.get("catseg", ASSETS / TINY_NAME)
    segmenter = untrained_tiny(weights, options_of(folder, TINY))
    fill_from(segmenter, folder, model=TINY_NAME)
    return segmenter


def tiny_skeleton(options: Mapping[str, Any]) -> CatSeg:
    """The tiny model without weights."""
    return CatSeg(transformer(build_clip(ASSETS / TINY_CLIP)), **options)


def transformer(clip: ClipBackbone) -> ClipViT:
    """A CLIP whose image tower is a vision transformer."""
    assert isinstance(clip, ClipViT)
    return clip


def _model(name: str, architecture: str, side: int, file: str) -> Model:
    return Model(
        f"CAT-Seg on a tuned CLIP {architecture.removesuffix('-quickgelu')}, trained on COCO-Stuff",
        CatSeg.tasks,
        (Source("catseg", None, file, "MIT", by_hand=PAGE),),
        partial(published, name, architecture, side),
        partial(skeleton, architecture, {"side": side, "behaviour": "official"}),
    )


MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: CAT-Seg of the emoji world",
        CatSeg.tasks,
        (
            Source("clip", None, f"{TINY_CLIP}/open_clip_model.safetensors", "Apache-2.0"),
            Source("catseg", None, f"{TINY_NAME}/model.safetensors", "Apache-2.0"),
        ),
        tiny,
        partial(tiny_skeleton, TINY),
    ),
    "catseg-vit-b16": _model("catseg-vit-b16", "ViT-B-16-quickgelu", 384, "model_base.pth"),
    "catseg-vit-l14": _model("catseg-vit-l14", "ViT-L-14-336-quickgelu", 336, "model_large.pth"),
}
