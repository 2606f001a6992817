"""Conversion of parameter names of FC-CLIP and CMPF (FrozenSeg), official and ours, by invertible prefix rules.

Our names are those of a model with the parts ``pixel_decoder``, ``mask_decoder`` and, for CMPF, ``sam_features``,
``feature_injector``. Every key of a checkpoint is renamed, passed to the converter of its backbone (CLIP, SAM), dropped with a
reason, or an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lexiseg.backbones import sam_weights
from lexiseg.backbones.state_dicts import compiled, rename_all, within
from lexiseg.errors import WeightsError
from lexiseg.methods.variant import Official
from lexiseg.methods.weights import SavedWeights

CLIP_PREFIX, SAM_PREFIX = "backbone.clip_model.", "sam."
OUR_CLIP_PREFIX, OUR_SAM_PREFIX = "clip.clip_model.", "sam.model."
_FROZEN = ("clip.", "sam.", "mask_sam.")  # our parts with weights of their own

# Official keys that carry no parameter of the network.
DROPPED = {"criterion.empty_weight": "class weights of the training loss, a constant"}

_PIXELS, _MASKS = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
_ENCODER_LAYER = (
    ("self_attn.sampling_offsets.", "attention.offsets."),
    ("self_attn.attention_weights.", "attention.weights."),
    ("self_attn.value_proj.", "attention.value."),
    ("self_attn.output_proj.", "attention.output."),
    ("norm1.", "attention_norm."),
    ("linear1.", "expand."),
    ("linear2.", "contract."),
    ("norm2.", "norm."),
)
_ATTENTION = (("in_proj_weight", "projection.weight"), ("in_proj_bias", "projection.bias"), ("out_proj.", "output."))
_PERCEPTRON = (("0.", "0."), ("1.", "2."), ("2.", "4."))  # our indices count the ReLUs
_MAX_LAYERS = 32  # layers that a rule below is written out for


def _encoder(official: str, ours: str) -> list[tuple[str, str]]:
    return [
        (f"{official}.level_embed", f"{ours}.level_embedding"),
        *((f"{official}.encoder.layers.<n>.{a}", f"{ours}.layers.<n>.{b}") for a, b in _ENCODER_LAYER),
    ]


def _attention(official: str, name: str, ours: str) -> list[tuple[str, str]]:
    return [
        *((f"{official}.{name}.{a}", f"{ours}.attention.{b}") for a, b in _ATTENTION),
        (f"{official}.norm.", f"{ours}.norm."),
    ]


# Prefixes of whole keys: (official, ours). <n> stands for any index and is the same on both sides.
_RULES: tuple[tuple[str, str], ...] = (
    (f"{_PIXELS}input_proj.<n>.", "pixel_decoder.projections.<n>."),
    *_encoder(f"{_PIXELS}transformer", "pixel_decoder.encoder"),
    (f"{_PIXELS}adapter_1.weight", "pixel_decoder.laterals.0.0.weight"),
    (f"{_PIXELS}adapter_1.norm.", "pixel_decoder.laterals.0.1."),
    (f"{_PIXELS}layer_1.weight", "pixel_decoder.smoothings.0.0.weight"),
    (f"{_PIXELS}layer_1.norm.", "pixel_decoder.smoothings.0.1."),
    (f"{_PIXELS}mask_features.", "pixel_decoder.mask_features."),
    (f"{_PIXELS}fpn3.", "sam_features.reduce."),
    *_encoder(f"{_PIXELS}sam_transformer", "sam_features.encoder"),
    (f"{_MASKS}query_feat.", "mask_decoder.query_features."),
    (f"{_MASKS}query_embed.", "mask_decoder.query_positions."),
    (f"{_MASKS}level_embed.", "mask_decoder.level_embedding."),
    *_attention(f"{_MASKS}transformer_cross_attention_layers.<n>", "multihead_attn", "mask_decoder.layers.<n>.cross_attention"),
    *_attention(f"{_MASKS}transformer_self_attention_layers.<n>", "self_attn", "mask_decoder.layers.<n>.self_attention"),
    *(
        (f"{_MASKS}transformer_ffn_layers.<n>.{a}", f"mask_decoder.layers.<n>.feed_forward.{b}")
        for a, b in (("linear1.", "expand."), ("linear2.", "contract."), ("norm.", "norm."))
    ),
    (f"{_MASKS}decoder_norm.", "mask_decoder.norm."),
    *((f"{_MASKS}mask_embed.layers.{a}", f"mask_decoder.mask_head.{b}") for a, b in _PERCEPTRON),
    *((f"{_MASKS}class_embed.layers.{a}", f"mask_decoder.class_head.{b}") for a, b in _PERCEPTRON),
    (f"{_MASKS}_mask_pooling_proj.", "mask_decoder.pooled_projection."),
    (f"{_MASKS}logit_scale", "mask_decoder.logit_scale"),
    ("void_embedding.", "mask_decoder.void."),
    *(  # ours are named by decoder layer, counted from 1 as in the paper
        rule
        for layer in range(_MAX_LAYERS)
        for rule in _attention(
            f"{_MASKS}transformer_cross_attention_layers_sam.{layer}",
            "multihead_attn",
            f"feature_injector.attentions.{layer + 1}",
        )
    ),
)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint by part.

    Attributes:
        head: trained parameters, with our names.
        clip: frozen CLIP, with open_clip's names; empty if not in the file.
        sam: frozen SAM, with segment-anything's names (see `lexiseg.backbones.sam_weights`); empty if not in the file.
    """

    head: dict[str, Tensor]
    clip: dict[str, Tensor]
    sam: dict[str, Tensor]


