"""Mask2Former (Cheng et al., 2022) through transformers, as a frozen mask proposer.

It is trained on COCO's panoptic classes and used here for its masks; its class logits are returned too.
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
from lexiseg.backbones.hub import ModelFiles
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
from lexiseg.ops.files import is_file, is_folder

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

FILES = ModelFiles(
    "a folder with Mask2Former weights", "config.json and model.safetensors", "an official file (model_final_94dc52.pkl)"
)

_TRANSFORMERS = "model.pixel_level_module."  # prefix in transformers' names; official names have backbone and sem_seg_head
STRIDES = (4, 8, 16, 32)  # of the backbone's maps
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of RGB in 0..255

Architecture = Literal["r50", "swin-t", "swin-b"]
_BACKBONES: dict[Architecture, dict[str, Any]] = {
    "r50": {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
    "swin-t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin-b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
}


@dataclass(frozen=True)
class ClassifiedProposals(Proposals):
    """Mask proposals with Mask2Former's class logits.

    Attributes:
        classes: [B, Q, C + 1] logits of the C training classes and, last, "no object"; None if the checkpoint has no
            class head.
    """

    classes: Tensor | None = None


class Mask2Former(MaskProposer):
    """Mask2Former with a ResNet or a Swin; always in evaluation mode.

    Attributes:
        model: the transformers model without its training criterion.
        queries: Q.
        classes: C, without "no object"; 0 if there is no class head.
        stride: stride of the mask grid in input pixels.
        multiple: both sides of the input are padded to multiples of this.
    """

    model: Any  # transformers' submodules have no type hints

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
            self.model.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()  # its output is unused
        self.eval()

    def train(self, mode: bool = True) -> Mask2Former:  # noqa: ARG002 - frozen, including running means
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> ClassifiedProposals:
        """Predict the last layer's masks of images [B, 3, H, W], float RGB in 0..1, all of the same size.

        The mask grid covers the padded images: h = H' / stride, and ``padded_size`` is (H', W').
        """
        return self.propose(self.preprocess(images))

    def preprocess(self, images: Tensor) -> Tensor:
        """Convert images [B, 3, H, W], float RGB in 0..1, to network inputs [B, 3, H', W'].

        Images are normalised, then zero-padded on the right and below to multiples of `multiple`.
        """
        weight = next(self.model.parameters())
        values = images.to(weight.device).float() * 255
        mean, std = (values.new_tensor(rgb)[:, None, None] for rgb in (MEAN, STD))
        below, right = (-int(side) % self.multiple for side in images.shape[-2:])
        return functional.pad((values - mean) / std, (0, right, 0, below)).to(weight.dtype)

    def propose(self, inputs: Tensor) -> ClassifiedProposals:
        """Predict masks of network inputs [B, 3, H', W'], normalised and padded."""
        output = self.model(inputs, output_hidden_states=True, return_dict=True)
        classes = output.class_queries_logits if self.classes else None
        return ClassifiedProposals(output.masks_queries_logits, (inputs.shape[-2], inputs.shape[-1]), classes)


def mask2former(architecture: Architecture, *, classes: int = 133) -> Mask2Former:
    """Build Mask2Former with random weights; works under ``torch.device("meta")``.

    Args:
        architecture: "r50", "swin-t", or "swin-b" (window size 12, as pre-trained at 384 pixels on ImageNet-21k).
        classes: C, by default COCO's panoptic classes; 0 for no class head.

    Raises:
        UsageError: unknown architecture.
    """
    if architecture not in _BACKBONES:
        raise UsageError(f"unknown Mask2Former '{architecture}'; there are {', '.join(_BACKBONES)}")
    return build_mask2former(mask2former_config(_BACKBONES[architecture], classes=classes))


def build_mask2former(settings: Mask2FormerConfig | Any) -> Mask2Former:
    """Build Mask2Former from a transformers configuration, with random weights.

    Raises:
        WeightsError: configuration of another model, or of a backbone that is neither a ResNet nor a Swin.
    """
    from transformers import Mask2FormerForUniversalSegmentation

    if settings.model_type != "mask2former":
        raise WeightsError(f"the configuration is of a '{settings.model_type}' model; give one of a mask2former")
    if settings.backbone_config.model_type not in {"resnet", "swin"}:
        raise WeightsError(
            f"this Mask2Former has a '{settings.backbone_config.model_type}'; only resnet and swin are supported"
        )
    return Mask2Former(Mask2FormerForUniversalSegmentation(settings))


def load_mask2former(source: str | Path) -> Mask2Former:
    """Load Mask2Former with its weights, float32, on the CPU.

    Args:
        source: a file as published (``model_final_94dc52.pkl``, or .pth or .safetensors with the same keys) with any ResNet or
            Swin; a folder of transformers (``config.json`` and ``model.safetensors``), or that ``model.safetensors`` with its
            config beside it; or a hub id (``facebook/mask2former-swin-tiny-coco-panoptic``), which is downloaded unless it is
            in the cache.

    Raises:
        WeightsError: missing, unreadable, or weights of another model.
    """
    path = Path(source)
    if is_folder(path):
        return _from_folder(FILES.in_folder(path, "config.json"), FILES.in_folder(path, "model.safetensors"), str(path))
    if is_file(path):
        if has_names(path, _TRANSFORMERS):
            return _from_folder(FILES.in_folder(path.parent, "config.json"), path, str(path))
        read = read_arrays if path.suffix == ".pkl" else read_state
        return from_official_state(read(path), str(path))
    name = str(source)
    if path.suffix in {".pkl", ".pth", ".pt", ".safetensors"} or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(
            f"no Mask2Former weights at {name}; give a file as published (model_final_94dc52.pkl), a folder with config.json "
            "and model.safetensors, or a hub id such as facebook/mask2former-swin-tiny-coco-panoptic"
        )
    return _from_folder(FILES.from_hub(name, "config.json"), FILES.from_hub(name, "model.safetensors"), name)


def from_official_state(state: Mapping[str, Tensor], source: str) -> Mask2Former:
    """Build Mask2Former from an official state dictionary, with or without its class head.

    Args:
        state: official key -> tensor.
        source: name of the weights in messages.

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
    except Exception as error:  # sizes that fit no model can raise anything in transformers
        raise WeightsError(f"transformers cannot build the model that {config_file} describes: {error!r:.300}") from error
    return _filled(settings, from_transformers(read_state(weights_file)), source)


