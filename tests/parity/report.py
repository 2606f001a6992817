"""What a parity case returns, and the few helpers every case needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.packed import unpack


@dataclass(frozen=True)
class Row:
    """One compared quantity: the largest absolute difference from the reference, and how much is allowed."""

    case: str
    quantity: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


def load_case(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of the case at ``path`` (folder/stem): stem.safetensors or stem.packed, and stem.json.

    A case that is only a document (a manifest) has no tensors.
    """
    packed, plain = (path.with_name(path.name + suffix) for suffix in (".packed", ".safetensors"))
    document = json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))
    if packed.is_file():
        return unpack(packed.read_bytes()), document
    return (load_file(plain) if plain.is_file() else {}), document


def max_difference(ours: Tensor, reference: Tensor, *, equal_nan: bool = False) -> float:
    """Largest absolute difference of two tensors; inf where shapes differ, NaN where only one side (or any) is NaN.

    Args:
        ours, reference: tensors of any type; compared in double precision.
        equal_nan: count NaN at the same place of both as equal.
    """
    if ours.shape != reference.shape:
        return float("inf")
    if ours.numel() == 0:
        return 0.0
    first, second = ours.detach().double().cpu(), reference.detach().double().cpu()
    same = first == second  # before the subtraction: inf - inf is NaN
    if equal_nan:
        same |= first.isnan() & second.isnan()
    return float(torch.where(same, 0.0, (first - second).abs()).max())
