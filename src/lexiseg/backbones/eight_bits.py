"""8-bit quantisation of matrices and kernels: integers of -127 to 127 with a scale for each row.

It is the storage format of the embedded models. The error of a value is at most 1/254 of the row's largest absolute value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lexiseg.errors import WeightsError

STEP = "@step"  # suffix of the key of a matrix's scales
LEAST = 4096  # minimum number of elements of a quantised tensor
MOST = 127


def in_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantise large matrices and kernels to int8 with their scales; other tensors are unchanged."""
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
    """Dequantise the output of `in_eight_bits` to float32; tensors without scales are unchanged.

    Args:
        tensors: tensors of a file.
        source: name of the file in messages.

    Raises:
        WeightsError: scales without a matrix, or not one for each row.
    """
    full = {name: tensor for name, tensor in tensors.items() if not name.endswith(STEP)}
    for key in tensors.keys() - full.keys():
        name, step = key.removesuffix(STEP), tensors[key]
        whole = full.get(name)
        if whole is None or whole.dtype != torch.int8 or whole.dim() < 2 or step.shape != whole.shape[:1]:
            raise WeightsError(f"{source}: {key} has no matrix of eight bits with as many rows; fetch the file again")
        full[name] = (whole.flatten(1).float() * step.float()[:, None]).view(whole.shape)
    return full