_TO_OURS, _TO_OFFICIAL = compiled(_RULES, 0), compiled(_RULES, 1)


def names_from_official(keys: Iterable[str]) -> dict[str, str]:
    """Map official keys of trained parameters to ours; keys of CLIP and SAM and dropped ones are left out.

    Raises:
        WeightsError: unknown keys, by name.
    """
    trained = (key for key in keys if key not in DROPPED and not key.startswith((CLIP_PREFIX, SAM_PREFIX)))
    return rename_all(trained, _TO_OURS, "official FC-CLIP's or FrozenSeg's")


def names_to_official(keys: Iterable[str]) -> dict[str, str]:
    """Map our keys of trained parameters to official keys.

    Raises:
        WeightsError: unknown keys, by name, such as a separate projection of the Query Injector.
    """
    return rename_all(keys, _TO_OFFICIAL, "FC-CLIP's or CMPF's")


def from_saved(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Split tensors with our names into parts.

    Raises:
        WeightsError: unknown keys of SAM, by name.
    """
    return Checkpoint(
        head={name: value for name, value in tensors.items() if not name.startswith(_FROZEN)},
        clip=within(tensors, OUR_CLIP_PREFIX),
        sam=sam_weights.to_official(within(tensors, OUR_SAM_PREFIX)),
    )


def to_saved(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Merge the parts of a checkpoint under the names of our segmenters.

    Raises:
        WeightsError: unknown keys of SAM, by name.
    """
    clip = {OUR_CLIP_PREFIX + key: tensor for key, tensor in checkpoint.clip.items()}
    sam = {OUR_SAM_PREFIX + key: tensor for key, tensor in sam_weights.from_official(checkpoint.sam).items()}
    return checkpoint.head | clip | sam


def from_official(state: Mapping[str, Tensor]) -> Checkpoint:
    """Split an official state dictionary into parts, and rename trained parameters.

    Raises:
        WeightsError: unknown keys, by name.
    """
    return Checkpoint(
        head={name: state[key] for key, name in names_from_official(state).items()},
        clip=within(state, CLIP_PREFIX),
        sam=within(state, SAM_PREFIX),
    )


def to_official(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Merge the parts of a checkpoint under official names, without the dropped keys.

    Raises:
        WeightsError: unknown keys, by name.
    """
    head = {name: checkpoint.head[key] for key, name in names_to_official(checkpoint.head).items()}
    clip = {CLIP_PREFIX + key: tensor for key, tensor in checkpoint.clip.items()}
    return head | clip | {SAM_PREFIX + key: tensor for key, tensor in checkpoint.sam.items()}


class FcClipCheckpoint(Official):
    """Official checkpoints of FC-CLIP."""

    licence: ClassVar[str] = "Apache-2.0"
    holds_sam: ClassVar[bool] = False

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        reasons = DROPPED | {SAM_PREFIX + key: why for key, why in sam_weights.DROPPED.items()}
        return {key: reasons[key] for key in keys if key in reasons}

    def ours(self, state: Mapping[str, Tensor], source: str, /) -> dict[str, Tensor]:
        checkpoint = from_official(state)
        if checkpoint.sam and not self.holds_sam:
            raise WeightsError(f"{source} is another model's: it holds a SAM")
        return to_saved(checkpoint)

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        return to_official(from_saved(saved.tensors))
