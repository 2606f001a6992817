"""Mask2Former (Cheng et al., 2022) through transformers: masks of everything in an image, as frozen proposals.

Trained on COCO's panoptic classes, it is used here for its masks; its own class logits come with them.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.array_pickles import read_arrays
from lexiseg.backbones.configs import own_options, read_config
from lexiseg.backbones.hub import fetched
from lexiseg.backbones.mask2former_weights import (
    STAGES,
    from_official,
    from_transformers,
    mask2former_config,
    official_config,
)
from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.backbones.sam_weights import check_keys
from lexiseg.backbones.state_dicts import has_names, read_state
from lexiseg.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

_TRANSFORMERS = "model.pixel_level_module."  # begins transformers' names; official names have backbone and sem_seg_head
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0..255

Architecture = Literal["r50", "swin-t", "swin-b"]
_BACKBONES: dict[Architecture, dict[str, Any]] = {
    "r50": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
    "swin-t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin-b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
}


@dataclass(frozen=True)
class ClassifiedProposals(Proposals):
    """Masks with what Mask2Former takes them for.

    Attributes:
        classes: [B, Q, C + 1] logits of the C classes it was trained on and, last, "no object"; None if its checkpoint has no
            such head.
    """

    classes: Tensor | None = None


class Mask2Former(MaskProposer):
    """Mask2Former with a ResNet or a Swin; always in evaluation mode.

    Attributes:
        model: the transformers model, without what only its training needs.
        queries: Q.
        classes: C, "no object" not counted; 0 if it does not classify.
        stride: input pixels a cell of the mask grid.
        multiple: both sides of the input are padded to multiples of it.
    """

    model: Any  # transformers leaves its modules' parts without types

    def __init__(self, model: Mask2FormerForUniversalSegmentation) -> None:
        super().__init__()
        self.model = model
        settings: Any = model.config
        self.queries: int = settings.num_queries
        self.classes: int = settings.num_labels
        self.stride: int = settings.common_stride
        self.multiple: int = settings.feature_strides[-1]
        self.model.criterion = None
        if not self.classes:
            self.model.class_predictor = nn.Identity()
        if settings.backbone_config.model_type == "swin":
            self.model.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()  # nothing reads its result
        self.eval()

    def train(self, mode: bool = True) -> Mask2Former:  # noqa: ARG002 - it is frozen, running means and all
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> ClassifiedProposals:
        """The last layer's masks of images [B, 3, H, W], float RGB in 0..1, all of one size.

        The mask grid covers the padded images: h = H' / stride, and the padded_size is (H', W').
        """
        return self.propose(self.preprocess(images))

    def preprocess(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], float RGB in 0..1 -> network inputs [B, 3, H', W'].

        Normalised, then zeros to the right and below, up to multiples of `multiple`.
        """
        weight = next(self.model.parameters())
        values = images.to(weight.device).float() * 255
        mean, std = (values.new_tensor(rgb)[:, None, None] for rgb in (MEAN, STD))
        below, right = (-int(side) % self.multiple for side in images.shape[-2:])
        return functional.pad((values - mean) / std, (0, right, 0, below)).to(weight.dtype)

    def propose(self, inputs: Tensor) -> ClassifiedProposals:
        """Masks of network inputs [B, 3, H', W'], normalised and padded."""
        found = self.model(inputs, output_hidden_states=True, return_dict=True)
        classes = found.class_queries_logits if self.classes else None
        return ClassifiedProposals(found.masks_queries_logits, (inputs.shape[-2], inputs.shape[-1]), classes)


def mask2former(architecture: Architecture, *, classes: int = 133) -> Mask2Former:
    """Mask2Former for COCO's panoptic classes with random weights; works under ``torch.device("meta")``.

    Args:
        architecture: "r50", "swin-t", or "swin-b", whose windows of 12 are those pre-trained at 384 pixels on ImageNet-21k.
        classes: C; 0 for a model that does not classify.

    Raises:
        UsageError: there is no such architecture.
    """
    if architecture not in _BACKBONES:
        raise UsageError(f"unknown Mask2Former '{architecture}'; there are {', '.join(_BACKBONES)}")
    return build_mask2former(mask2former_config(_BACKBONES[architecture], classes=classes))


