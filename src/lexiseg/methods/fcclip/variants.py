"""The published FC-CLIP models: which CLIP, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lexiseg.backbones.clip import ClipConvNeXt, ClipResNet, build_clip, load_clip
from lexiseg.backbones.state_dicts import read_state
from lexiseg.errors import WeightsError
from lexiseg.methods.base import Model, Source
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.fcclip.weights import OfficialCheckpoint, fill, from_official

DRIVE = "https://drive.google.com/file/d/"
LAION_TAG, OPENAI = "laion2b_s29b_b131k_ft_soup", "openai"


def published(name: str, architecture: str, tag: str, drive: str, weights: Mapping[str, str]) -> FcClip:
    """A published model. ``weights["fcclip"]`` is its checkpoint; CLIP is in it, or comes from the hub.

    Raises:
        WeightsError: no checkpoint is given, or it is another model's.
    """
    if "fcclip" not in weights:
        raise WeightsError(
            f"the weights of {name} cannot be fetched by a program: load {DRIVE}{drive} in a browser and give the file, "
            "--weights fcclip=FILE. A tiny model, whose weights are here, is sam_clip-tiny"
        )
    checkpoint = from_official(read_state(weights["fcclip"], entry="model"))
    segmenter = FcClip(frozen_clip(architecture, tag, checkpoint, weights.get("clip")), behaviour="official")
    fill(segmenter, checkpoint.head, weights["fcclip"], ("clip",))
    return segmenter


def frozen_clip(architecture: str, tag: str, checkpoint: OfficialCheckpoint, file: str | None) -> ClipConvNeXt | ClipResNet:
    """The CLIP in a checkpoint, or if that leaves it out the one of a file or of the hub."""
    if file is not None or not checkpoint.clip:
        clip = load_clip(architecture, file or tag)
    else:
        clip = build_clip(architecture)
        missing, unexpected = clip.clip_model.load_state_dict(checkpoint.clip, strict=False)
        if problems := [*missing, *unexpected]:
            raise WeightsError(f"the checkpoint's CLIP is no {architecture}: {problems[0]} and {len(problems) - 1} more keys")
    assert isinstance(clip, ClipConvNeXt | ClipResNet)
    return clip


def skeleton(architecture: str) -> FcClip:
    """The same without weights."""
    clip = build_clip(architecture)
    assert isinstance(clip, ClipConvNeXt | ClipResNet)
    return FcClip(clip)


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


# The files are those that the authors name.
MODELS: dict[str, Model] = {
    "fcclip-convnext-l": _model("fcclip-convnext-l", "convnext_large_d_320", LAION_TAG, "1-91PIns86vyNaL3CzMmDD39zKGnPMtvj"),
    "fcclip-rn50x64": _model("fcclip-rn50x64", "RN50x64-quickgelu", OPENAI, "1rvfFVp5p3PZQsHp2NGVEBeYYcqgVVaZX"),
}
