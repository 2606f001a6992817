"""Key mapping of Mask2Former's weights between the official code (detectron2) and transformers, and the sizes of files.

The same prefix rules map both ways. Every key is mapped, dropped with a reason, or an error. Query, key and value projections
are one packed matrix in the official code, and three in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lexiseg.backbones.state_dicts import compiled, rename_all
from lexiseg.errors import WeightsError

if TYPE_CHECKING:
    from transformers import Mask2FormerConfig

STAGES = ("stage1", "stage2", "stage3", "stage4")  # transformers' names of the maps of strides 4, 8, 16, 32
_LEVELS, _POINTS = 3, 4  # of the deformable attention

_PIXELS, _MASKS = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_ENCODER, _OUR_PIXELS, _OUR_MASKS = (
    "model.pixel_level_module.encoder.",
    "model.pixel_level_module.decoder.",
    "model.transformer_module.",
)
_SWIN = f"{_ENCODER}swin.encoder.layers."

_SWIN_BLOCK = (
    ("attn.qkv.", "attention.qkv."),
    ("attn.proj.", "attention.o_proj."),
    ("attn.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("mlp.", "mlp."),
)
_PIXEL_LAYER = (
    ("self_attn.", "self_attn."),
    ("norm1.", "self_attn_layer_norm."),
    ("linear1.", "fc1."),
    ("linear2.", "fc2."),
    ("norm2.", "final_layer_norm."),
)
_MASK_LAYER = (
    ("cross_attention_layers.<n>.multihead_attn.", "cross_attn."),
    ("cross_attention_layers.<n>.norm.", "cross_attn_layer_norm."),
    ("self_attention_layers.<n>.self_attn.in_proj_", "self_attn.qkv."),
    ("self_attention_layers.<n>.self_attn.out_proj.", "self_attn.out_proj."),
    ("self_attention_layers.<n>.norm.", "self_attn_layer_norm."),
    ("ffn_layers.<n>.linear1.", "fc1."),
    ("ffn_layers.<n>.linear2.", "fc2."),
    ("ffn_layers.<n>.norm.", "final_layer_norm."),
)


def _convolution(official: str, ours: str) -> list[tuple[str, str]]:
    """Rules of a ResNet's convolution and its norm."""
    return [(f"{official}.weight", f"{ours}.convolution.weight"), (f"{official}.norm.", f"{ours}.normalization.")]


# Prefixes of keys: (official, ours). <n> matches any index, the same on both sides.
_RULES: tuple[tuple[str, str], ...] = (
    *_convolution("backbone.stem.conv1", f"{_ENCODER}embedder.embedder"),
    *(
        rule
        for stage in range(4)
        for official, ours in (("shortcut", "shortcut"), *((f"conv{k + 1}", f"layer.{k}") for k in range(3)))
        for rule in _convolution(
            f"backbone.res{stage + 2}.<n>.{official}", f"{_ENCODER}encoder.stages.{stage}.layers.<n>.{ours}"
        )
    ),
    ("backbone.patch_embed.proj.", f"{_ENCODER}swin.embeddings.patch_embeddings.projection."),
    ("backbone.patch_embed.norm.", f"{_ENCODER}swin.embeddings.norm."),
    *(
        (f"backbone.layers.{stage}.blocks.<n>.{a}", f"{_SWIN}{stage}.blocks.<n>.{b}")
        for stage in range(4)
        for a, b in _SWIN_BLOCK
    ),
    ("backbone.layers.<n>.downsample.", f"{_SWIN}<n>.downsample."),
    *((f"backbone.norm{index}.", f"{_ENCODER}hidden_states_norms.{stage}.") for index, stage in enumerate(STAGES)),
    (f"{_PIXELS}input_proj.", f"{_OUR_PIXELS}input_projections."),
    (f"{_PIXELS}transformer.level_embed", f"{_OUR_PIXELS}level_embed"),
    *((f"{_PIXELS}transformer.encoder.layers.<n>.{a}", f"{_OUR_PIXELS}encoder.layers.<n>.{b}") for a, b in _PIXEL_LAYER),
    *(
        (f"{_PIXELS}{part}.{a}", f"{_OUR_PIXELS}{part}.{b}")
        for part in ("adapter_1", "layer_1")
        for a, b in (("weight", "0.weight"), ("norm.", "1."))
    ),
    (f"{_PIXELS}mask_features.", f"{_OUR_PIXELS}mask_projection."),
    *((f"{_MASKS}transformer_{a}", f"{_OUR_MASKS}decoder.layers.<n>.{b}") for a, b in _MASK_LAYER),
    (f"{_MASKS}decoder_norm.", f"{_OUR_MASKS}decoder.layernorm."),
    (f"{_MASKS}query_feat.", f"{_OUR_MASKS}queries_features."),
    (f"{_MASKS}static_query.", f"{_OUR_MASKS}queries_features."),  # older name, in published files
    (f"{_MASKS}query_embed.", f"{_OUR_MASKS}queries_embedder."),
    (f"{_MASKS}level_embed.", f"{_OUR_MASKS}level_embed."),
    (f"{_MASKS}mask_embed.layers.<n>.", f"{_OUR_MASKS}decoder.mask_predictor.mask_embedder.<n>.0."),
    (f"{_MASKS}class_embed.", "class_predictor."),
)

