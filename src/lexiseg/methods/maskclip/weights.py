"""Official MaskCLIP files: which of our tensors each of theirs is.

A file holds Mask2Former (R50) without its class head, CLIP's vision tower under ``maskclip.visual.``, and in it, marked
``added_params``, what was trained. The text tower is not in it: it is CLIP's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

ADDED = "added_params"
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
