"""The published CAT-Seg models: which CLIP, and where their weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from lexiseg.backbones.clip import build_clip
from lexiseg.backbones.clip_vit import ClipViT
from lexiseg.ensembles import Behaviour
from lexiseg.errors import WeightsError
from lexiseg.methods.base import Model, Source
from lexiseg.methods.catseg.model import CatSeg
from lexiseg.methods.catseg.weights import read_checkpoint
from lexiseg.methods.weights import fill

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
    segmenter = skeleton(architecture, side, behaviour)
    fill(segmenter, tensors, weights["catseg"], ())
    return segmenter


def skeleton(architecture: str, side: int, behaviour: Behaviour = "official") -> CatSeg:
    """The same without weights."""
    clip = build_clip(architecture)
    assert isinstance(clip, ClipViT)
    return CatSeg(clip, side=side, behaviour=behaviour)


def _model(name: str, architecture: str, side: int, file: str) -> Model:
    return Model(
        f"CAT-Seg on a tuned CLIP {architecture.removesuffix('-quickgelu')}, trained on COCO-Stuff",
        CatSeg.tasks,
        (Source("catseg", None, file, "MIT", by_hand=PAGE),),
        partial(published, name, architecture, side),
        partial(skeleton, architecture, side),
    )


MODELS: dict[str, Model] = {
    "catseg-vit-b16": _model("catseg-vit-b16", "ViT-B-16-quickgelu", 384, "model_base.pth"),
    "catseg-vit-l14": _model("catseg-vit-l14", "ViT-L-14-336-quickgelu", 336, "model_large.pth"),
}
