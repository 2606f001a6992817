"""Conversion of CAT-Seg's parameter names, official and ours, by invertible prefix rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from lexiseg.backbones.clip_vit import pack_projections, split_projections
from lexiseg.backbones.state_dicts import compiled, rename_all, within
from lexiseg.methods.variant import Official
from lexiseg.methods.weights import SavedWeights

CLIP_PREFIX, OUR_CLIP_PREFIX = "sem_seg_head.predictor.clip_model.", "clip.clip_model."
AGGREGATION, OUR_AGGREGATION = "sem_seg_head.predictor.transformer.", "aggregation."

# Prefixes (official, ours) below `AGGREGATION`; <n> stands for any index, the same on both sides.
_ATTENTION = (("q.", "query."), ("k.", "key."), ("v.", "value."))
_BLOCK = (
    ("norm1.", "attention_norm."),
    *((f"attn.{a}", f"attention.{b}") for a, b in (*_ATTENTION, ("proj.", "output."))),
    ("norm2.", "norm."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
)
_CLASSES = (
    ("norm1.", "attention_norm."),
    *((f"attention.{a}", f"attention.{b}") for a, b in _ATTENTION),
    ("norm2.", "norm."),
    ("MLP.0.", "mlp.0."),
    ("MLP.2.", "mlp.2."),
    ("padding_guidance", "filling_guide"),  # before the next, which shares its prefix
    ("padding_tokens", "filling"),
)
_STAGE = (
    ("up.", "upsample."),
    ("conv.double_conv.0.", "convolutions.0.0."),
    ("conv.double_conv.1.", "convolutions.0.1."),
    ("conv.double_conv.3.", "convolutions.1.0."),
    ("conv.double_conv.4.", "convolutions.1.1."),
)
AGGREGATION_RULES: tuple[tuple[str, str], ...] = (
    *(
        (f"layers.<n>.swin_block.block_{number + 1}.{a}", f"layers.<n>.spatial.blocks.{number}.{b}")
        for number in (0, 1)
        for a, b in _BLOCK
    ),
    ("layers.<n>.swin_block.guidance_norm.", "layers.<n>.spatial.guide_norm."),
    *((f"layers.<n>.attention.{a}", f"layers.<n>.classes.{b}") for a, b in _CLASSES),
    ("conv1.", "embedding."),
    ("guidance_projection.0.", "appearance.0."),
    ("text_guidance_projection.0.", "text.0."),
    ("decoder_guidance_projection.<n>.", "guides.<n>."),
    *((f"decoder{number + 1}.{a}", f"decoders.{number}.{b}") for number in (0, 1) for a, b in _STAGE),
    ("head.", "head."),
)
_RULES = (
    *((AGGREGATION + a, OUR_AGGREGATION + b) for a, b in AGGREGATION_RULES),
    ("upsample1.", "upsample.0."),
    ("upsample2.", "upsample.1."),
)
_TO_OURS, _TO_OFFICIAL = compiled(_RULES, 0), compiled(_RULES, 1)
_OWNER = "official CAT-Seg's"


def dropped(key: str) -> bool:
    """Whether an official key holds no parameter: masks of shifted windows are constants."""
    return key.endswith(".attn_mask")


def names_from_official(keys: Iterable[str]) -> dict[str, str]:
    """Map official keys to ours, except CLIP's and dropped ones.

    Raises:
        WeightsError: unknown keys, by name.
    """
    return rename_all((key for key in keys if not (dropped(key) or key.startswith(CLIP_PREFIX))), _TO_OURS, _OWNER)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dictionary to our names, the fine-tuned CLIP included.

    Raises:
        WeightsError: unknown keys, by name.
    """
    clip = pack_projections(within(state, CLIP_PREFIX))
    head = {name: state[key] for key, name in names_from_official(state).items()}
    return head | {OUR_CLIP_PREFIX + key: tensor for key, tensor in clip.items()}


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_official`, without the dropped keys.

    Raises:
        WeightsError: unknown keys, by name.
    """
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(OUR_CLIP_PREFIX)}
    clip = within(tensors, OUR_CLIP_PREFIX)
    head = {name: own[key] for key, name in rename_all(own, _TO_OFFICIAL, "CAT-Seg's").items()}
    return head | {CLIP_PREFIX + key: tensor for key, tensor in split_projections(clip).items()}


class CatSegCheckpoint(Official):
    """Official checkpoints, the fine-tuned CLIP included."""

    licence: ClassVar[str] = "MIT"

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: "attention mask of shifted windows, a constant" for key in keys if dropped(key)}

    def ours(self, state: Mapping[str, Tensor], _source: str, /) -> dict[str, Tensor]:
        return from_official(state)

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        return to_official(saved.tensors)