def _config(options: Mapping[str, Any], config_file: Path) -> Mask2FormerConfig:
    """Build a transformers configuration with the sizes of a ``config.json``; everything else in that file is ignored."""
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    backbone = options.get("backbone_config")
    kind = backbone.get("model_type") if isinstance(backbone, Mapping) else None
    if kind not in ("resnet", "swin"):
        raise WeightsError(f"{config_file}: this Mask2Former has a {reprlib.repr(kind)}; only resnet and swin are supported")
    backbone_class: type[Any] = ResNetConfig if kind == "resnet" else SwinConfig
    sizes = own_options(backbone_class, backbone, f"{config_file}, backbone_config")
    if sizes.get("downsample_in_first_stage"):
        raise WeightsError(f"{config_file}: downsample_in_first_stage must be false, for the maps have strides 4 to 32")
    if options.get("common_stride", 4) != 4 or options.get("feature_strides", list(STRIDES)) != list(STRIDES):
        raise WeightsError(f"{config_file}: feature_strides must be {list(STRIDES)} and common_stride 4")
    labels = options.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        raise WeightsError(f"{config_file}: id2label must be an object of class names, not {reprlib.repr(labels)}")
    classes = {} if labels is None else {"id2label": {index: str(index) for index in range(len(labels))}}
    config = Mask2FormerConfig(**own_options(Mask2FormerConfig, options, config_file, backbone_config=SwinConfig(), **classes))
    config.backbone_config = backbone_class(**sizes, out_features=list(STAGES))  # the constructor warns of any but a Swin
    return config


def _filled(settings: Mask2FormerConfig, state: Mapping[str, Tensor], source: str) -> Mask2Former:
    """Build the model with exactly these weights; memory is allocated only if they fit."""
    try:
        with torch.device("meta"):
            expected = build_mask2former(settings).model.state_dict()
        check_keys(state, expected, source)
        backbone = build_mask2former(settings)
    except (UsageError, WeightsError):
        raise
    except Exception as error:  # sizes that fit no model can raise anything in transformers
        raise WeightsError(f"transformers cannot build the model that {source} describes: {error!r:.300}") from error
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    backbone.model.load_state_dict(floats, assign=True)
    return backbone
