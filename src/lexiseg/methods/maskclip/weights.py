"""Conversion of MaskCLIP's official checkpoints.

A file holds Mask2Former (R50) without its class head, and CLIP's vision tower under ``maskclip.visual.``, with the trained
parameters marked ``added_params``. The text tower is that of CLIP and not in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lexiseg.backbones import mask2former_weights
from lexiseg.backbones.state_dicts import some, within
from lexiseg.errors import WeightsError
from lexiseg.methods.variant import Official
from lexiseg.methods.weights import SavedWeights

VISION, PROPOSER = "maskclip.", ("backbone.", "sem_seg_head.", "criterion.")
OUR_CLIP, OUR_PROPOSER, OUR_RELATIVE = "clip.clip_model.", "proposer.model.", "relative."
RELATIVE_RULES = {
    "q_prime_norm_added_params": "query_norm",
    "k_prime_proj_weight_added_params": "key",
    "conv1_added_params": "mask_embedding",
    "conv3_added_params": "refinement",
}
_IN_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.attn\.(\w+_added_params)\.(weight|bias)")
_IN_ORDER = re.compile(r"visual\.transformer\.(conv[13]_added_params)\.(\d+)\.(weight|bias)")


def relative_from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split tensors of the official vision tower, ``visual.…``, into those of `MaskClip.relative`, renamed, and the others.

    The convolutions are numbered in the order of the blocks with relative attention.
    """
    blocks = sorted({int(match[1]) for name in state if (match := _IN_BLOCK.fullmatch(name))})
    relative, rest = {}, {}
    for name, tensor in state.items():
        if match := _IN_BLOCK.fullmatch(name):
            relative[f"{match[1]}.{RELATIVE_RULES[match[2]]}.{match[3]}"] = tensor
        elif match := _IN_ORDER.fullmatch(name):
            relative[f"{blocks[int(match[2])]}.{RELATIVE_RULES[match[1]]}.{match[3]}"] = tensor
        else:
            rest[name] = tensor
    return relative, rest


def relative_to_official(relative: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of the renaming of `relative_from_official`."""
    blocks = sorted({int(name.split(".")[0]) for name in relative})
    theirs = {ours: official for official, ours in RELATIVE_RULES.items()}
    official: dict[str, Tensor] = {}
    for name, tensor in relative.items():
        block, ours, kind = name.split(".")
        key, start = theirs[ours], "visual.transformer."
        if key.startswith("conv"):
            official[f"{start}{key}.{blocks.index(int(block))}.{kind}"] = tensor
        else:
            official[f"{start}resblocks.{block}.attn.{key}.{kind}"] = tensor
    return official


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of an official checkpoint by part.

    Attributes:
        proposer: Mask2Former, with official names.
        vision: vision tower of open_clip's CLIP, ``visual.…``.
        relative: `MaskClip.relative`.
    """

    proposer: dict[str, Tensor]
    vision: dict[str, Tensor]
    relative: dict[str, Tensor]


def taken_apart(state: Mapping[str, Tensor], source: str) -> Checkpoint:
    """Split an official state dictionary into its parts.

    Raises:
        WeightsError: unknown tensors, or a part is missing.
    """
    proposer = {name: tensor for name, tensor in state.items() if name.startswith(PROPOSER)}
    tower = {name.removeprefix(VISION): tensor for name, tensor in state.items() if name.startswith(f"{VISION}visual.")}
    if others := sorted(name for name in state if not name.startswith((*PROPOSER, f"{VISION}visual."))):
        raise WeightsError(f"{source} is no checkpoint of MaskCLIP: it holds {some(others)}; give the authors' file")
    relative, vision = relative_from_official(tower)
    if not (proposer and vision and relative):
        raise WeightsError(
            f"{source} is no checkpoint of MaskCLIP: Mask2Former, CLIP or trained weights are missing; give the authors' file"
        )
    return Checkpoint(proposer, vision, relative)


class MaskClipCheckpoint(Official):
    """Official checkpoint. Its config has behaviour "paper", as the official treatment of the last class is a mistake."""

    licence: ClassVar[str] = "CC BY-NC 4.0"
    options: ClassVar[Mapping[str, Any]] = {"mask2former_rules": True}
    partial: ClassVar[tuple[str, ...]] = (f"{OUR_CLIP}visual.",)  # the text tower is CLIP's own

    def dropped(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: reason for key in keys if (reason := mask2former_weights.reason_to_drop(key))}

    def ours(self, state: Mapping[str, Tensor], source: str, /) -> dict[str, Tensor]:
        checkpoint = taken_apart(state, source)
        proposer = mask2former_weights.from_official(checkpoint.proposer)
        return {
            **{f"{OUR_CLIP}{name}": tensor for name, tensor in checkpoint.vision.items()},
            **{f"{OUR_PROPOSER}{name}": tensor for name, tensor in proposer.items()},
            **{f"{OUR_RELATIVE}{name}": tensor for name, tensor in checkpoint.relative.items()},
        }

    def official(self, saved: SavedWeights) -> dict[str, Tensor]:
        tower = within(saved.tensors, OUR_CLIP) | relative_to_official(within(saved.tensors, OUR_RELATIVE))
        proposer = mask2former_weights.to_official(within(saved.tensors, OUR_PROPOSER))
        return {**proposer, **{f"{VISION}{name}": tensor for name, tensor in tower.items()}}
