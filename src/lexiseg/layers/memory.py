"""Memory against time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def part_of(work: Callable[..., Tensor], *given: Tensor, alone: bool) -> Tensor:
    """``work`` on a part of something larger.

    In training the steps of a part are not kept but done again on the way back, unless it is ``alone``: so memory is that of a
    part, as it is without training.
    """
    if alone or not torch.is_grad_enabled():
        return work(*given)
    found: Tensor = checkpoint(work, *given, use_reentrant=False)
    return found