def build_mask2former(settings: Mask2FormerConfig | Any) -> Mask2Former:
    """Mask2Former of a transformers configuration; random weights.

    Raises:
        WeightsError: the configuration is of another model, or of a backbone that is neither a ResNet nor a Swin.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    if settings.model_type != "mask2former":
        raise WeightsError(f"the configuration is of a '{settings.model_type}' model; here is only mask2former")
    if settings.backbone_config.model_type not in {"resnet", "swin"}:
        raise WeightsError(
            f"this Mask2Former has a '{settings.backbone_config.model_type}'; only resnet and swin are known here"
        )
    return Mask2Former(Mask2FormerForUniversalSegmentation(settings))


def load_mask2former(source: str | Path) -> Mask2Former:
    """Mask2Former with its weights, float32, on the CPU.

    Args:
        source: a file as published (``model_final_94dc52.pkl``; or .pth or .safetensors with those names) with any ResNet or
            Swin; a folder of transformers (``config.json`` and ``model.safetensors``), or that ``model.safetensors`` with its
            config beside it; or a hub id (``facebook/mask2former-swin-tiny-coco-panoptic``), which is fetched unless it is in
            the cache already.

    Raises:
        WeightsError: nothing there, unreadable, or of another model; the message says what to put where.
    """
    path = Path(source)
    if path.is_dir():
        return _from_folder(_file_in(path, "config.json"), _file_in(path, "model.safetensors"), str(path))
    if path.is_file():
        if has_names(path, _TRANSFORMERS):
            return _from_folder(_file_in(path.parent, "config.json"), path, str(path))
        read = read_arrays if path.suffix == ".pkl" else read_state
        return from_official_state(read(path), str(path))
    name = str(source)
    if path.suffix in {".pkl", ".pth", ".pt", ".safetensors"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"no Mask2Former weights at {name}; give a file as published (model_final_94dc52.pkl), a folder with config.json "
            "and model.safetensors, or a hub id such as facebook/mask2former-swin-tiny-coco-panoptic"
        )
    return _from_folder(_from_hub(name, "config.json"), _from_hub(name, "model.safetensors"), name)


def from_official_state(state: Mapping[str, Tensor], source: str) -> Mask2Former:
    """Mask2Former from an official state dictionary, with or without its class head.

    Args:
        state: official key -> tensor.
        source: what to call it in messages.

    Raises:
        WeightsError: keys or shapes that are not Mask2Former's.
    """
    ours = from_official(state)
    return _filled(official_config(state, source), ours, source)


def _from_folder(config_file: Path, weights_file: Path, source: str) -> Mask2Former:
    options = read_config(config_file)
    kind = options.get("model_type")
    if kind != "mask2former":
        raise WeightsError(f"{source} holds a {reprlib.repr(kind)} model; give a folder or a hub id of a mask2former")
    try:
        settings = _config(options, config_file)
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # of values that no model has, transformers raises nearly anything
        raise WeightsError(f"transformers cannot build the model that {config_file} describes: {error!r:.300}") from error
    return _filled(settings, from_transformers(read_state(weights_file)), source)


def _config(options: Mapping[str, Any], config_file: Path) -> Mask2FormerConfig:
    """A configuration of transformers with the sizes that a ``config.json`` gives; nothing else of that file is heeded."""
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    said = options.get("backbone_config")
    kind = said.get("model_type") if isinstance(said, Mapping) else None
    if kind not in ("resnet", "swin"):
        raise WeightsError(f"{config_file}: this Mask2Former has a {reprlib.repr(kind)}; only resnet and swin are known here")
    backbone: type[Any] = ResNetConfig if kind == "resnet" else SwinConfig
    sizes = own_options(backbone, said, f"{config_file}, backbone_config")
    labels = options.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        raise WeightsError(f"{config_file}: id2label must be an object of names of classes, not {reprlib.repr(labels)}")
    named = {} if labels is None else {"id2label": {index: str(index) for index in range(len(labels))}}
    made = Mask2FormerConfig(**own_options(Mask2FormerConfig, options, config_file, backbone_config=SwinConfig(), **named))
    made.backbone_config = backbone(**sizes, out_features=list(STAGES))  # not above: it would warn of any but a Swin
    return made


def _filled(settings: Mask2FormerConfig, state: Mapping[str, Tensor], source: str) -> Mask2Former:
    """The model with exactly these weights; it is given memory only when they fit."""
    try:
        with torch.device("meta"):
            expected = build_mask2former(settings).model.state_dict()
        check_keys(state, expected, source)
        backbone = build_mask2former(settings)
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # of sizes that fit no model, transformers raises nearly anything
        raise WeightsError(f"transformers cannot build the model that {source} describes: {error!r:.300}") from error
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    backbone.model.load_state_dict(floats, assign=True)
    return backbone


def _file_in(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise WeightsError(f"{folder} has no {name}; a folder with Mask2Former weights needs config.json and model.safetensors")
    return folder / name


def _from_hub(name: str, file: str) -> Path:
    return fetched(
        name,
        file,
        advice=f"put config.json and model.safetensors of {name} in a folder and give that folder, or give an official "
        "file (model_final_94dc52.pkl)",
    )
