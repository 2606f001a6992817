"""FOV-Seg's TeVA: Eq. (7)-(11), bare and literal, as computed slowly from the paper alone; computed here by `FovSeg` itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.methods.fovseg.teva import MaskTargetAttention
from tests.laws.builders import tiny_fovseg
from tests.parity.report import Row, load_case, max_difference


@torch.no_grad()
def teva(path: Path) -> list[Row]:
    """One head, no norm and no output projection; the scale of our attention is taken out of the queries."""
    tensors, _ = load_case(path)
    width = tensors["in.mask_tokens"].shape[-1]
    unscaled = width**0.5
    target = MaskTargetAttention(width, width, width, heads=1)
    target.norm, target.output = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    for layer, name, factor in ((target.query, "g_q", unscaled), (target.key, "g_k", 1.0), (target.value, "g_v", 1.0)):
        layer.weight.copy_(tensors[f"in.{name}"].T * factor)
        layer.bias.zero_()
    segmenter = tiny_fovseg(teva_update="replace", teva_shared=True)
    segmenter.teva[0] = target
    tokens, names, image, allowed = (
        tensors[f"in.{name}"] for name in ("mask_tokens", "target_tokens", "image_tokens", "allowed")
    )
    asked = target(tokens[None], names)
    block = _clip_block(tensors, unscaled)
    taken = segmenter.attend_by_names(0, block, tokens[None], image[None], names, allowed[None])
    return [
        Row(path.name, "mask-target attention", max_difference(asked[0], tensors["out.targeted_mask_tokens"]), 1e-5),
        Row(path.name, "TeVA", max_difference(taken[0], tensors["out.teva"]), 1e-5),
    ]


def _clip_block(tensors: Mapping[str, Tensor], unscaled: float) -> Any:
    """A block of CLIP with nothing in it but f_q, f_k and f_v."""
    parts = [tensors[f"in.{name}"].T * factor for name, factor in (("f_q", unscaled), ("f_k", 1.0), ("f_v", 1.0))]
    packed = torch.cat(parts)
    attention = SimpleNamespace(
        in_proj_weight=packed, in_proj_bias=packed.new_zeros(len(packed)), num_heads=1, out_proj=nn.Identity()
    )
    return SimpleNamespace(attn=attention, ln_1=nn.Identity())


CASES: dict[str, Callable[[Path], list[Row]]] = {"equations_teva": teva}
