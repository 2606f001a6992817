"""Official MaskCLIP files: which of our tensors each of theirs is.

A file holds Mask2Former (R50) without its class head, CLIP's vision tower under ``maskclip.visual.``, and in it, marked
``added_params``, what was trained. The text tower is not in it: it is CLIP's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lexiseg.backbones.state_dicts import read_state, some
from lexiseg.errors import WeightsError

VISION, PROPOSER = "maskclip.", ("backbone.", "sem_seg_head.", "criterion.")
RELATIVE_RULES = {
    "q_prime_norm_added_params": "query_norm",
    "k_prime_proj_weight_added_params": "key",
    "conv1_added_params": "mask_embedding",
    "conv3_added_params": "refinement",
}
_IN_BLOCK = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.attn\.(\w+_added_params)\.(weight|bias)")
_IN_ORDER = re.compile(r"visual\.transformer\.(conv[13]_added_params)\.(\d+)\.(weight|bias)")


def relative_from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the official vision tower, ``visual.…`` -> those of `MaskClip.relative`, and the rest as it is.

    The convolutions are numbered in the order of the blocks that have norms of their own.
    """
    blocks = sorted({int(found[1]) for name in state if (found := _IN_BLOCK.fullmatch(name))})
    relative, rest = {}, {}
    for name, tensor in state.items():
        if found := _IN_BLOCK.fullmatch(name):
            relative[f"{found[1]}.{RELATIVE_RULES[found[2]]}.{found[3]}"] = tensor
        elif found := _IN_ORDER.fullmatch(name):
            relative[f"{blocks[int(found[2])]}.{RELATIVE_RULES[found[1]]}.{found[3]}"] = tensor
        else:
            rest[name] = tensor
    return relative, rest


@dataclass(frozen=True)
class Checkpoint:
    """An official file, taken apart.

    Attributes:
        proposer: of Mask2Former, under its official names.
        vision: of open_clip's CLIP, ``visual.…``.
        relative: of `MaskClip.relative`.
    """

    proposer: dict[str, Tensor]
    vision: dict[str, Tensor]
    relative: dict[str, Tensor]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """An official file.

    Raises:
        WeightsError: missing, damaged, or of another model.
    """
    return taken_apart(read_state(Path(path)), str(path))


def taken_apart(state: Mapping[str, Tensor], source: str) -> Checkpoint:
    """The tensors of an official file by who needs them; every one of them is needed or refused.

    Raises:
        WeightsError: there are others.
    """
    proposer = {name: tensor for name, tensor in state.items() if name.startswith(PROPOSER)}
    tower = {name.removeprefix(VISION): tensor for name, tensor in state.items() if name.startswith(f"{VISION}visual.")}
    if others := sorted(name for name in state if not name.startswith((*PROPOSER, f"{VISION}visual."))):
        raise WeightsError(f"{source} is no checkpoint of MaskCLIP: it holds {some(others)}; give the authors' file")
    relative, vision = relative_from_official(tower)
    if not (proposer and vision and relative):
        raise WeightsError(f"{source} is no checkpoint of MaskCLIP: masks, CLIP or what was trained are missing")
    return Checkpoint(proposer, vision, relative)
