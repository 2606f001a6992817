"""Key mapping of SAM 2's weights between the official code and transformers, and the sizes of official files.

The same prefix rules map both ways; the four point embeddings are a table of four rows in transformers. The memory of video
frames is left out, since only single images are supported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lexiseg.backbones.state_dicts import compiled, rename_all
from lexiseg.errors import WeightsError

if TYPE_CHECKING:
    from transformers import Sam2Config

SAM2_KEY = "image_encoder.trunk.patch_embed.proj.weight"  # only in SAM 2

_MLP = (("layers.0.", "proj_in."), ("layers.1.", "layers.0."), ("layers.2.", "proj_out."))
_TWO_LAYERS = (("layers.0.", "proj_in."), ("layers.1.", "proj_out."))
_ATTENTION = (("q_proj.", "q_proj."), ("k_proj.", "k_proj."), ("v_proj.", "v_proj."), ("out_proj.", "o_proj."))
_BLOCK = (
    *((f"norm{k}.", f"layer_norm{k}.") for k in (1, 2)),
    ("attn.", "attn."),
    *((f"mlp.{a}", f"mlp.{b}") for a, b in _TWO_LAYERS),
    ("proj.", "proj."),
)
_LAYER = (
    *((f"norm{k}.", f"layer_norm{k}.") for k in (1, 2, 3, 4)),
    *((f"mlp.{a}", f"mlp.{b}") for a, b in _TWO_LAYERS),
    *(
        (f"{part}.{a}", f"{part}.{b}")
        for part in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for a, b in _ATTENTION
    ),
)
_TRUNK, _PROMPTS, _MASKS = "image_encoder.trunk.", "sam_prompt_encoder.", "sam_mask_decoder."
_OUR_TRUNK, _TRANSFORMER = "vision_encoder.backbone.", "mask_decoder.transformer."

# Prefixes of keys: (official, ours). <n> matches any index, the same on both sides.
_RULES: tuple[tuple[str, str], ...] = (
    ("no_mem_embed", "no_memory_embedding"),
    (f"{_TRUNK}pos_embed", f"{_OUR_TRUNK}pos_embed"),
    (f"{_TRUNK}patch_embed.proj.", f"{_OUR_TRUNK}patch_embed.projection."),
    *((f"{_TRUNK}blocks.<n>.{a}", f"{_OUR_TRUNK}blocks.<n>.{b}") for a, b in _BLOCK),
    ("image_encoder.neck.convs.<n>.conv.", "vision_encoder.neck.convs.<n>."),
    (f"{_PROMPTS}pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    *((f"{_PROMPTS}{part}.", f"prompt_encoder.{part}.") for part in ("not_a_point_embed", "no_mask_embed")),
    *(
        (f"{_PROMPTS}mask_downscaling.{a}.", f"prompt_encoder.mask_embed.{b}.")
        for a, b in (("0", "conv1"), ("1", "layer_norm1"), ("3", "conv2"), ("4", "layer_norm2"), ("6", "conv3"))
    ),
    *((f"{_MASKS}transformer.layers.<n>.{a}", f"{_TRANSFORMER}layers.<n>.{b}") for a, b in _LAYER),
    *(
        (f"{_MASKS}transformer.final_attn_token_to_image.{a}", f"{_TRANSFORMER}final_attn_token_to_image.{b}")
        for a, b in _ATTENTION
    ),
    (f"{_MASKS}transformer.norm_final_attn.", f"{_TRANSFORMER}layer_norm_final_attn."),
    *(
        (f"{_MASKS}{part}.", f"mask_decoder.{part}.")
        for part in ("iou_token", "mask_tokens", "obj_score_token", "conv_s0", "conv_s1")
    ),
    *(
        (f"{_MASKS}output_upscaling.{a}.", f"mask_decoder.{b}.")
        for a, b in (("0", "upscale_conv1"), ("1", "upscale_layer_norm"), ("3", "upscale_conv2"))
    ),
    *(
        (f"{_MASKS}{part}.{a}", f"mask_decoder.{part}.{b}")
        for part in ("output_hypernetworks_mlps.<n>", "iou_prediction_head", "pred_obj_score_head")
        for a, b in _MLP
    ),
)
_TO_OURS, _TO_OFFICIAL = compiled(_RULES, 0), compiled(_RULES, 1)
_POINTS, _OUR_POINTS = f"{_PROMPTS}point_embeddings.", "prompt_encoder.point_embed.weight"
_COPY, _ORIGINAL = "prompt_encoder.shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding"

# Prefixes of official keys that only videos need.
VIDEO = (
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_",
    "memory_attention.",
    "memory_encoder.",
    "obj_ptr_",
    "mask_downsample.",
)

# (width, blocks) -> options of the encoder
_SIZES: dict[tuple[int, int], dict[str, Any]] = {
    (96, 12): {"blocks_per_stage": [1, 2, 7, 2], "global_attention_blocks": [5, 7, 9]},
    (96, 16): {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    (112, 24): {
        "blocks_per_stage": [2, 3, 16, 3],
        "global_attention_blocks": [12, 16, 20],
        "num_attention_heads": 2,
        "window_positional_embedding_background_size": [14, 14],
    },
    (144, 48): {
        "blocks_per_stage": [2, 6, 36, 4],
        "global_attention_blocks": [23, 33, 43],
        "num_attention_heads": 2,
        "window_size_per_stage": [8, 4, 16, 8],
    },
}


def names_from_official(keys: Iterable[str]) -> dict[str, str]:
    """Map official keys to ours, except point embeddings and keys that only videos need.

    Raises:
        WeightsError: keys without a rule.
    """
    return rename_all((key for key in keys if not key.startswith((*VIDEO, _POINTS))), _TO_OURS, "official SAM 2's")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dictionary to our keys, including tied copies.

    Raises:
        WeightsError: keys without a rule.
    """
    ours = {name: state[key] for key, name in names_from_official(state).items()}
    points = sorted((key for key in state if key.startswith(_POINTS)), key=lambda key: int(key.split(".")[-2]))
    if points:
        ours[_OUR_POINTS] = torch.cat([state[key] for key in points])
    if _ORIGINAL in ours:
        ours[_COPY] = ours[_ORIGINAL]
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dictionary of ours to official keys.

    Raises:
        WeightsError: keys without a rule.
    """
    names = rename_all((key for key in state if key not in (_COPY, _OUR_POINTS)), _TO_OFFICIAL, "SAM 2's of ours")
    official = {name: state[key] for key, name in names.items()}
    for index, row in enumerate(state.get(_OUR_POINTS, ())):
        official[f"{_POINTS}{index}.weight"] = row[None]
    return official


def sam2_config(state: Mapping[str, Tensor], source: str) -> Sam2Config:
    """Return transformers' configuration for an official state dictionary of SAM 2 or 2.1.

    Args:
        state: official key -> tensor.
        source: name of the weights in messages.

    Raises:
        WeightsError: not one of the published sizes (tiny, small, base+, large).
    """
    from transformers import Sam2Config

    width = state[SAM2_KEY].shape[0]
    blocks = len({key.split(".")[3] for key in state if key.startswith(f"{_TRUNK}blocks.")})
    if (width, blocks) not in _SIZES:
        raise WeightsError(
            f"{source} has an image encoder of width {width} with {blocks} blocks; the published SAM 2 have 96 with 12 or 16, "
            "112 with 24, 144 with 48"
        )
    size = {"num_attention_heads": 1, **_SIZES[width, blocks]}
    widths, heads = ([first * 2**stage for stage in range(4)] for first in (width, size["num_attention_heads"]))
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": width,
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": heads,
        **size,
    }
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "backbone_channel_list": widths[::-1]}
    return Sam2Config(vision_config=vision)
