"""The published FC-CLIP models: which CLIP, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from lexiseg.backbones.clip import ClipBackbone, ClipMeanPooled, ClipResNet, build_clip, load_clip
from lexiseg.errors import WeightsError
from lexiseg.methods.base import ASSETS, Model, Source
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.weights import Checkpoint, read_checkpoint
from lexiseg.methods.weights import check, fill, fill_from, options_of

DRIVE = "https://drive.google.com/file/d/"
TINY_NAME, TINY_CLIP = "fcclip-tiny", "clip-tiny-efficientnet"
TINY: Mapping[str, Any] = {  # sizes of the tiny models, CMPF's too
    "queries": 24,
    "width": 96,
    "layers": 3,
    "heads": 4,
    "pixel_layers": 2,
    "pixel_feedforward": 256,
    "feedforward": 512,
    "side": 384,
    "longest": 768,
    "alpha": 0.3,  # these three chosen on 40 scenes of seed 777; they matter when the model is used, not when it is trained
    "beta": 0.9,
    "overlap": 0.4,
    "trained_on": "emoji-seen",
    "templates": "single",
}
LAION_TAG, OPENAI = "laion2b_s29b_b131k_ft_soup", "openai"


def published(name: str, architecture: str, tag: str, drive: str, weights: Mapping[str, str]) -> FcClip:
    """A published model. ``weights["fcclip"]`` is its checkpoint; CLIP is in it, or comes from the hub.

    Raises:
        WeightsError: no checkpoint is given, or it is another model's.
    """
    if "fcclip" not in weights:
        raise by_hand(name, "fcclip", drive)
    checkpoint = read_checkpoint(weights["fcclip"], name)
    segmenter = FcClip(frozen_clip(architecture, tag, checkpoint, weights.get("clip")), behaviour=checkpoint.behaviour)
    fill(segmenter, checkpoint.head, weights["fcclip"], ("clip",))
    return segmenter


def by_hand(name: str, part: str, drive: str) -> WeightsError:
    """What to say where the authors' file is not given."""
    return WeightsError(
        f"the weights of {name} cannot be fetched by a program: load {DRIVE}{drive} in a browser and give the file, "
        f"--weights {part}=FILE. A tiny model, whose weights are here, is {part}-tiny"
    )


def frozen_clip(architecture: str, tag: str, checkpoint: Checkpoint, file: str | None) -> ClipMeanPooled | ClipResNet:
    """The CLIP in a checkpoint, or if that leaves it out the one of a file or of the hub."""
    if file is not None or not checkpoint.clip:
        clip = load_clip(architecture, file or tag)
    else:
        clip = build_clip(architecture)
        check(checkpoint.clip, clip.clip_model.state_dict(), f"the checkpoint's CLIP, to be {architecture},")
        clip.clip_model.load_state_dict(checkpoint.clip)
    return convolutional(clip)


def skeleton(architecture: str, options: Mapping[str, Any] = MappingProxyType({})) -> FcClip:
    """The same without weights."""
    return FcClip(convolutional(build_clip(architecture)), **options)


def untrained(architecture: str, tag: str, weights: Mapping[str, str], options: Mapping[str, Any]) -> FcClip:
    """A published model before its training: CLIP as it is on the hub or in the file ``weights["clip"]``."""
    return FcClip(convolutional(load_clip(architecture, weights.get("clip", tag))), **options)


def untrained_tiny(weights: Mapping[str, str], options: Mapping[str, Any]) -> FcClip:
    """The tiny model before its training, on the embedded CLIP or the one in the folder ``weights["clip"]``."""
    return FcClip(convolutional(load_clip(weights.get("clip", ASSETS / TINY_CLIP))), **options)


def tiny(weights: Mapping[str, str]) -> FcClip:
    """The tiny model, trained; ``weights["fcclip"]`` is the folder of another training by its recipe."""
    folder = weights.get("fcclip", ASSETS / TINY_NAME)
    segmenter = untrained_tiny(weights, options_of(folder, TINY))
    fill_from(segmenter, folder, model=TINY_NAME)
    return segmenter


def tiny_skeleton(options: Mapping[str, Any]) -> FcClip:
    """The tiny model without weights."""
    return FcClip(convolutional(build_clip(ASSETS / TINY_CLIP)), **options)


def convolutional(clip: ClipBackbone) -> ClipMeanPooled | ClipResNet:
    """A CLIP that has maps of several strides."""
    assert isinstance(clip, ClipMeanPooled | ClipResNet)
    return clip


def _model(name: str, architecture: str, tag: str, drive: str) -> Model:
    source = Source("fcclip", None, f"{name}.pth", "Apache-2.0", by_hand=f"{DRIVE}{drive}")
    return Model(
        f"FC-CLIP on a frozen CLIP {architecture}, trained on COCO panoptic",
        FcClip.tasks,
        (source,),
        partial(published, name, architecture, tag, drive),
        partial(skeleton, architecture),
        optional=frozenset({"clip"}),
    )


def tiny_source(part: str, file: str) -> Source:
    """Weights inside the package."""
    return Source(part, None, file, "Apache-2.0")


# The files are those that the authors name.
MODELS: dict[str, Model] = {
    TINY_NAME: Model(
        "embedded, works offline: FC-CLIP of the emoji world",
        FcClip.tasks,
        (
            tiny_source("clip", f"{TINY_CLIP}/open_clip_model.safetensors"),
            tiny_source("fcclip", f"{TINY_NAME}/model.safetensors"),
        ),
        tiny,
        partial(tiny_skeleton, TINY),
    ),
    "fcclip-convnext-l": _model("fcclip-convnext-l", "convnext_large_d_320", LAION_TAG, "1-91PIns86vyNaL3CzMmDD39zKGnPMtvj"),
    "fcclip-rn50x64": _model("fcclip-rn50x64", "RN50x64-quickgelu", OPENAI, "1rvfFVp5p3PZQsHp2NGVEBeYYcqgVVaZX"),
}
