"""Matrices and kernels in eight bits: whole numbers of -127 to 127, and beside them the size of a step for each row.

The embedded models are kept so. What is read is the nearest multiple of a row's step, within 1/254 of the row's largest number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lexiseg.errors import WeightsError

STEP = "@step"  # ends the name of a matrix's steps
LEAST = 4096  # numbers of a tensor for which it is worth while
MOST = 127


def in_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are kept: large matrices and kernels as int8 with their steps, the others as they are."""
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.numel() < LEAST or not tensor.is_floating_point():
            kept[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        step = rows.abs().amax(1) / MOST
        whole = (rows / step.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        kept[name], kept[name + STEP] = whole.to(torch.int8).view_as(tensor), step
    return kept


def from_eight_bits(tensors: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """The inverse of `in_eight_bits`, in float32; tensors without steps are handed on.

    Args:
        tensors: as read.
        source: what to call the file in messages.

    Raises:
        WeightsError: steps without a matrix, or not one for each of its rows.
    """
    full = {name: tensor for name, tensor in tensors.items() if not name.endswith(STEP)}
    for key in tensors.keys() - full.keys():
        name, step = key.removesuffix(STEP), tensors[key]
        whole = full.get(name)
        if whole is None or whole.dtype != torch.int8 or whole.dim() < 2 or step.shape != whole.shape[:1]:
            raise WeightsError(f"{source}: {key} has no matrix of eight bits with as many rows; fetch the file again")
        full[name] = (whole.flatten(1).float() * step.float()[:, None]).view(whole.shape)
    return full