_EARLIER_BLOCK = (  # of a Swin, in transformers: (earlier, current)
    ("attention.self.query.", "attention.q_proj."),
    ("attention.self.key.", "attention.k_proj."),
    ("attention.self.value.", "attention.v_proj."),
    ("attention.self.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    ("attention.output.dense.", "attention.o_proj."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
)

# Keys of either side that are not parameters of the network: a pattern of the whole key, and why.
DROPPED = {
    r"criterion\.empty_weight": "class weights of the training loss, a constant",
    r".*\.relative_position_index": "determined by the window size",
    rf"{re.escape(_ENCODER)}(swin\.)?layernorm\.(weight|bias)": "norm in transformers with unused output",
}
_COUNTER = ".num_batches_tracked"  # of transformers' ResNets, used only in training

_TO_OURS, _TO_OFFICIAL = compiled(_RULES, 0), compiled(_RULES, 1)


def reason_to_drop(key: str) -> str | None:
    """Return why a key of either side is dropped, None if it is not."""
    return next((why for pattern, why in DROPPED.items() if re.fullmatch(pattern, key)), None)


def dropped(key: str) -> bool:
    """Whether a key is one of `DROPPED`."""
    return reason_to_drop(key) is not None


def names_from_official(keys: Iterable[str]) -> dict[str, str]:
    """Map official keys of parameters to ours.

    A packed projection has one key, with ``qkv`` in it, which `from_official` splits into three.

    Raises:
        WeightsError: keys without a rule.
    """
    return rename_all((key for key in keys if not dropped(key)), _TO_OURS, "official Mask2Former's")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dictionary to transformers' keys.

    Raises:
        WeightsError: keys without a rule.
    """
    ours: dict[str, Tensor] = {}
    for key, name in names_from_official(state).items():
        if ".qkv." in name:
            for letter, part in zip("qkv", state[key].chunk(3), strict=True):
                ours[name.replace(".qkv.", f".{letter}_proj.")] = part.clone()  # safetensors cannot save views
        else:
            ours[name] = state[key]
    for name in [name for name in ours if name.endswith(".running_mean")]:
        ours.setdefault(name.replace(".running_mean", _COUNTER), torch.zeros((), dtype=torch.int64))
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dictionary of transformers to official keys, without the dropped keys.

    Raises:
        WeightsError: keys without a rule.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if dropped(name) or name.endswith(_COUNTER):
            continue
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"]
            packed[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            packed[name] = tensor
    names = rename_all(packed, _TO_OFFICIAL, "transformers' Mask2Former's")
    return {names[name]: tensor for name, tensor in packed.items()}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dictionary of any version of transformers to the current keys."""
    return with_current_swin({name: tensor for name, tensor in state.items() if not dropped(name)}, _ENCODER)


def with_current_swin(state: Mapping[str, Tensor], encoder: str) -> dict[str, Tensor]:
    """Rename the Swin in a state dictionary of any version of transformers, such as a file on the hub, to the current keys.

    Args:
        state: key -> tensor.
        encoder: prefix of the Swin's keys.
    """
    layers = f"{encoder}swin.encoder.layers."
    whole = ((f"{encoder}embeddings.", f"{encoder}swin.embeddings."), (f"{encoder}encoder.layers.", layers))
    blocks = tuple(
        (f"{layers}{stage}.blocks.<n>.{earlier}", f"{layers}{stage}.blocks.<n>.{current}")
        for stage in range(4)
        for earlier, current in _EARLIER_BLOCK
    )
    renamed = dict(state)
    for rules in (whole, blocks):
        patterns = compiled((*rules, ("", "")), 0)  # all other keys are unchanged
        renamed = {current: renamed[name] for name, current in rename_all(renamed, patterns, "transformers'").items()}
    return renamed


def mask2former_config(
    backbone: Mapping[str, Any], *, classes: int = 133, queries: int = 100, **sizes: Any
) -> Mask2FormerConfig:
    """Build transformers' configuration.

    Args:
        backbone: options of a ``SwinConfig``, or of a ``ResNetConfig`` if it has ``hidden_sizes``.
        classes: number of classes without "no object"; 0 for no class head.
        queries: Q.
        sizes: further options of ``Mask2FormerConfig``; its defaults are the official ones.
    """
    from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

    config = Mask2FormerConfig(num_labels=classes, num_queries=queries, **sizes)
    backbone_class = ResNetConfig if "hidden_sizes" in backbone else SwinConfig
    config.backbone_config = backbone_class(**backbone, out_features=list(STAGES))  # the constructor warns of any but a Swin
    return config


def official_config(state: Mapping[str, Tensor], source: str) -> Mask2FormerConfig:
    """Return transformers' configuration for an official state dictionary, with the sizes of its weights.

    Args:
        state: official key -> tensor.
        source: name of the weights in messages.

    Raises:
        WeightsError: a key that determines a size is missing.
    """
    try:
        backbone = _swin_sizes(state) if "backbone.patch_embed.proj.weight" in state else _resnet_sizes(state)
        queries = next(key for key in (f"{_MASKS}query_feat.weight", f"{_MASKS}static_query.weight") if key in state)
        layer, head = f"{_PIXELS}transformer.encoder.layers.", f"{_MASKS}class_embed.bias"
        return mask2former_config(
            backbone,
            classes=len(state[head]) - 1 if head in state else 0,
            queries=len(state[queries]),
            hidden_dim=state[queries].shape[1],
            feature_size=state[f"{_PIXELS}mask_features.weight"].shape[1],
            mask_feature_size=state[f"{_PIXELS}mask_features.weight"].shape[0],
            encoder_layers=_count(state, f"{layer}<n>.norm1.weight"),
            encoder_feedforward_dim=len(state[f"{layer}0.linear1.bias"]),
            decoder_layers=_count(state, f"{_MASKS}transformer_ffn_layers.<n>.norm.weight") + 1,  # + initial masks
            dim_feedforward=len(state[f"{_MASKS}transformer_ffn_layers.0.linear1.bias"]),
            num_attention_heads=len(state[f"{layer}0.self_attn.attention_weights.bias"]) // (_LEVELS * _POINTS),
        )
    except (KeyError, StopIteration) as error:
        missing = error.args[0] if error.args else f"{_MASKS}query_feat.weight"
        raise WeightsError(
            f"{source} is no checkpoint of Mask2Former: it has no {missing}; give one with a ResNet or a Swin as published"
        ) from error


def _swin_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    tables = [state[f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)]
    width, _, _, patch = state["backbone.patch_embed.proj.weight"].shape
    return {
        "embed_dim": width,
        "patch_size": patch,
        "depths": [_count(state, f"backbone.layers.{stage}.blocks.<n>.norm1.weight") for stage in range(4)],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (isqrt(len(tables[0])) + 1) // 2,  # the table has (2 w - 1)² rows
        "mlp_ratio": len(state["backbone.layers.0.blocks.0.mlp.fc1.bias"]) / width,
    }


def _resnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "embedding_size": len(state["backbone.stem.conv1.weight"]),
        "hidden_sizes": [len(state[f"backbone.res{number}.0.conv3.weight"]) for number in range(2, 6)],
        "depths": [_count(state, f"backbone.res{number}.<n>.conv3.weight") for number in range(2, 6)],
    }


def _count(state: Mapping[str, Tensor], key: str) -> int:
    """Count the keys with <n> replaced by 0, 1, 2, …"""
    count = 0
    while key.replace("<n>", str(count)) in state:
        count += 1
    return count
